"""What takes some of an axis, or puts axes behind one another: each index is followed to its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxslim.analysis.channels.couplings import Couplings, End
from onnxslim.analysis.channels.rules.elementwise import join_axes
from onnxslim.ir.graph import Array, Node, Value
from onnxslim.ir.ops import padding, sliced

__all__ = ["RULES"]


def _concat(couplings: Couplings, node: Node) -> None:
    graph = couplings.graph
    values = [v for v in graph.node_inputs(node) if v is not None]
    y = graph.result(node)
    if y.shape is None or any(v.shape is None or len(v.shape) != len(y.shape) for v in values):
        couplings.pin_all(node, "joins tensors of unknown rank")
        return
    along = int(node.attr("axis", 0)) % len(y.shape)
    for axis in range(len(y.shape)):
        if axis != along:
            couplings.join(node, [End(y, axis), *(End(v, axis) for v in values)])
    sizes = [couplings.size(v, along) for v in values]
    if not any(couplings.is_live(v, along) for v in values):
        return
    if None in sizes:
        couplings.pin_all(node, "joins axes of unknown size")
        return
    start = 0
    for value, size in zip(values, sizes):
        assert size is not None
        couplings.join(node, [End(y, along, np.arange(start, start + size)), End(value, along)], start=True)
        start += size


def _split(couplings: Couplings, node: Node) -> None:
    graph = couplings.graph
    x = graph.operand(node, 0)
    rank = len(x.shape or ())
    along = int(node.attr("axis", 0)) % max(rank, 1)
    made = graph.node_outputs(node)
    parts = [part for part in made if part is not None]
    if len(parts) < len(made):
        couplings.pin_all(node, "leaves out an output")
        return
    for output in range(len(parts)):
        join_axes(couplings, node, [(a, a) for a in range(rank) if a != along], output=output)
    start = 0
    for part in parts:
        size = couplings.size(part, along)
        if size is None:
            couplings.pin(node, x, along, "makes parts of unknown size")
            return
        couplings.join(node, [End(x, along, np.arange(start, start + size)), End(part, along)])
        start += size


def _slice(couplings: Couplings, node: Node) -> None:
    graph = couplings.graph
    x, y = graph.operand(node, 0), graph.result(node)
    taken = sliced(graph, node)
    if taken is None:
        couplings.pin_all(node, "has computed limits")
        return
    for axis in range(len(x.shape or ())):
        if axis not in taken:
            couplings.join(node, [End(x, axis), End(y, axis)])
        elif taken[axis] is None:
            couplings.pin(node, x, axis, "takes it in steps")
        else:
            couplings.join(node, [End(x, axis, taken[axis]), End(y, axis)])


def _pad(couplings: Couplings, node: Node) -> None:
    """Constants put around the channels are channels too, and follow what they meet."""
    graph = couplings.graph
    x, y = graph.operand(node, 0), graph.result(node)
    added = padding(graph, node)
    if added is None:
        couplings.pin_all(node, "has computed pads")
        return
    for axis, (before, after) in enumerate(added):
        size = couplings.size(x, axis)
        if not couplings.is_live(x, axis):
            continue
        if (before or after) and (node.attr("mode", "constant") != "constant" or min(before, after) < 0):
            couplings.pin(node, x, axis, "repeats or crops it")
        elif size is not None:
            couplings.join(node, [End(x, axis), End(y, axis, np.arange(before, before + size))])


def _embedding(couplings: Couplings, node: Node, table: Value, axis: int, indices: Value, y: Value) -> None:
    """Rows of a table: each number of a row is a channel that begins here."""
    rank = len(indices.shape or ())
    for own in range(len(table.shape or ())):
        if own != axis:
            couplings.join(node, [End(table, own), End(y, own if own < axis else own - 1 + rank)], start=True)
            couplings.make(node, table, own)


def _gather(couplings: Couplings, node: Node) -> None:
    """Constant indices choose from an axis; others may be any, and choose from an axis that must stay."""
    graph = couplings.graph
    x, indices, y = graph.operand(node, 0), graph.operand(node, 1), graph.result(node)
    if not x.shape or indices.shape is None:
        couplings.pin_all(node, "reads a tensor of unknown rank")
        return
    axis = int(node.attr("axis", 0)) % len(x.shape)
    chosen = graph.constant_of(indices)
    rank = len(indices.shape)
    if chosen is None and graph.constant_of(x) is not None and x.dtype.is_float and len(x.shape) > 1:
        _embedding(couplings, node, x, axis, indices, y)
        return
    size = couplings.size(x, axis)
    if couplings.is_live(x, axis):
        if chosen is None or size is None:
            couplings.pin(node, x, axis, "chooses from it with computed indices")
        elif rank == 1:
            couplings.join(node, [End(x, axis, _from_front(chosen, size)), End(y, axis)])
        else:
            couplings.pin(node, x, axis, "takes it by its number", _from_front(chosen, size))
    pairs = [(a, a if a < axis else a - 1 + rank) for a in range(len(x.shape)) if a != axis]
    join_axes(couplings, node, pairs)


def _from_front(indices: Array, size: int) -> Array:
    flat: Array = indices.reshape(-1).astype(np.int64) % size
    return flat


RULES: Mapping[tuple[str, str], Callable[[Couplings, Node], None]] = {
    ("", "Concat"): _concat,
    ("", "Gather"): _gather,
    ("", "Pad"): _pad,
    ("", "Slice"): _slice,
    ("", "Split"): _split,
}
