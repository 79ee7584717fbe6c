"""`ToFloat32`: half-precision models compute in float32, to be trained and quantised."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from onnx import numpy_helper

from onnxslim.analysis.bodies import close_bodies, open_bodies, walk
from onnxslim.ir.graph import DType, Graph, Node
from onnxslim.ir.rewrite import Context, Outcome, Pass, Refusal

__all__ = ["ToFloat32"]

_HALF = (DType.FLOAT16, DType.BFLOAT16)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


@dataclass(frozen=True)
class ToFloat32(Pass):
    """Every float16 and bfloat16 tensor → float32: weights, inputs, outputs, Constant and Cast.

    The interface changes too: what was fed as float16 is fed as float32. Nothing else is done, so
    Cast pairs that have become idle are for `eliminate_identity`. A model without half-precision
    types is not touched.

    Bodies (If, Loop, Scan) are widened as the graph is. Refuses, naming the node, and then leaves the whole graph as it
    is: a local function, whose types it cannot see.

    Contract: not the same numbers, but those of the same weights without half-precision rounding.
    """

    name: ClassVar[str] = "to_float32"

    def run(self, graph: Graph, context: Context) -> Outcome:
        if not any(_is_half(part) for part in walk(graph)):
            return Outcome()
        functions = {(f.domain, f.name) for f in graph.functions}
        for part in walk(graph):
            for node in part.nodes():
                if (node.domain, node.op) in functions:
                    return Outcome(refused=(Refusal(str(node), "its body may compute in half precision, too"),))
        return Outcome(_widen_all(graph, ()))


def _is_half(graph: Graph) -> bool:
    return any(v.dtype in _HALF for v in graph.values()) or any(_half_attributes(node) for node in graph.nodes())


def _widen_all(graph: Graph, outer: Collection[int]) -> int:
    """All but what a body has from outside, which was widened there."""
    values = [v for v in graph.values() if v.dtype in _HALF and v.id not in outer]
    for value in values:
        if value.array is not None:
            graph.set_array(value, value.array.astype(np.float32))
        else:
            graph.set_type(value, DType.FLOAT)
    count = len(values)
    for node in graph.nodes():
        for name in _half_attributes(node):
            _widen(graph, node, name)
            count += 1
        bodies = open_bodies(graph, node)
        inside = 0
        for body in bodies:
            inside += _widen_all(body.graph, body.outer)
            body.declared.update({id: (_wide(dtype), shape) for id, (dtype, shape) in body.declared.items()})
        if inside:
            close_bodies(graph, node, bodies)
        count += inside
    return count


def _wide(dtype: DType) -> DType:
    return DType.FLOAT if dtype in _HALF else dtype


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
