"""`EliminateDropout`: models are read for inference, where dropout does nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.graph import Graph, Node
from onnxslim.ir.ops import is_training
from onnxslim.ir.rewrite import Context, LocalPass
from passes.simplify.bypass import bypass

__all__ = ["EliminateDropout"]


@dataclass(frozen=True)
class EliminateDropout(LocalPass):
    """Dropout(x, ratio) → x.

    Refuses, naming the node: a `training_mode` that is true or computed, and a mask that is read.

    Exact.
    """

    name: ClassVar[str] = "eliminate_dropout"
    ops: ClassVar[frozenset[str]] = frozenset({"Dropout"})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        why = _why_not(graph, node)
        return bypass(graph, node) if why is None else why


def _why_not(graph: Graph, node: Node) -> str | None:
    if any(mask is not None and graph.is_used(mask) for mask in graph.node_outputs(node)[1:]):
        return "its mask is read"
    training = is_training(graph, node)
    if training is None:
        return "its training mode is computed or fed"
    return "it is in training mode" if training else None
