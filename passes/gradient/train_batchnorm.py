"""`TrainBatchnorm`: batch normalisation by the batch's own statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.graph import Graph, Role
from onnxslim.ops import is_training
from onnxslim.rewrite import Context, Outcome, Pass

__all__ = ["TrainBatchnorm"]


@dataclass(frozen=True)
class TrainBatchnorm(Pass):
    """BN(x, γ, β, μ, v) → y, batch_mean, batch_var of BN(x, γ, β, μ, v; training_mode=1, momentum=0).

    With momentum 0 the second and third outputs are the batch's own mean and biased variance,
    float32 [C], named `batch_mean.<μ>` and `batch_var.<μ>`; running statistics are merged outside.
    The function changes, as training asks for.
    """

    name: ClassVar[str] = "train_batchnorm"

    def run(self, graph: Graph, context: Context) -> Outcome:
        found = [n for n in graph.nodes() if n.op == "BatchNormalization" and not is_training(graph, n)]
        for node in found:
            mean, x = graph.operand(node, 3), graph.operand(node, 0)
            graph.set_attribute(node, "training_mode", 1)
            graph.set_attribute(node, "momentum", 0.0)
            for slot, kind in ((1, "batch_mean"), (2, "batch_var")):
                value = graph.add_value(
                    graph.fresh_name(f"{kind}.{mean.name}"), x.dtype, mean.shape, role=Role.STATISTIC, owner=mean.name
                )
                graph.set_output(node, slot, value)
        return Outcome(len(found))
