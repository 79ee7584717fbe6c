"""`find_groups`: the channel groups of a graph, its couplings worked out index by index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import networkx as nx
import numpy as np

from onnxslim.analysis.channels.couplings import Axis, Couplings, Edge, Pin, Reader
from onnxslim.analysis.channels.rules import couple
from onnxslim.analysis.scope import label
from onnxslim.brief import Brief
from onnxslim.collector import paused
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Array, Graph, Node, Value

__all__ = ["Group", "Groups", "Member", "find_groups"]


_OLDEST = 13
"""In which Softmax began to mean one axis, and Split and Squeeze to take their numbers as inputs."""


@dataclass(frozen=True, eq=False, repr=False)
class Member(Brief):
    """A range of an axis that belongs to a group. index: int64 [units, k], the k indices on this axis that each
    unit of the group stands for, ascending. makes: whether it is of a weight, and channels are made there."""

    value: Value
    axis: int
    index: Array
    makes: bool


@dataclass(frozen=True, eq=False, repr=False)
class Group(Brief):
    """Channels that come and go together: unit u of the group is row u of each member's index.

    name: of the node that makes the first of its channels; with "[first:last]" where that node's channels are
    of several groups. makers: the nodes whose weights make the channels. pinned: why none of it can be cut;
    empty where it can.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    makers: tuple[Node, ...]
    pinned: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Channels of the first maker that one unit stands for."""
        return int(self.members[0].index.shape[1])

    @property
    def channels(self) -> int:
        """Channels of the first maker, all units together."""
        return self.units * self.width


@dataclass(frozen=True, eq=False, repr=False)
class Groups(Brief):
    """The groups of a graph in its order, and the places where channels end.

    net: the couplings as a networkx graph of `Axis` vertices, each edge with the id of the node that couples.
    """

    groups: tuple[Group, ...]
    readers: tuple[Reader, ...]
    net: nx.Graph[Axis]

    @cached_property
    def by_name(self) -> Mapping[str, Group]:
        return {group.name: group for group in self.groups}

    @property
    def free(self) -> tuple[Group, ...]:
        """Those that can be cut."""
        return tuple(group for group in self.groups if not group.pinned)


@paused()
def find_groups(graph: Graph) -> Groups:
    """The channel groups of a graph with inferred shapes, in opset 13 or later.

    Every rule couples axes as its op asks for; connected axes are then worked out index by index, and indices that
    always meet are one unit. Units that stand equally often in the same axes are one group.

    Raises UnsupportedError for an older opset, in which ops mean something else.
    """
    if 0 < graph.opset < _OLDEST:
        raise UnsupportedError(
            f"Graph '{graph.name}' is in opset {graph.opset}, channels are found in opset {_OLDEST} and later: "
            f"convert it first (`canonicalize` does)"
        )
    couplings = Couplings(graph)
    couple(couplings)
    components = list(nx.connected_components(couplings.net))
    home = {axis: number for number, axes in enumerate(components) for axis in axes}
    parts = [_Component(couplings) for _ in components]
    for axis in couplings.net:
        parts[home[axis]].axes.append(axis)
    for edge in couplings.edges:
        parts[home[edge.a]].edges.append(edge)
    for pin in couplings.pins:
        parts[home[pin.axis]].pins.append(pin)
    for axis, node in couplings.sources:
        if axis in home:
            parts[home[axis]].makers.setdefault(axis, []).append(node)
    order = {node.id: place for place, node in enumerate(graph.nodes())}
    found = [group for part in parts if part.makers for group in part.groups()]
    found.sort(key=lambda group: (order[group.makers[0].id], int(group.members[0].index[0, 0])))
    return Groups(tuple(_named_apart(found)), tuple(couplings.readers), couplings.net)


class _Component:
    """Connected axes: their indices are numbered through ("atoms"), and those that are coupled become one unit."""

    def __init__(self, couplings: Couplings) -> None:
        self.couplings = couplings
        self.axes: list[Axis] = []
        self.edges: list[Edge] = []
        self.pins: list[Pin] = []
        self.makers: dict[Axis, list[int]] = {}

    def groups(self) -> list[Group]:
        units, count = self._units()
        if not count:  # axes without an index
            return []
        pins = [(np.unique(units[p.axis] if p.at is None else units[p.axis][p.at]), p.why) for p in self.pins]
        return [
            self._group(units, kind, [why for touched, why in pins if kind[touched].any()])
            for kind in self._kinds(units, count, pins)
            if any(kind[units[axis]].any() for axis in self.makers)
        ]

    def _units(self) -> tuple[dict[Axis, Array], int]:
        """The unit of each index of each axis, numbered through the component, and how many there are."""
        graph, starts, total = self.couplings.graph, {}, 0
        sizes = {axis: self.couplings.size(axis.of(graph), axis.axis) or 0 for axis in self.axes}
        for axis, size in sizes.items():
            starts[axis], total = total, total + size
        atoms = {axis: np.arange(starts[axis], starts[axis] + size) for axis, size in sizes.items()}
        parent = np.arange(total)
        for edge in self.edges:
            a, b = atoms[edge.a], atoms[edge.b]
            _unite(parent, a if edge.at_a is None else a[edge.at_a], b if edge.at_b is None else b[edge.at_b])
        found, unit = np.unique(_roots(parent, np.arange(total)), return_inverse=True)
        return {axis: unit[atoms[axis]] for axis in self.axes}, len(found)

    def _kinds(self, units: Mapping[Axis, Array], count: int, pins: Sequence[tuple[Array, str]]) -> list[Array]:
        """Masks over the units: those alike in how often they stand on each axis, and in being pinned."""
        kind = np.zeros(count, np.int64)
        for unit in units.values():
            kind = _refined(kind, np.bincount(unit, minlength=count))
        for touched, _ in pins:
            mark = np.zeros(count, np.int64)
            mark[touched] = 1
            kind = _refined(kind, mark)
        return [kind == k for k in range(int(kind.max(initial=-1)) + 1)]

    def _group(self, units: Mapping[Axis, Array], kind: Array, why: Sequence[str]) -> Group:
        graph = self.couplings.graph
        axes = [*self.makers, *(axis for axis in self.axes if axis not in self.makers)]
        axes = [axis for axis in axes if kind[units[axis]].any()]
        first = units[axes[0]]
        chosen = first[np.sort(np.unique(first, return_index=True)[1])]  # in the order of the first maker's axis
        chosen = chosen[kind[chosen]]
        rank = np.full(len(kind), -1)
        rank[chosen] = np.arange(len(chosen))
        members = []
        for axis in axes:
            ranks = rank[units[axis]]
            places = np.flatnonzero(ranks >= 0)
            places = places[np.argsort(ranks[places], kind="stable")]
            index = places.reshape(len(chosen), -1)
            members.append(Member(axis.of(graph), axis.axis, index, axis in self.makers))
        ids = dict.fromkeys(node for axis in axes for node in self.makers.get(axis, ()))
        makers = [item for id in ids if isinstance(item := graph.item(id), Node)]
        return Group(label(graph, makers[0]), len(chosen), tuple(members), tuple(makers), tuple(dict.fromkeys(why)))


def _refined(kind: Array, mark: Array) -> Array:
    """Kinds told apart by a mark as well, numbered in the order of the old ones."""
    if (mark == mark[:1]).all():
        return kind
    refined: Array = np.unique(kind * (int(mark.max()) + 1) + mark, return_inverse=True)[1]
    return refined


def _roots(parent: Array, atoms: Array) -> Array:
    found = parent[atoms]
    while True:
        above = parent[found]
        if (above == found).all():
            return found
        found = above


def _unite(parent: Array, a: Array, b: Array) -> None:
    """Union-find over arrays: every root takes the least that it meets, until nothing changes."""
    while True:
        low, high = _roots(parent, a), _roots(parent, b)
        parent[a], parent[b] = low, high  # shorter ways next time
        if (low == high).all():
            return
        low, high = np.minimum(low, high), np.maximum(low, high)
        np.minimum.at(parent, high, low)


def _named_apart(groups: Sequence[Group]) -> list[Group]:
    """Groups of one maker are told apart by its channels; those of makers of one name are counted too."""
    often = Counter(group.name for group in groups)
    named = [replace(g, name=f"{g.name}{_range(g)}") if often[g.name] > 1 else g for g in groups]
    taken: dict[str, Group] = {}
    for group in named:
        name, count = group.name, 1
        while name in taken:
            count += 1
            name = f"{group.name}_{count}"
        taken[name] = replace(group, name=name)
    return list(taken.values())


def _range(group: Group) -> str:
    index = group.members[0].index
    return f"[{index.min()}:{index.max() + 1}]"
