"""`EliminateDead`: nodes and initialisers that no output depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.graph import Graph
from onnxslim.ir.rewrite import Context, Outcome, Pass
from onnxslim.ir.shapes import TYPES

__all__ = ["EliminateDead"]


@dataclass(frozen=True)
class EliminateDead(Pass):
    """A node none of whose outputs is read → nothing; an initialiser that nothing reads → nothing.

    Retained: graph inputs, also unread ones (they are the model's interface), and everything that a
    graph output or a subgraph body depends on.

    Exact.
    """

    name: ClassVar[str] = "eliminate_dead"
    keeps_types: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> Outcome:
        types = graph.noted(TYPES)
        count = 0
        for node in reversed(graph.nodes()):
            if not any(value is not None and graph.is_used(value) for value in graph.node_outputs(node)):
                graph.remove_node(node)
                count += 1
        for value in graph.values():
            if not graph.is_used(value) and not graph.is_input(value) and graph.producer(value) is None:
                graph.remove_value(value)
                count += 1
        if types is not None:
            graph.note(TYPES, types)  # of what remains nothing has changed
        return Outcome(count)
