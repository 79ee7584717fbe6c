"""`ToFloat32`: half-precision models compute in float32, to be trained and quantised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from onnx import numpy_helper

from onnxslim.graph import DType, Graph, Node
from onnxslim.onnx_io.bodies import bodies_of
from onnxslim.rewrite import Context, Outcome, Pass, Refusal

__all__ = ["ToFloat32"]

_HALF = (DType.FLOAT16, DType.BFLOAT16)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


@dataclass(frozen=True)
class ToFloat32(Pass):
    """Every float16 and bfloat16 tensor → float32: weights, inputs, outputs, Constant and Cast.

    The interface changes too: what was fed as float16 is fed as float32. Nothing else is done, so
    Cast pairs that have become idle are for `eliminate_identity`. A model without half-precision
    types is not touched.

    Refuses, naming the node, and then leaves the whole graph as it is: a subgraph body or a local
    function, whose types it cannot see.

    Contract: not the same numbers, but those of the same weights without half-precision rounding.
    """

    name: ClassVar[str] = "to_float32"

    def run(self, graph: Graph, context: Context) -> Outcome:
        values = [v for v in graph.values() if v.dtype in _HALF]
        nodes = [node for node in graph.nodes() if _half_attributes(node)]
        if not values and not nodes:
            return Outcome()
        functions = {(f.domain, f.name) for f in graph.functions}
        for node in graph.nodes():
            if (node.domain, node.op) in functions or any(True for _ in bodies_of(node.attributes.values())):
                return Outcome(refused=(Refusal(str(node), "its body may compute in half precision, too"),))
        for value in values:
            if value.array is not None:
                graph.set_array(value, value.array.astype(np.float32))
            else:
                graph.set_type(value, DType.FLOAT)
        for node in nodes:
            for name in _half_attributes(node):
                _widen(graph, node, name)
        return Outcome(len(values) + len(nodes))


def _half_attributes(node: Node) -> list[str]:
    """Attributes that are a half-precision type, or a tensor of one."""
    found = [name for name in _TYPE_ATTRIBUTES if not node.domain and node.attr(name, 0) in tuple(map(int, _HALF))]
    return found + [
        n for n, a in node.attributes.items() if a.HasField("t") and a.t.data_type in tuple(map(int, _HALF))
    ]


def _widen(graph: Graph, node: Node, name: str) -> None:
    proto = node.attributes[name]
    if proto.HasField("t"):
        array = numpy_helper.to_array(proto.t).astype(np.float32)
        graph.set_attribute(node, name, numpy_helper.from_array(array, proto.t.name))
    else:
        graph.set_attribute(node, name, int(DType.FLOAT))
