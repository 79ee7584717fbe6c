"""`Scales`: how the grids of fake-quant nodes move while a model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from onnxslim.ir.dialect import FakeQuant
from onnxslim.ir.graph import Graph, Node
from onnxslim.ir.rewrite import Pass
from onnxslim.options import declared
from onnxslim.training.ports import parameter_port, scale_port, statistic_port
from onnxslim.training.rules import FollowMaximum, FollowRange
from onnxslim.training.update import Rule

__all__ = ["FOLLOWED", "Followed", "Scales"]


class Scales(Protocol):
    """What it takes is declared in its fields (`onnxslim.options.declared`)."""

    name: ClassVar[str]

    def rules(self, graph: Graph, quantized: Sequence[Node], learnt: frozenset[int]) -> Sequence[Rule]:
        """What moves of the grids of these FakeQuant nodes; learnt: ids of the parameters."""
        ...

    def passes(self) -> Sequence[Pass]:
        """What rewrites the fake-quant nodes of a step, once its state is fed."""
        ...


@declared
class Followed:
    """Activations' grids follow the ranges that observers see, weights' scales the largest weight."""

    name: ClassVar[str] = "followed"

    def rules(self, graph: Graph, quantized: Sequence[Node], learnt: frozenset[int]) -> Sequence[Rule]:
        observed = [node for node in quantized if graph.input(node, 3) is not None]
        weights = [node for node in quantized if node not in observed and graph.operand(node, 0).id in learnt]
        return [*(_range(graph, node) for node in observed), *(_maximum(graph, node) for node in weights)]

    def passes(self) -> Sequence[Pass]:
        return ()


FOLLOWED = Followed()


def _range(graph: Graph, node: Node) -> Rule:
    scale, zero_point, observed = (graph.operand(node, slot) for slot in (1, 2, 3))
    grid = FakeQuant.of(node)
    return FollowRange(statistic_port(observed), scale_port(scale), scale_port(zero_point), grid.bits, grid.signed)


def _maximum(graph: Graph, node: Node) -> Rule:
    weight, scale = graph.operand(node, 0), graph.operand(node, 1)
    grid = FakeQuant.of(node)
    axis = grid.axis if scale.shape else None
    return FollowMaximum(parameter_port(weight), weight.static_shape, scale_port(scale), axis, grid.bits)
