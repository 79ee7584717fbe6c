"""`MergeConcats`: one Concat for several in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.graph import Graph, Node
from onnxslim.ir.rewrite import Context, LocalPass

__all__ = ["MergeConcats"]


@dataclass(frozen=True)
class MergeConcats(LocalPass):
    """Concat(a, Concat(b, c), d)  →  Concat(a, b, c, d), along one axis.

    Retained: an inner Concat that something else reads, and axes that may be two (of unknown rank, one counted from the
    front and one from the end).

    Exact.
    """

    name: ClassVar[str] = "merge_concats"
    ops: ClassVar[frozenset[str]] = frozenset({"Concat"})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        return _merge(graph, node)


def _merge(graph: Graph, node: Node) -> int:
    count = 0
    for slot in reversed(range(node.arity[0])):
        value = graph.operand(node, slot)
        inner = graph.producer(value)
        if inner is None or inner.domain or inner.op != "Concat" or graph.is_output(value):
            continue
        if len(graph.uses(value)) > 1 or not _same_axis(graph, node, inner):
            continue
        after = [graph.operand(node, later) for later in range(slot + 1, node.arity[0])]
        for place, moved in enumerate([*graph.node_inputs(inner), *after], slot):
            graph.set_input(node, place, moved)
        graph.remove_node(inner)
        count += 1
    return count


def _same_axis(graph: Graph, node: Node, inner: Node) -> bool:
    axes = [int(n.attr("axis", 1)) for n in (node, inner)]  # 1 up to opset 3
    shape = graph.result(node).shape or graph.result(inner).shape
    if shape is None:
        return axes[0] == axes[1]
    return axes[0] % len(shape) == axes[1] % len(shape)
