"""Constants in which numbers of channels are written, and what they become when channels go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.shape_values import known_constant
from onnxslim.analysis.shapes import sweep
from onnxslim.graph import Array, DType, Graph, Node, Value
from onnxslim.ops import padding, sliced
from passes.prune.selection import Survivors, known_size

__all__ = ["Count", "counts_of", "fit_targets"]


@dataclass(frozen=True)
class Count:
    """A number or list of numbers of a node that is to become another: an input by its slot, or an attribute."""

    node: Node
    place: int | str
    numbers: Array | int | None

    def write(self, graph: Graph) -> None:
        if isinstance(self.place, str):
            graph.set_attribute(self.node, self.place, self.numbers)
        else:
            _give(graph, self.node, self.place, np.asarray(self.numbers, np.int64))


def counts_of(graph: Graph, survivors: Survivors) -> list[Count]:
    """What nodes that choose among channels, or count them, are to say once only the survivors are left; the graph
    is still whole. (Targets of Reshape and the like are fitted afterwards.)"""
    found: list[Count] = []
    for node in graph.nodes():
        rule = None if node.domain else _RULES.get(node.op)
        if rule is not None:
            found += rule(graph, node, survivors)
    return found


def _depthwise(graph: Graph, node: Node, survivors: Survivors) -> list[Count]:
    """Where every channel is a group of its own, there are as many groups as channels are left."""
    kept = survivors.on(graph.operand(node, 0), 1)
    shape = graph.operand(node, 0).shape
    if kept is None or shape is None or node.attr("group", 1) != shape[1] or shape[1] == 1:
        return []
    return [Count(node, "group", len(kept))]


def _split(graph: Graph, node: Node, survivors: Survivors) -> list[Count]:
    x = graph.operand(node, 0)
    axis = int(node.attr("axis", 0)) % len(x.shape or (1,))
    if survivors.on(x, axis) is None:
        return []
    sizes = [survivors.left(part, axis) for part in graph.node_outputs(node) if part is not None]
    return [Count(node, "num_outputs", None), Count(node, 1, np.array(sizes, np.int64))]


def _slice(graph: Graph, node: Node, survivors: Survivors) -> list[Count]:
    """Limits count from the front, over what is left."""
    x = graph.operand(node, 0)
    taken = sliced(graph, node)
    if taken is None or not survivors.axes(x):
        return []
    starts, ends = (np.array(graph.constant_of(graph.operand(node, slot)), np.int64) for slot in (1, 2))
    for place, (axis, indices) in enumerate(taken.items()):
        kept = survivors.on(x, axis)
        if kept is not None and indices is not None:
            inside = np.isin(kept, indices)
            starts[place] = int(np.argmax(inside))
            ends[place] = starts[place] + int(inside.sum())
    return [Count(node, 1, starts), Count(node, 2, ends)]


def _pad(graph: Graph, node: Node, survivors: Survivors) -> list[Count]:
    y, added = graph.result(node), padding(graph, node)
    cut = survivors.axes(y)
    if added is None or not cut:
        return []
    axes = graph.constant_of(graph.input(node, 3))
    places = list(range(len(added))) if axes is None else [int(a) % len(added) for a in axes]
    pads = np.array(graph.constant_of(graph.operand(node, 1)), np.int64)
    for place, axis in enumerate(places):
        if axis in cut:
            before, after = added[axis]
            size = known_size(y, axis)
            pads[place] = int((cut[axis] < before).sum())
            pads[place + len(places)] = int((cut[axis] >= size - after).sum())
    return [Count(node, 1, pads)]


def _gather(graph: Graph, node: Node, survivors: Survivors) -> list[Count]:
    x, indices = graph.operand(node, 0), graph.constant_of(graph.operand(node, 1))
    axis = int(node.attr("axis", 0)) % len(x.shape or (1,))
    kept = survivors.on(x, axis)
    if kept is None or indices is None:
        return []
    size = known_size(x, axis)
    place = np.full(size, -1)
    place[kept] = np.arange(len(kept))
    moved = place[indices % size]
    return [Count(node, 1, moved if indices.ndim == 0 else moved[moved >= 0])]


def fit_targets(graph: Graph, cut: set[int]) -> None:
    """Makes Reshape, Expand and Resize give the shapes that their results have by now, where these were among the
    `cut`. What computes a target is left, and what it gets wrong is added to it.
    """
    known: dict[int, Array] = {}

    def visit(node: Node) -> None:
        slot = None if node.domain else _TARGETS.get(node.op)
        target = None if slot is None else graph.input(node, slot)
        if slot is None or target is None or graph.result(node).id not in cut:
            return
        elements = known.get(target.id)
        if elements is None:
            elements = known_constant(graph, target)
        shape = graph.result(node).shape
        if elements is None or shape is None:
            return
        x = graph.operand(node, 0).shape or ()
        wrong: dict[int, int] = {}
        for place, (element, size) in enumerate(zip(elements, shape[len(shape) - len(elements) :])):
            stretched = node.op == "Expand" and element == 1
            if not isinstance(element, (int, np.integer)) or not isinstance(size, int) or stretched or element < 0:
                continue
            meant = x[place] if element == 0 and node.op == "Reshape" and place < len(x) else element
            if meant != size:
                wrong[place] = size
        if wrong:
            known.update(_correct(graph, node, slot, target, elements, wrong))

    sweep(graph, graph.nodes(), known, visit)


def _correct(
    graph: Graph, node: Node, slot: int, target: Value, elements: Array, wrong: Mapping[int, int]
) -> dict[int, Array]:
    right = elements.copy()
    for place, size in wrong.items():
        right[place] = size
    if graph.constant_of(target) is not None:
        _give(graph, node, slot, np.array(right.tolist(), np.int64))
        return {}
    off = np.zeros(len(elements), np.int64)
    for place, size in wrong.items():
        off[place] = size - int(elements[place])
    base = f"{target.name}/channels"
    fitted = graph.op("Add", target, graph.add_constant(f"{base}/off", off), name=base)
    graph.set_type(fitted, DType.INT64, (len(elements),))
    graph.set_input(node, slot, fitted)
    return {fitted.id: right}


def _give(graph: Graph, node: Node, slot: int, numbers: Array) -> None:
    """A constant of its own: the old one may be read elsewhere."""
    old = graph.input(node, slot)
    base = old.name if old is not None else f"{node.name or graph.result(node).name}/sizes"
    graph.set_input(node, slot, graph.add_constant(base, numbers))
    if old is not None and not graph.is_used(old) and graph.producer(old) is None and not graph.is_input(old):
        graph.remove_value(old)


_TARGETS: Mapping[str, int] = {"Expand": 1, "Reshape": 1, "Resize": 3}

_RULES: Mapping[str, Callable[[Graph, Node, Survivors], Sequence[Count]]] = {
    "Conv": _depthwise,
    "ConvTranspose": _depthwise,
    "Gather": _gather,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
}
