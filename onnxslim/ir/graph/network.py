"""`Network`: the items of a graph by id, the edges between them, and what those edges say.

A pass asks much oftener than it edits, so what was read off the edges is kept until one changes there.
"""

from __future__ import annotations

import dataclasses
import heapq
from typing import Any

import networkx as nx
import onnx

from onnxslim.ir.graph.items import CAPTURE, Node, Use, Value

__all__ = ["Network"]


class Network:
    """A bipartite networkx graph over ids; an edge's key is the slot it fills. Only `Graph` edits it."""

    def __init__(self) -> None:
        self.net: nx.MultiDiGraph[int] = nx.MultiDiGraph()
        self.items: dict[int, Node | Value] = {}
        self._capturing: dict[int, None] = {}  # nodes whose bodies have captured something
        # What was read off the edges.
        self._order: list[Node] | None = None
        self._reads: dict[int, tuple[Value | None, ...]] = {}
        self._makes: dict[int, tuple[Value | None, ...]] = {}
        self._uses: dict[int, tuple[Use, ...]] = {}
        self._producers: dict[int, Node | None] = {}
        self.written: dict[int, onnx.NodeProto] = {}  # nodes as ONNX, until an edit changes one

    def copy(self) -> Network:
        """An independent copy; ids stay the same."""
        twin = Network()
        twin.net = self.net.copy()
        twin.items = {
            id: dataclasses.replace(item, attributes=dict(item.attributes), metadata=dict(item.metadata))
            if isinstance(item, Node)
            else dataclasses.replace(item, metadata=dict(item.metadata))
            for id, item in self.items.items()
        }
        twin._capturing, twin.written = dict(self._capturing), dict(self.written)
        return twin

    def value(self, id: int) -> Value:
        """The value of an id."""
        item = self.items[id]
        assert isinstance(item, Value)
        return item

    def node(self, id: int) -> Node:
        """The node of an id."""
        item = self.items[id]
        assert isinstance(item, Node)
        return item

    # ------------------------------------------------------------------ reading

    def sources(self, id: int) -> list[int]:
        """Where its edges come from."""
        return list(self.net.predecessors(id))

    def targets(self, id: int) -> list[int]:
        """Where its edges go."""
        return list(self.net.successors(id))

    def edges(self, source: int, target: int) -> dict[int, dict[str, str]]:
        """By slot, the edges between two vertices that have some, and under which name a body captures."""
        edges: Any = self.net.get_edge_data(source, target)  # much faster than networkx's views
        found: dict[int, dict[str, str]] = edges
        return found

    def is_read(self, value: Value) -> bool:
        """Whether a node reads it."""
        return any(True for _ in self.net.successors(value.id))

    def producer(self, value: Value) -> Node | None:
        """The node that makes it, if any."""
        try:
            return self._producers[value.id]
        except KeyError:
            source = next(iter(self.net.predecessors(value.id)), None)
            found = self._producers[value.id] = None if source is None else self.node(source)
            return found

    def reads(self, node: Node) -> tuple[Value | None, ...]:
        """What is in its input slots."""
        kept = self._reads.get(node.id)
        if kept is None:
            slots: list[Value | None] = [None] * node.arity[0]
            for source in self.net.predecessors(node.id):
                for slot in self.edges(source, node.id):
                    if slot < CAPTURE:
                        slots[slot] = self.value(source)
            kept = self._reads[node.id] = tuple(slots)
        return kept

    def makes(self, node: Node) -> tuple[Value | None, ...]:
        """What is in its output slots."""
        kept = self._makes.get(node.id)
        if kept is None:
            slots: list[Value | None] = [None] * node.arity[1]
            for target in self.net.successors(node.id):
                for slot in self.edges(node.id, target):
                    slots[slot] = self.value(target)
            kept = self._makes[node.id] = tuple(slots)
        return kept

    def captures(self, node: Node) -> dict[str, Value]:
        """What its bodies read from outside, by the name they use."""
        if node.id not in self._capturing:
            return {}
        edges: Any = self.net.in_edges(node.id, keys=True, data="name")
        found = [(slot, name, source) for source, _, slot, name in edges if slot >= CAPTURE]
        return {name: self.value(source) for _, name, source in sorted(found)}

    def uses(self, value: Value) -> tuple[Use, ...]:
        """Who reads it, and in which slots, in the order of the nodes."""
        kept = self._uses.get(value.id)
        if kept is None:
            readers = sorted(self.net.successors(value.id))
            edges = [(node, slot) for node in readers for slot in sorted(self.edges(value.id, node))]
            kept = self._uses[value.id] = tuple(Use(self.node(node), slot) for node, slot in edges)
        return kept

    def ordered(self) -> list[Node]:
        """The nodes by id, each after those that it reads from; networkx.NetworkXUnfeasible with a cycle in words."""
        if self._order is None:
            self._order = self._sorted()
        return self._order

    # ------------------------------------------------------------------ editing

    def insert(self, item: Node | Value) -> None:
        """An item without edges."""
        self.items[item.id] = item
        self.net.add_node(item.id)
        if isinstance(item, Node):
            self._order = None
        else:
            self._producers[item.id] = None

    def drop(self, item: Node | Value) -> None:
        """Away with the item and its edges."""
        self.forget(*self.net.predecessors(item.id), *self.net.successors(item.id), item.id)
        self.net.remove_node(item.id)
        del self.items[item.id]

    def feed(self, node: Node, inputs: tuple[Value | None, ...]) -> None:
        """All input slots of a node that has none yet."""
        for slot, source in enumerate(inputs):
            if source is not None:
                self.net.add_edge(source.id, node.id, slot)
                self._uses.pop(source.id, None)
        self._reads[node.id] = inputs

    def make(self, node: Node, made: Value | None) -> None:
        """The next output slot of a node that is being added."""
        slots = self._makes.get(node.id, ())
        self._makes[node.id] = (*slots, made)
        if made is not None:
            self.net.add_edge(node.id, made.id, len(slots))
            self._producers[made.id] = node

    def link(self, source: int, target: int, slot: int, capture: str | None = None) -> None:
        if capture is None:
            self.net.add_edge(source, target, key=slot)
        else:
            self.net.add_edge(source, target, key=slot, name=capture)
            self._capturing[target] = None
        self._forget_edge(source, target)

    def unlink(self, source: int, target: int, slot: int) -> None:
        self.net.remove_edge(source, target, slot)
        self._forget_edge(source, target)

    def forget(self, *ids: int) -> None:
        """What was read off the edges of these, whose edges change."""
        self._order = None
        for kept in (self._reads, self._makes, self._uses, self._producers, self.written):
            for id in ids:
                kept.pop(id, None)

    # ------------------------------------------------------------------ private

    def _forget_edge(self, source: int, target: int) -> None:
        self._order = None
        self._makes.pop(source, None)
        self._uses.pop(source, None)
        self.written.pop(source, None)
        self._reads.pop(target, None)
        self._producers.pop(target, None)
        self.written.pop(target, None)

    def _sorted(self) -> list[Node]:
        nodes = [item for item in self.items.values() if isinstance(item, Node)]
        before = {node.id: self._before(node) for node in nodes}
        if all(not sources or max(sources) < id for id, sources in before.items()):
            return nodes
        after: dict[int, list[int]] = {}
        for id, sources in before.items():
            for source in sources:
                after.setdefault(source, []).append(id)
        waiting = {id: len(sources) for id, sources in before.items()}
        ready = [id for id, count in waiting.items() if not count]  # sorted, and so a heap
        order: list[Node] = []
        while ready:
            id = heapq.heappop(ready)
            order.append(self.node(id))
            for reader in after.get(id, ()):
                waiting[reader] -= 1
                if not waiting[reader]:
                    heapq.heappush(ready, reader)
        if len(order) < len(nodes):
            cycle = [self.items[a] for a, *_ in nx.find_cycle(self.net)]
            raise nx.NetworkXUnfeasible(" → ".join(str(n) for n in cycle if isinstance(n, Node)))
        return order

    def _before(self, node: Node) -> set[int]:
        """Ids of the nodes whose results the node reads, those that its bodies capture too."""
        sources = (self.producer(v) for v in (*self.reads(node), *self.captures(node).values()) if v is not None)
        return {source.id for source in sources if source is not None}
