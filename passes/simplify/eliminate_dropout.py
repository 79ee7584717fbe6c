"""`EliminateDropout`: models are read for inference, where dropout does nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.graph import Graph, Node
from onnxslim.ops import is_training
from onnxslim.rewrite import Context, Outcome, Pass, Refusal
from passes.simplify.bypass import bypass

__all__ = ["EliminateDropout"]


@dataclass(frozen=True)
class EliminateDropout(Pass):
    """Dropout(x, ratio) → x.

    Refuses, naming the node: a `training_mode` that is true or computed, and a mask that is read.

    Exact.
    """

    name: ClassVar[str] = "eliminate_dropout"

    def run(self, graph: Graph, context: Context) -> Outcome:
        count, refused = 0, []
        for node in graph.nodes():
            if node.op != "Dropout" or node.domain:
                continue
            why = _why_not(graph, node)
            if why is not None:
                refused.append(Refusal(str(node), why))
            elif bypass(graph, node):
                count += 1
        return Outcome(count, tuple(refused))


def _why_not(graph: Graph, node: Node) -> str | None:
    if any(mask is not None and graph.is_used(mask) for mask in graph.node_outputs(node)[1:]):
        return "its mask is read"
    training = is_training(graph, node)
    if training is None:
        return "its training mode is computed or fed"
    return "it is in training mode" if training else None
