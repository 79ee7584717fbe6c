"""What is trained in a graph: parameters, batch-norm statistics, and the grids of fake-quant nodes."""

from __future__ import annotations

from collections.abc import Iterable

from onnxslim.analysis.cost import parameters
from onnxslim.analysis.trainable import Survey, find_trainable
from onnxslim.errors import TrainingError
from onnxslim.ir.dialect import is_fake_quant
from onnxslim.ir.graph import Graph, Node, Role, Value
from onnxslim.training.ports import Port, parameter_port, statistic_port
from onnxslim.training.rules import MOMENTUM, FollowBatchnorm, Optimise
from onnxslim.training.scales import FOLLOWED, Scales
from onnxslim.training.update import Rule
from passes.gradient import refusal

__all__ = ["left_alone", "mark_parameters", "updates_of"]

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


def updates_of(graph: Graph, *, frozen_batchnorm: bool = False, scales: Scales = FOLLOWED) -> tuple[Rule, ...]:
    """What training changes in a graph whose parameters are marked, and by which rule; batch norm's statistics unless
    frozen, the grids of fake-quant nodes as `scales` says."""
    found = _marked(graph).parameters
    rules: list[Rule] = [Optimise(parameter_port(p.value), p.value.static_shape, p.decays) for p in found]
    nodes = graph.nodes()
    if not frozen_batchnorm:
        rules += [_follow_batchnorm(graph, node) for node in nodes if node.op == "BatchNormalization"]
    learnt = frozenset(parameter.value.id for parameter in found)
    rules += scales.rules(graph, [node for node in nodes if is_fake_quant(node)], learnt)
    return tuple(_once(rules))


def _follow_batchnorm(graph: Graph, node: Node) -> Rule:
    mean, var = graph.operand(node, 3), graph.operand(node, 4)
    momentum = float(node.attr("momentum", MOMENTUM))
    return FollowBatchnorm(statistic_port(mean), statistic_port(var), mean.static_shape[0], momentum)


def _once(rules: Iterable[Rule]) -> Iterable[Rule]:
    """Of rules for one array, which several nodes read, the first."""
    found: dict[Port, Rule] = {}
    for rule in rules:
        found.setdefault(next(iter(rule.moves)), rule)
    return found.values()
