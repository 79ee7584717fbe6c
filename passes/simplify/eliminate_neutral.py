"""`EliminateNeutral`: sums with nothing, products with one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.graph import Graph, Node, Value
from onnxslim.ir.rewrite import Context, LocalPass
from passes.simplify.bypass import bypass

__all__ = ["EliminateNeutral"]

_NEUTRAL = {"Add": 0, "Div": 1, "Mul": 1, "Pow": 1, "Sub": 0}
_ONE_SIDED = ("Div", "Pow", "Sub")


@dataclass(frozen=True)
class EliminateNeutral(LocalPass):
    """x + 0 → x;  x − 0 → x;  x · 1 → x;  x / 1 → x;  x ^ 1 → x

    for a constant of any shape, numbers, vectors and planes alike, that gives x neither another type nor another shape.

    Retained: a constant that x is broadcast to, or may be; and where an input, an initialiser or another graph output
    would have to become a graph output.

    Exact, but for the sign of a zero: −0 + 0 is +0.
    """

    name: ClassVar[str] = "eliminate_neutral"
    ops: ClassVar[frozenset[str]] = frozenset(_NEUTRAL)

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        slot = _kept_slot(graph, node)
        return slot is not None and bypass(graph, node, slot)


def _kept_slot(graph: Graph, node: Node) -> int | None:
    """The slot of what the node hands on; None where its constant does something."""
    if graph.opset < 7:  # operands broadcast as attributes say
        return None
    for slot in (0,) if node.op in _ONE_SIDED else (0, 1):
        x, other = graph.operand(node, slot), graph.operand(node, 1 - slot)
        constant = graph.constant_of(other)
        if constant is None or not constant.size or constant.dtype.kind not in "fiu":
            continue
        if (constant == _NEUTRAL[node.op]).all() and x.dtype is other.dtype and _keeps_shape(x, other):
            return slot
    return None


def _keeps_shape(x: Value, constant: Value) -> bool:
    """Whether x keeps its shape beside the constant: each axis of the constant is 1 long, or as long as x's."""
    theirs = constant.shape or ()
    if all(size == 1 for size in theirs) and (not theirs or x.shape is not None):
        return x.shape is None or len(theirs) <= len(x.shape)
    if x.shape is None or len(theirs) > len(x.shape):
        return False
    return all(size in (1, own) for size, own in zip(reversed(theirs), reversed(x.shape)))
