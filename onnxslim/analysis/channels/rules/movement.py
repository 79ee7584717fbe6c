"""What moves elements and changes none: each channel is followed to where its elements go."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from onnxslim.analysis.channels.couplings import Couplings, End
from onnxslim.analysis.channels.rules.elementwise import broadcast, join_axes
from onnxslim.ir.graph import Array, Dim, Node, Shape, Value
from onnxslim.ir.ops import axes_of

__all__ = ["RULES"]


def _transpose(couplings: Couplings, node: Node) -> None:
    rank = len(couplings.graph.operand(node, 0).shape or ())
    order = node.attr("perm") or list(reversed(range(rank)))
    join_axes(couplings, node, [(axis, place) for place, axis in enumerate(order)])


def _squeeze(couplings: Couplings, node: Node) -> None:
    graph = couplings.graph
    x = graph.operand(node, 0)
    if x.shape is None:
        return
    given = axes_of(graph, node, len(x.shape))
    if given is None:
        couplings.pin_all(node, "has computed axes")
        return
    without = not node.attr("axes") and graph.input(node, 1) is None
    gone = {a for a, d in enumerate(x.shape) if d == 1} if without else set(given)
    for axis in gone:
        couplings.pin(node, x, axis, "takes its axis away")
    join_axes(couplings, node, [(a, i) for i, a in enumerate(a for a in range(len(x.shape)) if a not in gone)])


def _unsqueeze(couplings: Couplings, node: Node) -> None:
    graph = couplings.graph
    x, y = graph.operand(node, 0), graph.result(node)
    if x.shape is None or y.shape is None:
        couplings.pin_all(node, "has a result of unknown rank")
        return
    new = axes_of(graph, node, len(y.shape))
    if new is None:
        couplings.pin_all(node, "has computed axes")
        return
    join_axes(couplings, node, [(i, a) for i, a in enumerate(a for a in range(len(y.shape)) if a not in new)])


def _expand(couplings: Couplings, node: Node) -> None:
    broadcast(couplings, node, [couplings.graph.operand(node, 0)], couplings.graph.result(node))


def _tile(couplings: Couplings, node: Node) -> None:
    graph = couplings.graph
    x = graph.operand(node, 0)
    repeats = graph.constant_of(graph.operand(node, 1))
    for axis in couplings.live_axes(x):
        if repeats is None or axis >= repeats.size or repeats[axis] != 1:
            couplings.pin(node, x, axis, "repeats it")
        else:
            join_axes(couplings, node, [(axis, axis)])


def _depth_to_space(couplings: Couplings, node: Node) -> None:
    """A channel of the result is blocksize² of the input."""
    graph, depth = couplings.graph, int(node.attr("blocksize")) ** 2
    shared = node.attr("mode", "DCR") == "DCR"
    _pixels(couplings, node, graph.operand(node, 0), graph.result(node), 1 if shared else depth)


def _space_to_depth(couplings: Couplings, node: Node) -> None:
    """A channel of the input is blocksize² of the result."""
    graph = couplings.graph
    _pixels(couplings, node, graph.result(node), graph.operand(node, 0), 1)


def _pixels(couplings: Couplings, node: Node, deep: Value, shallow: Value, run: int) -> None:
    """Channels of a deep image with the one that they are in a shallow one: the next comes after `run` of them."""
    size, inner = couplings.size(deep, 1), couplings.size(shallow, 1)
    if size is None or inner is None:
        couplings.pin(node, couplings.graph.operand(node, 0), 1, "has channels of unknown number")
        return
    couplings.join(node, [End(deep, 1), End(shallow, 1, np.arange(size) // run % inner)])
    join_axes(couplings, node, [(0, 0)])


class _Block(NamedTuple):
    """Axes of an operand that become axes of the result, as many elements on either side."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def _reshape(couplings: Couplings, node: Node) -> None:
    """Axes that merge take each channel's elements along; of axes that one splits into, one is cut (`_cut_axis`).
    Where several become several, whole runs of the outermost are followed, as groups of channels are for a norm."""
    graph = couplings.graph
    x, y = graph.operand(node, 0), graph.result(node)
    if x.shape is None or y.shape is None:
        couplings.pin_all(node, "has a result of unknown rank")
        return
    for block in _blocks(x.shape, y.shape):
        _follow(couplings, node, x, y, block)


def _follow(couplings: Couplings, node: Node, x: Value, y: Value, block: _Block) -> None:
    live = [axis for axis in block.before if couplings.is_live(x, axis)]
    if not live:
        return
    before = [couplings.size(x, a) or 0 for a in block.before]
    after = [couplings.size(y, a) or 0 for a in block.after]
    known = 0 not in before and 0 not in after
    if len(before) == len(after) == 1:
        couplings.join(node, [End(x, block.before[0]), End(y, block.after[0])])
    elif known and len(after) == 1:
        for axis in live:
            places = _along(before, block.before.index(axis))
            couplings.join(node, [End(y, block.after[0]), End(x, axis, places)])
    elif known and len(before) == 1 and block.after:
        place = _cut_axis(y, block.after)
        couplings.join(node, [End(x, block.before[0]), End(y, block.after[place], _along(after, place))])
    else:
        followed = bool(block.after) and _runs(couplings, node, End(x, block.before[0]), End(y, block.after[0]))
        if not block.after:
            why = "has no place for it in its result"
        else:
            why = "merges and splits it at once" if known else "gives its elements to axes of unknown size"
        for axis in live[1:] if followed else live:
            couplings.pin(node, x, axis, why)


def _runs(couplings: Couplings, node: Node, x: End, y: End) -> bool:
    """Couples the outermost axes of a block where the shorter one divides the longer, so that an index of the one is
    a run of the other; whether it does."""
    a, b = couplings.size(x.value, x.axis), couplings.size(y.value, y.axis)
    if not a or not b or not couplings.is_live(x.value, x.axis) or max(a, b) % min(a, b):
        return False
    index = np.arange(max(a, b))
    ends = [End(e.value, e.axis, index * size // len(index)) for e, size in ((x, a), (y, b))]
    return couplings.join(node, ends)


def _along(sizes: list[int], place: int) -> Array:
    """The index on one of several axes, by the number of the element."""
    return np.arange(math.prod(sizes)) // math.prod(sizes[place + 1 :]) % sizes[place]


def _cut_axis(y: Value, axes: tuple[int, ...]) -> int:
    """Which of the axes that channels are split into can be cut.

    All axes but the batch are an image's: its channels, the first. Where features come last, the split is one into
    heads, and whole heads are cut: the last axis but one. Where height and width follow, a split in two is one into
    groups, in a channel shuffle say, and each group gives the same channels: the last; one in more makes a
    larger image of what are channels and factors: the first.
    """
    last = axes[-1] == len(y.shape or ()) - 1
    if len(axes) > 2 and (not last or axes[0] == 1):
        return 0
    return len(axes) - 2 if last else len(axes) - 1


def _blocks(x: Shape, y: Shape) -> list[_Block]:
    """Pairs of runs of axes of equal volume, axes of 1 left out; found from the front and from the back, up to where
    sizes are not known. What is left between is a pair too."""
    before = [(a, d) for a, d in enumerate(x) if d != 1]
    after = [(a, d) for a, d in enumerate(y) if d != 1]
    front, before, after = _matched(before, after)
    back, before, after = _matched(before[::-1], after[::-1])
    if before or after:
        back.append(_Block(tuple(a for a, _ in before), tuple(a for a, _ in after)))
    return [*front, *(_Block(b.before[::-1], b.after[::-1]) for b in reversed(back))]


_Sized = list[tuple[int, Dim]]


def _matched(before: _Sized, after: _Sized) -> tuple[list[_Block], _Sized, _Sized]:
    """Blocks from the front, and what is left on either side."""
    found: list[_Block] = []
    while before and after:
        i = j = 1
        while not _same(before[:i], after[:j]):
            left, right = _volume(before[:i]), _volume(after[:j])
            if left is None or right is None:
                return found, before, after
            if left < right:
                i += 1
            else:
                j += 1
            if i > len(before) or j > len(after):
                return found, before, after
        found.append(_Block(tuple(a for a, _ in before[:i]), tuple(a for a, _ in after[:j])))
        before, after = before[i:], after[j:]
    return found, before, after


def _same(before: _Sized, after: _Sized) -> bool:
    if len(before) == len(after) == 1 and before[0][1] == after[0][1]:
        return before[0][1] is not None
    left = _volume(before)
    return left is not None and left == _volume(after)


def _volume(axes: _Sized) -> int | None:
    sizes = [d for _, d in axes if isinstance(d, int)]
    return math.prod(sizes) if len(sizes) == len(axes) else None


RULES: Mapping[tuple[str, str], Callable[[Couplings, Node], None]] = {
    ("", "DepthToSpace"): _depth_to_space,
    ("", "Expand"): _expand,
    ("", "Flatten"): _reshape,
    ("", "Reshape"): _reshape,
    ("", "SpaceToDepth"): _space_to_depth,
    ("", "Squeeze"): _squeeze,
    ("", "Tile"): _tile,
    ("", "Transpose"): _transpose,
    ("", "Unsqueeze"): _unsqueeze,
}
