"""`InlineBranches`: an If whose condition is known becomes the branch that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.analysis.bodies import open_bodies
from onnxslim.ir.graph import Graph, Node
from onnxslim.ir.rewrite import Context, LocalPass

__all__ = ["InlineBranches"]


@dataclass(frozen=True)
class InlineBranches(LocalPass):
    """If(true; then, else)  →  the nodes of `then`; If(false; …)  →  those of `else`.

    Names in the branch get the node's as a prefix. Retained: a condition that is computed or fed.

    Exact.
    """

    name: ClassVar[str] = "inline_branches"
    ops: ClassVar[frozenset[str]] = frozenset({"If"})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        return _inline(graph, node)


def _inline(graph: Graph, node: Node) -> bool:
    condition = graph.constant_of(graph.operand(node, 0))
    if condition is None or condition.size != 1:
        return False
    wanted = "then_branch" if condition.any() else "else_branch"
    body = next((body for body in open_bodies(graph, node) if body.attribute == wanted), None)
    results = graph.node_outputs(node)
    if body is None or len(body.graph.outputs) != len(results):
        return False
    feeds = {value.name: outer for value, outer in ((body.graph.item(id), o) for id, (o, _) in body.outer.items())}
    base = node.name or next((v.name for v in results if v is not None), node.op)
    graph.detach(node)
    mapped = graph.merge(body.graph, f"{base}/", feeds)
    for outer in feeds.values():
        twin = mapped[outer.name]
        if twin is not outer:  # a constant that the branch captured
            graph.replace_uses(twin, outer)
            graph.remove_value(twin)
            mapped[outer.name] = outer
    for result, given in zip(results, body.graph.outputs):
        if result is not None:
            graph.add_node("Identity", [mapped[given.name]], [result], name=graph.fresh_name(f"{base}/{given.name}"))
    return True
