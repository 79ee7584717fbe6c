"""What is trained in a graph: parameters, batch-norm statistics, and quantisation scales that follow."""

from __future__ import annotations

from dataclasses import dataclass

from onnxslim.analysis.cost import parameters
from onnxslim.analysis.trainable import Survey, find_trainable
from onnxslim.errors import TrainingError
from onnxslim.ir.graph import Graph, Node, Role, Value
from onnxslim.training.update import MOMENTUM, BatchNormSpec, ObserverSpec, ParameterSpec, WeightScaleSpec
from passes.gradient import refusal

__all__ = ["Trained", "left_alone", "mark_parameters", "trained_of"]

_SHOWN = 5  # reasons in a message


@dataclass(frozen=True)
class Trained:
    """Everything of a graph that an update changes, in the graph's order."""

    parameters: tuple[ParameterSpec, ...]
    batchnorms: tuple[BatchNormSpec, ...]
    observers: tuple[ObserverSpec, ...]
    weights: tuple[WeightScaleSpec, ...]


def mark_parameters(graph: Graph) -> list[Value]:
    """Sets the roles PARAMETER and STATISTIC by what `find_trainable` says; returns the parameters in node order.

    Raises TrainingError, with the reasons, where nothing is trained.
    """
    return [parameter.value for parameter in _marked(graph).parameters]


def left_alone(graph: Graph) -> tuple[tuple[str, str], ...]:
    """The weights that training does not move, by name, and why."""
    weights = {value.id for value in parameters(graph)}
    return tuple((v.name, why) for v, why in find_trainable(graph, refusal).left if v.id in weights)


def _marked(graph: Graph) -> Survey:
    survey = find_trainable(graph, refusal)
    for value, _ in survey.left:
        if value.role is Role.PARAMETER:
            graph.set_role(value, Role.CONSTANT, value.owner)
    for parameter in survey.parameters:
        graph.set_role(parameter.value, Role.PARAMETER)
    for node in graph.nodes():
        if node.op == "BatchNormalization" and not node.domain:
            for slot in (3, 4):
                graph.set_role(graph.operand(node, slot), Role.STATISTIC, graph.operand(node, slot).owner)
    if not survey.parameters:
        reasons = [f"'{value.name}': {why}" for value, why in survey.left]
        shown = "; ".join(reasons[:_SHOWN]) + (f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else "")
        raise TrainingError(
            f"Graph '{graph.name}' has no weights that can be trained: {shown or 'it has no float initialisers'}"
        )
    return survey


def trained_of(graph: Graph, *, frozen_batchnorm: bool = False) -> Trained:
    """What training changes in a graph whose parameters are marked; batch norm's statistics unless frozen."""
    found = _marked(graph).parameters
    names = {parameter.value.name for parameter in found}
    batchnorms: dict[str, BatchNormSpec] = {}
    observers: dict[int, ObserverSpec] = {}
    weights: list[WeightScaleSpec] = []
    for node in graph.nodes():
        if node.op == "BatchNormalization" and not frozen_batchnorm:
            mean, var = graph.operand(node, 3), graph.operand(node, 4)
            momentum = float(node.attr("momentum", MOMENTUM))
            batchnorms.setdefault(mean.name, BatchNormSpec(mean.name, var.name, mean.static_shape[0], momentum))
        elif is_fake_quant(node):
            x, scale, zero_point = (graph.operand(node, slot) for slot in range(3))
            observed = graph.input(node, 3)
            if observed is None and x.name in names:
                axis = node.attr("axis") if scale.shape else None
                weights.append(WeightScaleSpec(x.name, scale.name, axis, node.attr("bits", 8)))
            elif observed is not None:
                spec = ObserverSpec(
                    observed.name, scale.name, zero_point.name, node.attr("bits", 8), bool(node.attr("signed", 1))
                )
                observers[observed.id] = spec
    specs = tuple(ParameterSpec(p.value.name, p.value.static_shape, p.decays) for p in found)
    return Trained(specs, tuple(batchnorms.values()), tuple(observers.values()), tuple(dict.fromkeys(weights)))


def is_fake_quant(node: Node) -> bool:
    return node.op == "FakeQuant" and node.domain == "onnxslim"
