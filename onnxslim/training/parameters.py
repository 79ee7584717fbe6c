"""What is trained in a graph: parameters, batch-norm statistics, and quantisation scales that follow."""

from __future__ import annotations

from dataclasses import dataclass

from onnxslim.errors import TrainingError
from onnxslim.graph import DType, Graph, Node, Role, Value
from onnxslim.training.update import MOMENTUM, BatchNormSpec, ObserverSpec, ParameterSpec, WeightScaleSpec

__all__ = ["Trained", "mark_parameters", "trained_of"]

_TRAINABLE = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
}
"""Input slots that hold what training changes; other constants (a scale written into a graph) stay."""


@dataclass(frozen=True)
class Trained:
    """Everything of a graph that an update changes, in the graph's order."""

    parameters: tuple[ParameterSpec, ...]
    batchnorms: tuple[BatchNormSpec, ...]
    observers: tuple[ObserverSpec, ...]
    weights: tuple[WeightScaleSpec, ...]


def mark_parameters(graph: Graph) -> list[Value]:
    """Sets the roles PARAMETER and STATISTIC; returns the parameters in node order, each once.

    A parameter is a float32 initialiser in a trainable slot, directly or through a FakeQuant node.
    Raises TrainingError where there is none.
    """
    found: dict[int, Value] = {}
    for node in graph.nodes():
        if node.domain:
            continue
        for slot in _TRAINABLE.get(node.op, ()):
            value = _behind_fake_quant(graph, graph.input(node, slot))
            if (
                value is not None
                and graph.constant_of(value) is not None
                and value.dtype is DType.FLOAT
                and value.shape
            ):
                graph.set_role(value, Role.PARAMETER)
                found[value.id] = value
        if node.op == "BatchNormalization":
            for slot in (3, 4):
                graph.set_role(graph.operand(node, slot), Role.STATISTIC, graph.operand(node, slot).owner)
    if not found:
        raise TrainingError(
            f"Graph '{graph.name}' has no weights that can be trained (float32 initialisers of Conv, Gemm …)"
        )
    return list(found.values())


def trained_of(graph: Graph, *, frozen_batchnorm: bool = False) -> Trained:
    """What training changes in a graph whose parameters are marked; batch norm's statistics unless frozen."""
    parameters = mark_parameters(graph)
    names = {v.name for v in parameters}
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
            if x.name in names:
                axis = node.attr("axis") if scale.shape else None
                weights.append(WeightScaleSpec(x.name, scale.name, axis, node.attr("bits", 8)))
            elif observed is not None:
                spec = ObserverSpec(
                    observed.name, scale.name, zero_point.name, node.attr("bits", 8), bool(node.attr("signed", 1))
                )
                observers[observed.id] = spec
    specs = tuple(ParameterSpec(v.name, v.static_shape, len(v.static_shape) > 1) for v in parameters)
    return Trained(specs, tuple(batchnorms.values()), tuple(observers.values()), tuple(dict.fromkeys(weights)))


def is_fake_quant(node: Node) -> bool:
    return node.op == "FakeQuant" and node.domain == "onnxslim"


def _behind_fake_quant(graph: Graph, value: Value | None) -> Value | None:
    producer = None if value is None else graph.producer(value)
    return graph.operand(producer, 0) if producer is not None and is_fake_quant(producer) else value
