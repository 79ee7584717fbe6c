"""`EliminateIdentity`: nodes that hand their input on unchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.graph import DType, Graph, Node
from onnxslim.ir.ops import given_numbers
from onnxslim.ir.rewrite import Context, LocalPass
from passes.simplify.bypass import bypass

__all__ = ["EliminateIdentity"]


def _always(graph: Graph, node: Node) -> bool:
    return True


def _is_alone(graph: Graph, node: Node) -> bool:
    return node.arity[0] == 1


def _keeps_type(graph: Graph, node: Node) -> bool:
    dtype = graph.operand(node, 0).dtype
    return dtype is not DType.UNDEFINED and int(node.attr("to", 0)) == int(dtype)


def _keeps_order(graph: Graph, node: Node) -> bool:
    order = node.attr("perm")
    return order is not None and list(order) == list(range(len(order)))


def _keeps_shape(graph: Graph, node: Node) -> bool:
    """Both shapes known, at most one axis a symbol: equal volumes make that one equal too."""
    old, new = graph.operand(node, 0).shape, graph.result(node).shape
    if old is None or new is None or old != new:
        return False
    free = [d for d in old if not isinstance(d, int)]
    return len(free) <= 1 and None not in free


def _pads_nothing(graph: Graph, node: Node) -> bool:
    pads = given_numbers(graph, node, "pads", 1)
    return pads is not None and not pads.any()


_TESTS: Mapping[str, Callable[[Graph, Node], bool]] = {
    **dict.fromkeys(("Concat", "Max", "Mean", "Min", "Sum"), _is_alone),
    **dict.fromkeys(("Expand", "Flatten", "Reshape", "Squeeze", "Unsqueeze"), _keeps_shape),
    "Cast": _keeps_type,
    "Identity": _always,
    "Pad": _pads_nothing,
    "Transpose": _keeps_order,
}


@dataclass(frozen=True)
class EliminateIdentity(LocalPass):
    """Identity(x) → x, and so every node that is an identity by what it is given:

        Cast to x's own type · Concat, Sum, Mean, Max, Min of one tensor · Transpose that keeps the order ·
        Reshape, Flatten, Expand, Squeeze, Unsqueeze to x's own static shape · Pad by nothing

    Retained: where an input, an initialiser or another graph output would have to become a graph output.

    Exact.
    """

    name: ClassVar[str] = "eliminate_identity"
    ops: ClassVar[frozenset[str]] = frozenset(_TESTS)

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        return _TESTS[node.op](graph, node) and bypass(graph, node)
