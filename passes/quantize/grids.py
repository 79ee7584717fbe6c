"""Reading the grids of a FakeQuant graph."""

from __future__ import annotations

from dataclasses import dataclass

from onnxslim.analysis.regions import hands_on
from onnxslim.errors import ModelError
from onnxslim.ir.dialect import FakeQuant, is_fake_quant
from onnxslim.ir.graph import Array, Graph, Node, Value
from onnxslim.targets import Target

__all__ = ["Grid", "Grids", "fake_quants"]


def fake_quants(graph: Graph) -> list[Node]:
    """All FakeQuant nodes, in order."""
    return [node for node in graph.nodes() if is_fake_quant(node)]


@dataclass(frozen=True)
class Grid:
    """The grid of one FakeQuant node, its parameters known: float32 `scale` and `zero_point`, [] or [C]."""

    scale: Array
    zero_point: Array
    bits: int
    signed: bool
    narrow: bool
    axis: int | None

    @classmethod
    def of(cls, graph: Graph, node: Node) -> Grid:
        """The grid of a node; ModelError where its scale or zero point is not constant."""
        arrays = []
        for slot, what in ((1, "scale"), (2, "zero point")):
            value = graph.operand(node, slot)
            array = graph.constant_of(value)
            if array is None:
                raise ModelError(f"{node}: its {what} '{value.name}' must be a constant to be lowered")
            arrays.append(array)
        said = FakeQuant.of(node)
        axis = said.axis if arrays[0].ndim == 1 else None
        return cls(arrays[0], arrays[1], said.bits, said.signed, said.narrow, axis)


class Grids:
    """The activation grid of any value: given by a FakeQuant, and handed on by shared-scale ops."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self._of: dict[int, Grid] = {}
        for node in graph.nodes():
            if is_fake_quant(node):
                self._of[graph.result(node).id] = Grid.of(graph, node)
            elif hands_on(graph, node, target):
                grid = self._of.get(graph.operand(node, 0).id)
                if grid is not None:
                    self._of |= {value.id: grid for value in graph.node_outputs(node) if value is not None}

    def of(self, value: Value) -> Grid | None:
        return self._of.get(value.id)
