"""`Couplings`: which indices of which axes must be cut together, as a networkx graph that ops' rules fill in.

A vertex is an axis of a value; an edge says that the indices of two axes come and go together, one by one or by
index arrays. An axis that nothing couples is no vertex, and stays as it is: batch, height and width have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import networkx as nx
import numpy as np

from onnxslim.analysis.scope import place
from onnxslim.ir.graph import Array, Graph, Node, Value
from onnxslim.ir.shape_values import known_values

__all__ = ["LONGEST", "Axis", "Couplings", "Edge", "End", "Pin", "Reader"]


class Axis(NamedTuple):
    """One axis of a value, by the value's id: a vertex."""

    value: int
    axis: int

    def of(self, graph: Graph) -> Value:
        """The value, in the graph or in a copy of it."""
        item = graph.item(self.value)
        assert isinstance(item, Value)
        return item


class End(NamedTuple):
    """One side of a coupling: `at` int64 [n] lists the axis's indices in step with the other ends' (None: all, in
    order)."""

    value: Value
    axis: int
    at: Array | None = None


class Edge(NamedTuple):
    """Index `at_a[i]` of axis `a` comes and goes with `at_b[i]` of axis `b` (None: all, in order)."""

    a: Axis
    b: Axis
    at_a: Array | None
    at_b: Array | None


class Pin(NamedTuple):
    """Indices of an axis (None: all) that must stay, and why."""

    axis: Axis
    at: Array | None
    why: str


LONGEST = 1 << 26
"""Elements of an axis whose indices are followed one by one: half a gigabyte of them."""
_ASKS_TYPES = ("CastLike", "Shape")
"""Ops that look at channels without reading them; `passes.prune` keeps what a Shape says."""


class Reader(NamedTuple):
    """A place where a channel ends: `node` sums over `axis` of what it reads in `slot`, so that a channel of zeros
    there is as good as none."""

    node: int
    slot: int
    axis: int

    def of(self, graph: Graph) -> Node:
        """The node, in the graph or in a copy of it."""
        item = graph.item(self.node)
        assert isinstance(item, Node)
        return item


class Couplings:
    """What the rules have said so far; they come node by node, in topological order.

    net: vertices `Axis`, edges carrying the id of the node that couples them.
    sources: axes in which a weight makes channels, and the node that does, in that order.
    readers: where channels end.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.net: nx.Graph[Axis] = nx.Graph()
        self.edges: list[Edge] = []
        self.pins: list[Pin] = []
        self.sources: list[tuple[Axis, int]] = []
        self.readers: list[Reader] = []
        self._fixed: set[Axis] = set()  # that nobody can cut
        self._handed_on: dict[Axis, Axis] = {}  # axes that are not live, and those that they were read from
        self._told: set[tuple[int, Axis]] = set()  # nodes, and the axes of which they have said something

    @cached_property
    def shape_values(self) -> Mapping[int, Array]:
        """What shape arithmetic computes, by value id."""
        return known_values(self.graph)

    def is_live(self, value: Value, axis: int) -> bool:
        """Whether something couples this axis already."""
        return Axis(value.id, axis) in self.net

    def live_axes(self, value: Value) -> list[int]:
        rank = 0 if value.shape is None else len(value.shape)
        return [axis for axis in range(rank) if self.is_live(value, axis)]

    def size(self, value: Value, axis: int) -> int | None:
        """The length of an axis where it is a number, and none too large to follow index by index."""
        dim = None if value.shape is None or axis >= len(value.shape) else value.shape[axis]
        return dim if isinstance(dim, int) and dim <= LONGEST else None

    def _fits(self, end: End) -> bool:
        """Whether the indices of an end are there."""
        size = self.size(end.value, end.axis)
        return size is not None and (end.at is None or end.at.size == 0 or -1 < end.at.min() <= end.at.max() < size)

    def join(self, node: Node, ends: Sequence[End], *, start: bool = False) -> bool:
        """Couples axes that `node` reads and writes; whether they are live now.

        Nothing happens where none of them is live, unless `start` says that channels begin here. A constant
        can always be cut, and what the node itself makes follows; something else that nobody can cut pins all.
        """
        made = {value.id for value in self.graph.node_outputs(node) if value is not None}
        if not start and not any(self.is_live(end.value, end.axis) for end in ends):
            read = [end for end in ends if not self._can_follow(end, made)]
            self._handed_on |= {
                Axis(e.value.id, e.axis): Axis(r.value.id, r.axis) for e in ends if e.value.id in made for r in read[:1]
            }
            return False
        sizes = [self.size(end.value, end.axis) if end.at is None else len(end.at) for end in ends]
        if len(set(sizes)) > 1 or not all(map(self._fits, ends)):
            what = "unknown size" if None in sizes else "another size"
            for end in ends:
                self.pin(node, end.value, end.axis, f"makes of it an axis of {what}", end.at)
            return any(self.is_live(end.value, end.axis) for end in ends)
        fixed = next((end for end in ends if not self._can_follow(end, made)), None)
        axes = [Axis(end.value.id, end.axis) for end in ends]
        self.net.add_nodes_from(axes)
        self._told.update((node.id, axis) for axis in axes)
        for axis, end in zip(axes[1:], ends[1:]):
            self.net.add_edge(axes[0], axis, node=node.id)
            self.edges.append(Edge(axes[0], axis, ends[0].at, end.at))
        if fixed is not None:
            self._fixed.add(Axis(fixed.value.id, fixed.axis))
            self._pin(
                axes[0],
                ends[0].at,
                f"{self._told_by(node)} meets {self._source(fixed)} there, whose axis cannot be cut",
            )
        return True

    def pin(self, node: Node, value: Value, axis: int, why: str, at: Array | None = None) -> None:
        """Indices of a live axis (None: all) must stay, as `node` needs them; nothing happens to other axes."""
        if self.is_live(value, axis):
            self._told.add((node.id, Axis(value.id, axis)))
            self._pin(Axis(value.id, axis), at, f"{self._told_by(node)} {why}")

    def pin_all(self, node: Node, why: str) -> None:
        """No live axis of what the node reads, its bodies included, can be cut."""
        for value in (*self.graph.node_inputs(node), *self.graph.captures(node).values()):
            if value is not None:
                for axis in self.live_axes(value):
                    self.pin(node, value, axis, why)

    def close(self) -> None:
        """After the last rule: graph outputs keep their channels, and so does an axis of which a node that reads it
        has said nothing, because its rule knows no channels there, or because they began after the node."""
        for axis in list(self.net):
            if axis in self._fixed:
                continue
            value = axis.of(self.graph)
            if self.graph.is_output(value):
                self._pin(axis, None, f"'{value.name}' is an output of the graph")
            for node in self.graph.consumers(value):
                if (node.id, axis) not in self._told and node.op not in _ASKS_TYPES:
                    self._pin(axis, None, f"{self._told_by(node)} has no rule for channels there")

    def make(self, node: Node, weight: Value, axis: int) -> None:
        """Here `node` makes channels, from this axis of its weight."""
        self.sources.append((Axis(weight.id, axis), node.id))

    def end(self, node: Node, slot: int, axis: int) -> None:
        """Here channels end: the node sums over them."""
        value = self.graph.operand(node, slot)
        if self.is_live(value, axis):
            self._told.add((node.id, Axis(value.id, axis)))
            self.readers.append(Reader(node.id, slot, axis))

    def _can_follow(self, end: End, made: set[int]) -> bool:
        value = end.value
        known = self.is_live(value, end.axis) or value.id in made
        return known or self.graph.constant_of(value) is not None

    def _told_by(self, node: Node) -> str:
        """A node as the user knows it: the one that it was written out of, or by what it makes where it has no name."""
        return node.origin or place(self.graph, node)

    def _source(self, end: End) -> str:
        """What an axis that cannot be cut comes from: an input, or the node that made it of something else."""
        axis = Axis(end.value.id, end.axis)
        while axis in self._handed_on:
            axis = self._handed_on[axis]
        value = axis.of(self.graph)
        node = self.graph.producer(value)
        return f"'{value.name}'" if node is None else f"what {self._told_by(node)} makes"

    def _pin(self, axis: Axis, at: Array | None, why: str) -> None:
        self.pins.append(Pin(axis, None if at is None else np.asarray(at, np.int64), why))
