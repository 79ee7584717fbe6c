"""A graph as text: one line per input, initialiser, node and output. The same for equal graphs.

graph mobilenet_v1 opset 17
in   image: FLOAT[batch, 3, 32, 32]
init conv1.weight: FLOAT[16, 3, 3, 3] parameter 1f0c9a3e
node conv1.out: FLOAT[batch, 16, 32, 32] = Conv(image, conv1.weight) group=1 # conv1
out  logits: FLOAT[batch, 10]
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxslim.ir.graph import Array, DType, Graph, Node, Role, Value

__all__ = ["to_text", "type_text"]

_INLINE = 8
"""Arrays up to this many elements are printed, larger ones by checksum."""


def to_text(graph: Graph) -> str:
    """The whole graph; ends with a newline. Arrays of up to 8 elements are written out."""
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in graph.opsets.items())
    lines = [f"graph {graph.name} opset {opsets}"]
    lines += [f"in   {v.name}: {type_text(v)}{_role(v)}" for v in graph.inputs]
    lines += [
        f"init {v.name}: {type_text(v)}{_role(v)} {_array_text(v.array)}"
        for v in graph.initializers()
        if v.array is not None
    ]
    lines += [f"node {_node_text(graph, node)}" for node in graph.nodes()]
    lines += [f"out  {v.name}: {type_text(v)}" for v in graph.outputs]
    return "\n".join(lines) + "\n"


def type_text(value: Value) -> str:
    """Element type and shape, `FLOAT[batch, 3]`; `?` for what is not known."""
    if value.type_proto is not None and value.dtype is DType.UNDEFINED:
        return str(value.type_proto.WhichOneof("value")).removesuffix("_type")
    name = "?" if value.dtype is DType.UNDEFINED else value.dtype.name
    if value.shape is None:
        return f"{name}[...]"
    return f"{name}[{', '.join('?' if d is None else str(d) for d in value.shape)}]"


def _role(value: Value) -> str:
    if value.role in (Role.ACTIVATION, Role.CONSTANT):
        return ""
    return f" {value.role.value}" + (f" of {value.owner}" if value.owner else "")


def _node_text(graph: Graph, node: Node) -> str:
    results = ", ".join("_" if v is None else f"{v.name}: {type_text(v)}" for v in graph.node_outputs(node))
    operands = ["_" if v is None else v.name for v in graph.node_inputs(node)]
    operands += [f"^{v.name}" for v in graph.captures(node).values()]
    op = f"{node.domain}.{node.op}" if node.domain else node.op
    attributes = "".join(f" {a.name}={_attribute_text(a)}" for a in node.attributes.values())
    return f"{results} = {op}({', '.join(operands)}){attributes}" + (f" # {node.name}" if node.name else "")


def _attribute_text(proto: onnx.AttributeProto) -> str:
    kind = str(onnx.AttributeProto.AttributeType.Name(proto.type))
    if kind == "TENSOR":
        array = numpy_helper.to_array(proto.t)
        return f"{DType(proto.t.data_type).name}[{', '.join(map(str, proto.t.dims))}] {_array_text(array)}"
    if kind == "GRAPH":
        return f"<graph {proto.g.name}: {len(proto.g.node)} nodes>"
    if kind == "STRING":
        return repr(proto.s.decode("utf-8", "backslashreplace"))
    if kind == "STRINGS":
        return f"[{', '.join(repr(s.decode('utf-8', 'backslashreplace')) for s in proto.strings)}]"
    if kind in ("INT", "FLOAT"):
        return _number(helper.get_attribute_value(proto))
    if kind in ("INTS", "FLOATS"):
        return f"[{', '.join(map(_number, helper.get_attribute_value(proto)))}]"
    return f"<{kind.lower()}>"


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _array_text(array: Array) -> str:
    if array.size <= _INLINE and array.dtype.kind in "iubf":
        return f"{{{', '.join(_number(x) for x in array.ravel().tolist())}}}"
    if array.dtype == object:
        data = b"\0".join(s if isinstance(s, bytes) else str(s).encode() for s in array.ravel().tolist())
    else:
        data = np.ascontiguousarray(array).tobytes()
    return f"{zlib.crc32(data):08x}"
