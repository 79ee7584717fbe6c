"""`Footprint`: what a model costs with so many units left in each of its channel groups, before anything is cut."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from onnxslim.analysis.channels import Axis, Group
from onnxslim.analysis.cost import element_bits, is_counted, node_macs, one_sample, parameters, stored_in_bodies
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Graph, Node, Value

__all__ = ["Footprint", "Size"]


class Size(NamedTuple):
    """macs: multiply-accumulates for one sample; params: elements of weights; bytes: of all constants."""

    macs: int
    params: int
    bytes: int


class Footprint:
    """The size of a model by how many units of its groups are left; only what a group touches is counted anew.

    A sketch of the graph has its shapes changed; its arrays stay, and nothing can run it. sizes: of free axes of its
    inputs; where MACs depend on others, none are counted.

    Raises UnsupportedError where the model does not take these sizes.
    """

    def __init__(self, graph: Graph, groups: Mapping[str, Group], sizes: Mapping[str, int] | None = None) -> None:
        self._sketch, self._batch = one_sample(graph, sizes)
        self._groups = {name: _Touched(self._sketch, group) for name, group in groups.items()}
        self.units = {name: group.units for name, group in groups.items()}
        self.left = dict(self.units)
        macs = {node: node_macs(self._sketch, node) for node in self._sketch.nodes()}
        self._countable = not any(count is None and is_counted(node) for node, count in macs.items())
        self._macs = {node.id: count or 0 for node, count in macs.items()}
        self._weights = {value.id for value in parameters(self._sketch)}
        self._elements = {v.id: math.prod(v.static_shape) for v in self._sketch.initializers()}
        self._bits = {v.id: element_bits(v) for v in self._sketch.initializers()}
        self._total_macs = sum(self._macs.values())
        inside = [stored_in_bodies(self._sketch, node) for node in self._sketch.nodes()]
        self._total_params = sum(n for id, n in self._elements.items() if id in self._weights)
        self._total_params += sum(stored.params for stored in inside)
        self._total_bytes = sum(n * self._bits[id] / 8 for id, n in self._elements.items())
        self._total_bytes += sum(stored.bytes for stored in inside)

    @property
    def size(self) -> Size:
        macs = self._total_macs // self._batch if self._countable else 0
        return Size(macs, self._total_params, round(self._total_bytes))

    def macs_of(self, node: Node) -> int:
        """Of one node of the graph, for one sample."""
        return self._macs[node.id] // self._batch if self._countable else 0

    def set(self, name: str, left: int) -> None:
        """So many units of a group are left."""
        change = left - self.left[name]
        if not change:
            return
        self.left[name] = left
        touched = self._groups[name]
        for value, axis, width in touched.axes:
            assert value.shape is not None
            sizes = list(value.shape)
            size = sizes[axis]
            assert isinstance(size, int)
            sizes[axis] = size + change * width
            value.shape = tuple(sizes)
        for value in touched.constants:
            elements = math.prod(value.static_shape)
            more = elements - self._elements[value.id]
            self._elements[value.id] = elements
            self._total_bytes += more * self._bits[value.id] / 8
            self._total_params += more if value.id in self._weights else 0
        for node in touched.nodes:
            macs = node_macs(self._sketch, node) or 0
            self._total_macs += macs - self._macs[node.id]
            self._macs[node.id] = macs

    def with_left(self, left: Mapping[str, int]) -> Size:
        """Sets several groups; the size then."""
        for name, units in left.items():
            self.set(name, units)
        return self.size


class _Touched:
    """The axes on which a group stands, and the constants and nodes whose size depends on them."""

    def __init__(self, sketch: Graph, group: Group) -> None:
        self.axes: list[tuple[Value, int, int]] = []
        constants: dict[int, Value] = {}
        nodes: dict[int, Node] = {}
        for member in group.members:
            value = Axis(member.value.id, member.axis).of(sketch)
            if value.shape is None:
                shapes = ", ".join(f"'{v.name}' {list(v.shape or ())}" for v in sketch.inputs if v.array is None)
                raise UnsupportedError(
                    f"With inputs of the shapes {shapes}, inference finds no shape of '{value.name}': the model does "
                    "not take these sizes; give others, or data that fit it"
                )
            self.axes.append((value, member.axis, member.index.shape[1]))
            if value.array is not None:
                constants[value.id] = value
            producer = sketch.producer(value)
            for node in (*sketch.consumers(value), *([] if producer is None else [producer])):
                if node_macs(sketch, node):
                    nodes[node.id] = node
        self.constants = list(constants.values())
        self.nodes = list(nodes.values())
