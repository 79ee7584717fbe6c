"""`MergeMovements`: two steps of moving data become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.graph import Graph, Node
from onnxslim.ir.rewrite import Context, LocalPass

__all__ = ["MergeMovements"]

_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class MergeMovements(LocalPass):
    """Transpose(Transpose(x, p), q)  →  Transpose(x, p∘q)
    Reshape(Reshape(x, a), b)      →  Reshape(x, b), also after Flatten, Squeeze and Unsqueeze

    The first step goes where nothing else reads it. Retained: a Reshape whose target is computed, or has a 0,
    which means an axis of the first step's result.

    Exact.
    """

    name: ClassVar[str] = "merge_movements"
    ops: ClassVar[frozenset[str]] = frozenset({"Reshape", "Transpose"})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        return _merge(graph, node)


def _merge(graph: Graph, node: Node) -> bool:
    first = graph.producer(graph.operand(node, 0))
    if first is None or first.domain:
        return False
    if node.op == "Transpose":
        inner, outer = first.attr("perm"), node.attr("perm")
        if first.op != "Transpose" or inner is None or outer is None:
            return False
        graph.set_attribute(node, "perm", [inner[axis] for axis in outer])
    else:
        target = graph.constant_of(graph.operand(node, 1))
        if first.op not in _RESHAPES or target is None or 0 in target:
            return False
    graph.set_input(node, 0, graph.operand(first, 0))
    if not any(v is not None and graph.is_used(v) for v in graph.node_outputs(first)):
        graph.remove_node(first)
    return True
