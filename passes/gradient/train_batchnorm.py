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
    float32 [C], named `batch_mean.<μ>` and `batch_var.<μ>`; running statistics are merged outside. Those of batch norms
    that share their running statistics (a layer used twice) are those of all that they normalise together.
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
    mean, x = graph.operand(node, 3), graph.operand(node, 0)
    made = []
    for slot, kind in ((1, "batch_mean"), (2, "batch_var")):
        name = graph.fresh_name(f"{kind}.{mean.name}")
        made.append(graph.add_value(name, x.dtype, mean.shape, role=Role.STATISTIC, owner=mean.name))
        graph.set_output(node, slot, made[-1])
    return made[0], made[1]


def _merge(graph: Graph, parts: Sequence[tuple[Value, Value]]) -> None:
    """mean = Σ mᵢ / k, var = Σ (vᵢ + mᵢ²) / k − mean², under the names of the first."""
    names = [value.name for value in parts[0]]
    for value in parts[0]:
        graph.rename(value, graph.fresh_name(f"{value.name}/part"))

    def op(op: str, *inputs: Value, name: str) -> Value:
        made = graph.op(op, *inputs, name=name)
        graph.set_type(made, inputs[0].dtype, inputs[0].shape)
        return made

    mean = op("Mean", *(m for m, _ in parts), name=names[0])
    raw = [op("Add", v, op("Mul", m, m, name=f"{names[1]}/square"), name=f"{names[1]}/raw") for m, v in parts]
    square = op("Mul", mean, mean, name=f"{names[1]}/mean_square")
    var = op("Sub", op("Mean", *raw, name=f"{names[1]}/mean"), square, name=names[1])
    for value, (first, _) in ((mean, parts[0]), (var, parts[0])):
        graph.set_role(value, Role.STATISTIC, first.owner)
