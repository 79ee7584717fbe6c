"""`TrainBatchnorm`: batch normalisation by the batch's own statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.graph import Graph, Node, Role, Value
from onnxslim.ir.ops import is_training
from onnxslim.ir.rewrite import Context, Outcome, Pass

__all__ = ["TrainBatchnorm"]


@dataclass(frozen=True)
class TrainBatchnorm(Pass):
    """BN(x, γ, β, μ, v) → y, batch_mean, batch_var of BN(x, γ, β, μ, v; training_mode=1, momentum=0).

    With momentum 0 the second and third outputs are the batch's own mean and biased variance,
    float32 [C]: statistics whose owners are μ and v; running statistics are merged outside. Those of batch norms that
    share their running statistics (a layer used twice) are those of all that they normalise together.
    The function changes, as training asks for.
    """

    name: ClassVar[str] = "train_batchnorm"

    def run(self, graph: Graph, context: Context) -> Outcome:
        found = [n for n in graph.nodes() if n.op == "BatchNormalization" and not is_training(graph, n)]
        shared: dict[str, list[tuple[Value, Value]]] = {}
        for node in found:
            graph.set_attribute(node, "training_mode", 1)
            graph.set_attribute(node, "momentum", 0.0)
            shared.setdefault(graph.operand(node, 3).name, []).append(_hand_out(graph, node))
        for parts in shared.values():
            if len(parts) > 1:
                _merge(graph, parts)
        return Outcome(len(found))


def _hand_out(graph: Graph, node: Node) -> tuple[Value, Value]:
    """The batch's mean and variance as outputs of the node."""
    x, made = graph.operand(node, 0), []
    for slot, running in ((1, graph.operand(node, 3)), (2, graph.operand(node, 4))):
        name = graph.fresh_name(f"{running.name}/batch")
        made.append(graph.add_value(name, x.dtype, running.shape, role=Role.STATISTIC, owner=running.name))
        graph.set_output(node, slot, made[-1])
    return made[0], made[1]


def _merge(graph: Graph, parts: Sequence[tuple[Value, Value]]) -> None:
    """mean = Σ mᵢ / k, var = Σ (vᵢ + mᵢ²) / k − mean², which are the statistics instead of their parts."""
    owners = [value.owner for value in parts[0]]

    def op(op: str, *inputs: Value) -> Value:
        made = graph.op(op, *inputs, name=f"{owners[0]}/{op}")
        graph.set_type(made, inputs[0].dtype, inputs[0].shape)
        return made

    mean = op("Mean", *(m for m, _ in parts))
    raw = [op("Add", v, op("Mul", m, m)) for m, v in parts]
    var = op("Sub", op("Mean", *raw), op("Mul", mean, mean))
    for value in (value for pair in parts for value in pair):
        graph.set_role(value, Role.ACTIVATION)
    for value, owner in zip((mean, var), owners):
        graph.set_role(value, Role.STATISTIC, owner)
