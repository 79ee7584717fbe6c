"""Invariants that every graph must keep, checked between passes."""

from __future__ import annotations

from onnxslim.errors import VerifyError
from onnxslim.graph import Graph, Node

__all__ = ["verify"]


def verify(graph: Graph, since: int = 0) -> None:
    """Raises VerifyError naming node, op, expected and got, where an invariant fails.

    With `since`, a mark of the graph's journal, only what was edited after it is looked at.
    """
    for item in graph.touched(since):
        if isinstance(item, Node):
            for value in graph.node_inputs(item):
                if value is not None and value.array is None and not graph.is_input(value) and not graph.producer(value):
                    raise VerifyError(f"{item} reads '{value.name}', which nothing produces")
    graph.nodes()
