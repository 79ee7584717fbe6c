"""`PlainOps`: an op that is another, plainer one by what it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.graph import DType, Graph, Node
from onnxslim.ir.rewrite import Context, LocalPass

__all__ = ["PlainOps"]


@dataclass(frozen=True)
class PlainOps(LocalPass):
    """CastLike(x, like)  →  Cast(x) to like's type, where that is known
    Sum(a, b)          →  Add(a, b)

    What ONNX defines ops by is written so, and runtimes look for the plain ones: of x/2 · (1 + Erf(x/√2)) with CastLike
    and Sum in it, ONNX Runtime makes no Gelu.

    Exact.
    """

    name: ClassVar[str] = "plain_ops"
    ops: ClassVar[frozenset[str]] = frozenset({"CastLike", "Sum"})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        return _rewrite(graph, node)


def _rewrite(graph: Graph, node: Node) -> bool:
    if node.op == "Sum" and node.arity[0] == 2 and graph.opset >= 8:  # before, a Sum did not broadcast
        graph.set_op(node, "Add")
        return True
    if node.op != "CastLike":
        return False
    dtype = graph.operand(node, 1).dtype
    if dtype is DType.UNDEFINED or node.attributes:  # whether it saturates, and how it rounds
        return False
    graph.set_op(node, "Cast")
    graph.set_attribute(node, "to", int(dtype))
    graph.set_input(node, 1, None)
    return True
