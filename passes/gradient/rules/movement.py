"""Ops that move elements without changing them: the gradient moves back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxslim.errors import GradientError
from onnxslim.graph import Value
from onnxslim.ops import axis_of
from passes.gradient.tape import Rule, Tape

__all__ = ["RULES"]

Gradients = Sequence[Value | None]


def _reshape(t: Tape) -> Gradients:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same elements in the input's shape."""
    return [t.reshape(t.dy, t.shape())]


def _transpose(t: Tape) -> Gradients:
    """The inverse permutation."""
    rank = len(t.shape())
    perm = t.node.attr("perm") or list(range(rank))[::-1]
    return [t.op("Transpose", t.dy, perm=[int(a) for a in np.argsort(perm)])]


def _concat(t: Tape) -> Gradients:
    """Each input gets its slice."""
    axis = axis_of(t.node, len(t.shape()), 0)
    found: list[Value | None] = []
    start = 0
    for slot in range(len(t.inputs)):
        size = t.shape(slot)[axis]
        part = None
        if t.wants(slot):
            part = t.op("Slice", t.dy, t.ints(start), t.ints(start + size), t.ints(axis))
        found.append(part)
        start += size
    return found


def _split(t: Tape) -> Gradients:
    """The parts joined again; an output that nothing reads counts as zeros."""
    axis = axis_of(t.node, len(t.shape()), 0)
    parts = []
    for value, dy in zip(t.outputs, t.dys()):
        if dy is None:
            if value is None:
                raise GradientError(f"{t.node} leaves out an output; name it, so that its size is known")
            dy = t.const(np.zeros(value.static_shape, np.float32))
        parts.append(dy)
    return [t.op("Concat", *parts, axis=axis)]


def _slice(t: Tape) -> Gradients:
    """Zeros around (and, with a step, between) the gradient: rows of a constant index table.

    A slice with steps of 1 is padded; any other is gathered from the gradient and a row of zeros.
    """
    rank = len(t.shape())
    bounds = [t.graph.constant_of(t.graph.input(t.node, slot)) for slot in (1, 2)]
    if any(b is None for b in bounds):
        raise GradientError(f"{t.node}: the bounds of Slice must be constant")
    starts, ends = ([int(i) for i in b.reshape(-1)] for b in bounds if b is not None)
    axes_array, steps_array = (t.graph.constant_of(t.graph.input(t.node, slot)) for slot in (3, 4))
    axes = [int(a) % rank for a in axes_array.reshape(-1)] if axes_array is not None else list(range(len(starts)))
    steps = [int(s) for s in steps_array.reshape(-1)] if steps_array is not None else [1] * len(starts)
    dx = t.dy
    for axis, start, end, step in zip(axes, starts, ends, steps):
        size = t.shape()[axis]
        kept = list(range(size))[slice(start, end if end >= -size or step > 0 else None, step)]
        dx = _spread(t, dx, axis, kept, size)
    return [dx, None, None, None, None]


def _spread(t: Tape, dy: Value, axis: int, kept: Sequence[int], size: int) -> Value:
    """dy's rows along `axis` at the positions `kept` of `size`, zeros elsewhere (positions are distinct)."""
    rank = len(t.shape())
    if list(kept) == list(range(size)):
        return dy
    if kept and list(kept) == list(range(kept[0], kept[0] + len(kept))):
        pads = [0] * (2 * rank)
        pads[axis], pads[rank + axis] = kept[0], size - kept[-1] - 1
        return t.op("Pad", dy, t.ints(*pads))
    index = np.full(size, len(kept), np.int64)
    index[list(kept)] = np.arange(len(kept))
    pads = [0] * (2 * rank)
    pads[rank + axis] = 1
    return t.op("Gather", t.op("Pad", dy, t.ints(*pads)), t.const(index, np.int64), axis=axis)


def _gather(t: Tape) -> Gradients:
    """Each row back to where it came from; rows add up where an index repeats, by a one-hot product."""
    axis = axis_of(t.node, len(t.shape()), 0)
    shape, size = t.shape(), t.shape()[axis]
    before, after = shape[:axis], shape[axis + 1 :]
    count = math.prod(t.shape(1))
    known = t.graph.constant_of(t.x(1))
    if known is not None:
        rows = [int(i) % size for i in known.reshape(-1)]
        if len(set(rows)) == count:
            return [_spread(t, t.reshape(t.dy, [*before, count, *after]), axis, rows, size), None]
    dtype = t.x(1).dtype.numpy
    picked = t.op("Mod", t.add(t.reshape(t.x(1), [1, -1]), t.const(size, dtype)), t.const(size, dtype))
    onehot = t.as_float(t.op("Equal", t.const(np.arange(size)[:, None], dtype), picked))
    summed = t.op("MatMul", onehot, t.reshape(t.dy, [math.prod(before), count, math.prod(after)]))
    return [t.reshape(summed, shape), None]


def _pad(t: Tape) -> Gradients:
    """Constant mode: the middle of the gradient."""
    if t.node.attr("mode", "constant") != "constant":
        raise GradientError(f"{t.node}: Pad has a gradient rule for mode 'constant' only, not '{t.node.attr('mode')}'")
    pads = t.graph.constant_of(t.graph.input(t.node, 1))
    if pads is None or t.graph.input(t.node, 3) is not None:
        raise GradientError(f"{t.node}: the pads must be constant, and for all axes")
    rank = len(t.shape())
    begins = [int(p) for p in np.asarray(pads).reshape(-1)[:rank]]
    ends = [b + s for b, s in zip(begins, t.shape())]
    if any(int(p) < 0 for p in np.asarray(pads).reshape(-1)):
        raise GradientError(f"{t.node}: negative pads have no gradient rule; use Slice")
    return [t.op("Slice", t.dy, t.ints(*begins), t.ints(*ends), t.ints(*range(rank))), None, None]


def _expand(t: Tape) -> Gradients:
    """Broadcast: summed back."""
    return [t.unbroadcast(t.dy, 0), None]


def _depth_to_space(t: Tape) -> Gradients:
    """SpaceToDepth undoes the mode DCR; CRD is undone by Reshape and Transpose."""
    n, c, h, w = t.shape()
    b = int(t.node.attr("blocksize"))
    if t.node.attr("mode", "DCR") == "DCR":
        return [t.op("SpaceToDepth", t.dy, blocksize=b)]
    cut = t.reshape(t.dy, [n, c // (b * b), h, b, w, b])
    return [t.reshape(t.op("Transpose", cut, perm=[0, 1, 3, 5, 2, 4]), [n, c, h, w])]


RULES: dict[str, Rule] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": lambda t: [t.op("DepthToSpace", t.dy, blocksize=int(t.node.attr("blocksize")))],
    "Split": _split,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
