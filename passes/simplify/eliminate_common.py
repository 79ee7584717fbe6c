"""`EliminateCommon`: what is computed twice is computed once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.ir.graph import Array, Graph, Node, Value
from onnxslim.ir.onnx_io.tensors import raw_bytes
from onnxslim.ir.ops import is_pure
from onnxslim.ir.rewrite import Context, Outcome, Pass

__all__ = ["EliminateCommon"]

_PIECE = 1 << 20


@dataclass(frozen=True)
class EliminateCommon(Pass):
    """op(x, c), op(x, c′) with equal constants c, c′ and equal attributes → one op(x, c).

    Retained: random ops, ops of other domains and local functions, nodes with bodies, and a repeated node that
    gives a graph output.
    It is for models that are shipped: two layers that are trained may start equal and not stay so.

    Exact.
    """

    name: ClassVar[str] = "eliminate_common"

    def run(self, graph: Graph, context: Context) -> Outcome:
        seen: dict[Hashable, list[Node]] = {}
        count = 0
        for node in graph.nodes():
            if not is_pure(graph, node):
                continue
            alike = seen.setdefault(_key(graph, node), [])
            twin = next((first for first in alike if _same_constants(graph, first, node)), None)
            if twin is None:
                alike.append(node)
            elif not any(v is not None and graph.is_output(v) for v in graph.node_outputs(node)):
                for old, new in zip(graph.node_outputs(node), graph.node_outputs(twin)):
                    if old is not None and new is not None:
                        graph.replace_uses(old, new)
                graph.remove_node(node)
                count += 1
        return Outcome(count)


def _key(graph: Graph, node: Node) -> Hashable:
    """Equal for nodes that differ in nothing but the contents of their constants."""
    attributes = tuple(
        (name, node.attributes[name].SerializeToString(deterministic=True)) for name in sorted(node.attributes)
    )
    outputs = tuple(v is not None for v in graph.node_outputs(node))
    return node.op, attributes, tuple(_operand(graph, v) for v in graph.node_inputs(node)), outputs


def _operand(graph: Graph, value: Value | None) -> Hashable:
    if value is None:
        return None
    array = graph.constant_of(value)
    return value.id if array is None else (array.dtype.str, array.shape)


def _same_constants(graph: Graph, a: Node, b: Node) -> bool:
    return all(
        x is y or _same(graph.constant_of(x), graph.constant_of(y))
        for x, y in zip(graph.node_inputs(a), graph.node_inputs(b))
    )


def _same(a: Array | None, b: Array | None) -> bool:
    """To the bit: 0 and -0 are two numbers to a division."""
    if a is None or b is None:
        return False
    if a.dtype == object:
        return np.array_equal(a, b)
    if a is b:
        return True
    x, y = raw_bytes(a), raw_bytes(b)
    starts = range(0, x.size, _PIECE)
    return x.size == y.size and all(np.array_equal(x[i : i + _PIECE], y[i : i + _PIECE]) for i in starts)
