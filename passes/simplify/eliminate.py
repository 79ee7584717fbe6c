"""Passes that take away nodes which compute nothing: dead code, Identity, Dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.graph import Graph, Node
from onnxslim.rewrite import Context, Outcome, Pass

__all__ = ["EliminateDead", "EliminateDropout", "EliminateIdentity"]


@dataclass(frozen=True)
class EliminateDead(Pass):
    """A node none of whose outputs is read → nothing; initialisers that nothing reads → nothing. Exact."""

    name: ClassVar[str] = "eliminate_dead"

    def run(self, graph: Graph, context: Context) -> Outcome:
        count = 0
        for node in reversed(graph.nodes()):
            outputs = [v for v in graph.node_outputs(node) if v is not None]
            if not any(graph.is_used(v) for v in outputs):
                graph.remove_node(node)
                count += 1
        for value in graph.initializers():
            if not graph.is_used(value) and not graph.is_input(value):
                graph.remove_value(value)
                count += 1
        return Outcome(count)


@dataclass(frozen=True)
class EliminateIdentity(Pass):
    """Identity(x) → x, but where an input or initialiser would have to be a graph output itself. Exact."""

    name: ClassVar[str] = "eliminate_identity"

    def run(self, graph: Graph, context: Context) -> Outcome:
        count = 0
        for node in graph.nodes():
            if node.op == "Identity" and not node.domain:
                count += _bypass(graph, node)
        return Outcome(count)


@dataclass(frozen=True)
class EliminateDropout(Pass):
    """Dropout(x) → x, since models are read for inference. Retained where its mask is read, or where it is
    in training mode by a constant. Exact."""

    name: ClassVar[str] = "eliminate_dropout"

    def run(self, graph: Graph, context: Context) -> Outcome:
        count = 0
        for node in graph.nodes():
            if node.op != "Dropout" or node.domain or len([v for v in graph.node_outputs(node)[1:] if v and graph.is_used(v)]):
                continue
            mode = graph.input(node, 2)
            training = graph.constant_of(mode)
            if mode is None or (training is not None and not np.any(training)):
                count += _bypass(graph, node)
        return Outcome(count)


def _bypass(graph: Graph, node: Node) -> int:
    x, y = graph.operand(node, 0), graph.result(node)
    if graph.is_output(y) and (x.array is not None or graph.is_input(x) or graph.is_output(x) or graph.producer(x) is None):
        return 0
    graph.replace_uses(y, x)
    graph.remove_node(node)
    return 1
