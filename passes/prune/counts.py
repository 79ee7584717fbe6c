"""Constants in which numbers of channels are written, and what they become when channels go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.ir.graph import Array, DType, Graph, Node, Use, Value
from onnxslim.ir.op_facts import FACTS
from onnxslim.ir.ops import attention_widths, padding, sliced, target_axes, target_slot
from onnxslim.ir.shape_values import evaluate, known_constant
from passes.prune.selection import Survivors, known_size

__all__ = ["Count", "counts_of", "fit_targets", "keep_shapes"]


@dataclass(frozen=True)
class Count:
    """A number or list of numbers of a node that is to become another: an input by its slot, or an attribute."""

    node: Node
    place: int | str
    numbers: Array | Sequence[int] | int | None

    def write(self, graph: Graph) -> None:
        if isinstance(self.place, str):
            graph.set_attribute(self.node, self.place, self.numbers)
        else:
            _give(graph, self.node, self.place, np.asarray(self.numbers))


def counts_of(graph: Graph, survivors: Survivors) -> list[Count]:
    """What nodes that choose among channels, or count them, are to say once only the survivors are left; the graph
    is still whole. (Targets of Reshape and the like are fitted afterwards.)"""
    found: list[Count] = []
    for node in graph.nodes():
        rule = _RULES.get((node.domain, node.op))
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


def _group_norm(graph: Graph, node: Node, survivors: Survivors) -> list[Count]:
    """Whole groups are left."""
    kept = survivors.on(graph.operand(node, 0), 1)
    if kept is None:
        return []
    width = known_size(graph.operand(node, 0), 1) // int(node.attr("num_groups"))
    return [Count(node, "num_groups", len(kept) // width)]


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
    return [Count(node, 1, moved[moved >= 0] if indices.ndim == 1 else moved)]


def _squeeze(graph: Graph, node: Node, survivors: Survivors) -> list[Count]:
    """Without axes it would take away those too that are down to one channel: which it takes is written out."""
    x = graph.operand(node, 0)
    if not survivors.axes(x) or node.attr("axes") or graph.input(node, 1) is not None:
        return []
    return [Count(node, 1, np.array([axis for axis, size in enumerate(x.shape or ()) if size == 1], np.int64))]


def keep_shapes(graph: Graph, survivors: Survivors) -> None:
    """Makes Shape nodes tell the sizes that were before, so that what is computed from them stays as it is; but for
    those of which only sizes that have not changed are read. The graph is still whole."""
    for node in graph.nodes():
        if (node.domain, node.op) != ("", "Shape"):
            continue
        x, shape = graph.operand(node, 0), graph.result(node)
        lost = np.zeros(len(x.shape or ()), np.int64)
        for axis, kept in survivors.axes(x).items():
            lost[axis] = known_size(x, axis) - len(kept)
        lost = lost[node.attr("start", 0) : node.attr("end", len(lost))]
        if any(_reads_any(graph, use, lost) for use in graph.uses(shape)) or (lost.any() and graph.is_output(shape)):
            told = graph.op("Shape", x, name=f"{shape.name}/left", **node.attributes)
            whole = graph.op("Add", told, graph.add_constant(f"{shape.name}/lost", lost), name=f"{shape.name}/whole")
            for value in (told, whole):
                graph.set_type(value, DType.INT64, shape.shape)
            graph.replace_uses(shape, whole)
            graph.remove_node(node)


def _reads_any(graph: Graph, use: Use, lost: Array) -> bool:
    """Whether a reader of a Shape looks at one of the sizes that have lost something."""
    if use.node.op == "Gather" and use.slot == 0:
        indices = graph.constant_of(graph.operand(use.node, 1))
        return bool(lost.any() if indices is None else lost[indices].any())
    if use.node.op == "Slice" and use.slot == 0:
        taken = sliced(graph, use.node)
        indices = None if taken is None else taken.get(0)
        return bool(lost.any() if indices is None else lost[indices].any())
    return bool(lost.any())


def fit_targets(graph: Graph, cut: set[int]) -> None:
    """Makes Reshape, Expand and Resize give the shapes that their results have by now, where these were among the
    `cut`. What computes a target is left, and what it gets wrong is added to it.
    """
    known: dict[int, Array] = {}
    for node in graph.nodes():
        slot = target_slot(node)
        target = None if slot is None else graph.input(node, slot)
        if slot is not None and target is not None and graph.result(node).id in cut:
            elements = known.get(target.id)
            if elements is None:
                elements = known_constant(graph, target)
            wrong = {} if elements is None else _wrong_sizes(graph, node, elements)
            if elements is not None and wrong:
                _correct(graph, node, slot, target, elements, wrong)
        elements = evaluate(graph, node, known)
        if elements is not None:
            known[graph.result(node).id] = elements


def _wrong_sizes(graph: Graph, node: Node, elements: Array) -> dict[int, int]:
    """By place in a target, the size that the result has where another is asked for."""
    x, shape = graph.operand(node, 0).shape or (), graph.result(node).shape or ()
    wrong: dict[int, int] = {}
    for place, axis in enumerate(target_axes(node, len(shape), len(elements))):
        element, size = elements[place], shape[axis]
        stretched = node.op == "Expand" and element == 1
        if not isinstance(element, (int, np.integer)) or not isinstance(size, int) or stretched or element < 0:
            continue
        meant = x[place] if element == 0 and node.op == "Reshape" and place < len(x) else element
        if meant != size:
            wrong[place] = size
    return wrong


def _correct(graph: Graph, node: Node, slot: int, target: Value, elements: Array, wrong: Mapping[int, int]) -> None:
    if graph.constant_of(target) is not None:
        right = elements.astype(np.int64)
        right[list(wrong)] = list(wrong.values())
        _give(graph, node, slot, right)
        return
    off = np.zeros(len(elements), np.int64)
    for place, size in wrong.items():
        off[place] = size - int(elements[place])
    base = f"{target.name}/channels"
    fitted = graph.op("Add", target, graph.add_constant(f"{base}/off", off), name=base)
    graph.set_type(fitted, DType.INT64, (len(elements),))
    graph.set_input(node, slot, fitted)


def _give(graph: Graph, node: Node, slot: int, numbers: Array) -> None:
    """A constant of its own, of the old one's type: the old one may be read elsewhere."""
    old = graph.input(node, slot)
    numbers = numbers.astype(np.int64 if old is None else old.dtype.numpy)
    base = old.name if old is not None else f"{node.name or graph.result(node).name}/sizes"
    graph.set_input(node, slot, graph.add_constant(base, numbers))
    if old is not None and not graph.is_used(old) and graph.producer(old) is None and not graph.is_input(old):
        graph.remove_value(old)


def _recurrent(graph: Graph, node: Node, survivors: Survivors) -> list[Count]:
    """R has a column a hidden unit."""
    kept = survivors.on(graph.operand(node, 2), 2)
    return [] if kept is None else [Count(node, "hidden_size", len(kept))]


def _attention(graph: Graph, node: Node, survivors: Survivors) -> list[Count]:
    """Whole heads are left."""
    w = graph.operand(node, 1)
    kept = survivors.on(w, 1)
    if kept is None:
        return []
    heads, columns = int(node.attr("num_heads")), known_size(w, 1)
    left = heads * len(kept) // columns
    widths = [width // heads * left for width in attention_widths(node, columns)]
    sizes = [Count(node, "qkv_hidden_sizes", widths)] if node.attr("qkv_hidden_sizes") else []
    return [Count(node, "num_heads", left), *sizes]


_RULES: Mapping[tuple[str, str], Callable[[Graph, Node, Survivors], Sequence[Count]]] = {
    **{key: _depthwise for key, facts in FACTS.items() if facts.window and facts.weights},
    ("", "GRU"): _recurrent,
    ("", "Gather"): _gather,
    ("", "GroupNormalization"): _group_norm,
    ("", "LSTM"): _recurrent,
    ("", "Pad"): _pad,
    ("", "RNN"): _recurrent,
    ("", "Slice"): _slice,
    ("", "Split"): _split,
    ("", "Squeeze"): _squeeze,
    ("com.microsoft", "Attention"): _attention,
}
