"""Bodies in bodies, and functions that call functions: what benchmarks/mutations.py adds to models."""

from __future__ import annotations

from itertools import pairwise

import onnx
from onnx import AttributeProto, helper

__all__ = ["nested_bodies", "nested_functions"]


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    size, length = len(content), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def nested_bodies(depth: int) -> bytes:
    """What, appended to a model's bytes, adds to its graph an If in an If in an If …, which protobuf itself refuses
    to write from some depth on."""
    body = _field(12, onnx.ValueInfoProto(name="deep").SerializeToString()) + _field(2, b"b")
    for _ in range(depth):
        attributes = b"".join(
            _field(5, onnx.AttributeProto(name=n, type=AttributeProto.GRAPH).SerializeToString() + _field(6, body))
            for n in ("then_branch",)
        )
        body = _field(1, onnx.NodeProto(op_type="If", output=["deep"]).SerializeToString() + attributes)
    return _field(7, body)


def nested_functions(model: onnx.ModelProto, depth: int, width: int, *, recursive: bool = False) -> None:
    """Adds functions each of which calls the next one `width` times, and a node that calls the first."""
    model.opset_import.add(domain="deep", version=1)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("deep", 1)]
    for level in range(depth):
        last = level == depth - 1
        op = "f0" if recursive and last else "Relu" if last else f"f{level + 1}"
        names = ["a", *(f"t{i}" for i in range(width - 1)), "b"]
        domain = "" if op == "Relu" else "deep"
        nodes = [helper.make_node(op, [x], [y], domain=domain) for x, y in pairwise(names)]
        model.functions.append(helper.make_function("deep", f"f{level}", ["a"], ["b"], nodes, opsets))
    model.graph.node.append(helper.make_node("f0", [model.graph.output[0].name], ["deep_y"], domain="deep"))
    model.graph.output.append(onnx.ValueInfoProto(name="deep_y"))
