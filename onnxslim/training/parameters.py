"""What is trained in a graph: parameters, batch-norm statistics, and quantisation scales that follow."""

from __future__ import annotations

from collections.abc import Iterable

from onnxslim.analysis.cost import parameters
from onnxslim.analysis.trainable import Survey, find_trainable
from onnxslim.errors import TrainingError
from onnxslim.ir.dialect import FakeQuant, is_fake_quant
from onnxslim.ir.graph import Graph, Node, Role, Value
from onnxslim.training.ports import Kind, Port
from onnxslim.training.rules import MOMENTUM, FollowBatchnorm, FollowMaximum, FollowRange, Optimise
from onnxslim.training.update import Rule
from passes.gradient import refusal

__all__ = [
    "left_alone",
    "mark_parameters",
    "parameter_port",
    "scale_port",
    "statistic_port",
    "updates_of",
]

_SHOWN = 5  # reasons in a message


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


def updates_of(graph: Graph, *, frozen_batchnorm: bool = False) -> tuple[Rule, ...]:
    """What training changes in a graph whose parameters are marked, and by which rule; batch norm's statistics unless
    frozen."""
    found = _marked(graph).parameters
    rules: list[Rule] = [Optimise(parameter_port(p.value), p.value.static_shape, p.decays) for p in found]
    learnt = {p.value.id for p in found}
    nodes = graph.nodes()
    if not frozen_batchnorm:
        rules += [_follow_batchnorm(graph, node) for node in nodes if node.op == "BatchNormalization"]
    quantized = [node for node in nodes if is_fake_quant(node)]
    rules += [_follow_range(graph, node) for node in quantized if graph.input(node, 3) is not None]
    rules += [_follow_maximum(graph, node) for node in quantized
              if graph.input(node, 3) is None and graph.operand(node, 0).id in learnt]  # fmt: skip
    return tuple(_once(rules))


def parameter_port(value: Value) -> Port:
    return Port(Kind.PARAMETER, value.name)


def scale_port(value: Value) -> Port:
    """Of a scale or a zero point."""
    return Port(Kind.SCALE, value.name)


def statistic_port(value: Value) -> Port:
    return Port(Kind.STATISTIC, value.name)


def _follow_batchnorm(graph: Graph, node: Node) -> Rule:
    mean, var = graph.operand(node, 3), graph.operand(node, 4)
    momentum = float(node.attr("momentum", MOMENTUM))
    return FollowBatchnorm(statistic_port(mean), statistic_port(var), mean.static_shape[0], momentum)


def _follow_range(graph: Graph, node: Node) -> Rule:
    scale, zero_point, observed = (graph.operand(node, slot) for slot in (1, 2, 3))
    grid = FakeQuant.of(node)
    return FollowRange(statistic_port(observed), scale_port(scale), scale_port(zero_point), grid.bits, grid.signed)


def _follow_maximum(graph: Graph, node: Node) -> Rule:
    weight, scale = graph.operand(node, 0), graph.operand(node, 1)
    grid = FakeQuant.of(node)
    axis = grid.axis if scale.shape else None
    return FollowMaximum(parameter_port(weight), weight.static_shape, scale_port(scale), axis, grid.bits)


def _once(rules: Iterable[Rule]) -> Iterable[Rule]:
    """Of rules for one array, which several nodes read, the first."""
    found: dict[Port, Rule] = {}
    for rule in rules:
        found.setdefault(next(iter(rule.moves)), rule)
    return found.values()
