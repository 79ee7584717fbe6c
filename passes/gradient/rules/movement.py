"""Ops that move elements without changing them: the gradient moves back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxslim.errors import GradientError
from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.ops import axis_of
from onnxslim.runtime.session import Session
from passes.gradient.tape import Rule, Tape

__all__ = ["RULES"]

Gradients = Sequence[Value | None]
_LARGE_PRODUCT = 1 << 20  # elements of a one-hot matrix, beyond which rows are scattered one by one


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
    """Each row back to where it came from; rows add up where an index repeats: by a one-hot product, or, where that
    would be large (an embedding of many words), by scattering."""
    axis = axis_of(t.node, len(t.shape()), 0)
    shape, size = t.shape(), t.shape()[axis]
    before, after = shape[:axis], shape[axis + 1 :]
    count = math.prod(t.shape(1))
    known = t.graph.constant_of(t.x(1))
    if known is not None:
        rows = [int(i) % size for i in known.reshape(-1)]
        if len(set(rows)) == count:
            return [_spread(t, t.reshape(t.dy, [*before, count, *after]), axis, rows, size), None]
    if size * count > _LARGE_PRODUCT:
        return [_scattered_rows(t, axis, count), None]
    dtype = t.x(1).dtype.numpy
    picked = t.op("Mod", t.add(t.reshape(t.x(1), [1, -1]), t.const(size, dtype)), t.const(size, dtype))
    onehot = t.as_float(t.op("Equal", t.const(np.arange(size)[:, None], dtype), picked))
    summed = t.op("MatMul", onehot, t.reshape(t.dy, [math.prod(before), count, math.prod(after)]))
    return [t.reshape(summed, shape), None]


def _scattered_rows(t: Tape, axis: int, count: int) -> Value:
    """dy's rows added up in a table of zeros, the axis in front."""
    shape = t.shape()
    front = [axis, *(a for a in range(len(shape)) if a != axis)]
    rows = t.reshape(t.dy, [*shape[:axis], count, *shape[axis + 1 :]])
    rows = t.op("Transpose", rows, perm=front) if axis else rows
    index = t.op("Cast", t.reshape(t.x(1), [count, 1]), to=int(DType.INT64))
    table = t.op("ScatterND", t.const(np.zeros([shape[a] for a in front])), index, rows, reduction="add")
    return t.op("Transpose", table, perm=[int(a) for a in np.argsort(front)]) if axis else table


def _pad(t: Tape) -> Gradients:
    """Constant mode: the middle of the gradient; to the value, the sum of what is around it."""
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
    dx = t.op("Slice", t.dy, t.ints(*begins), t.ints(*ends), t.ints(*range(rank))) if t.wants(0) else None
    if not t.wants(2):
        return [dx, None, None]
    around = np.ones(t.y().static_shape, np.float32)
    around[tuple(slice(begin, end) for begin, end in zip(begins, ends))] = 0
    total = t.sum(t.mul(t.dy, t.const(around)), range(rank))
    return [dx, None, t.reshape(total, t.shape(2))]


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


def _zeros(t: Tape) -> Value:
    return t.const(np.zeros(t.shape()))


def _tile(t: Tape) -> Gradients:
    """The copies added up."""
    repeats = t.graph.constant_of(t.x(1))
    if repeats is None:
        raise GradientError(f"{t.node}: the repeats of Tile must be constant")
    shape = t.shape()
    cut = [n for r, d in zip(repeats, shape) for n in (int(r), d)]
    return [t.sum(t.reshape(t.dy, cut), range(0, 2 * len(shape), 2)), None]


def _gather_elements(t: Tape) -> Gradients:
    """Added up where they came from."""
    axis = axis_of(t.node, len(t.shape()), 0)
    return [t.op("ScatterElements", _zeros(t), t.x(1), t.dy, axis=axis, reduction="add"), None]


def _gather_nd(t: Tape) -> Gradients:
    if t.node.attr("batch_dims", 0):
        raise GradientError(f"{t.node}: batch_dims has no gradient rule")
    return [t.op("ScatterND", _zeros(t), t.x(1), t.dy, reduction="add"), None]


def _scatter(t: Tape, scatter: str, gather: str, **attributes: Any) -> Gradients:
    """What was overwritten has no gradient; with `add`, both have. Indices must not repeat."""
    reduction = t.node.attr("reduction", "none")
    if reduction not in ("none", "add"):
        raise GradientError(f"{t.node}: reduction '{reduction}' has no gradient rule")
    update = t.op(gather, t.dy, t.x(1), **attributes) if t.wants(2) else None
    data = t.dy
    if reduction == "none" and t.wants(0):
        data = t.op(scatter, t.dy, t.x(1), t.const(np.zeros(t.shape(2))), **attributes)
    return [data, None, update]


def _top_k(t: Tape) -> Gradients:
    """Back to where the values stood."""
    axis = axis_of(t.node, len(t.shape()), -1)
    return [t.op("ScatterElements", _zeros(t), t.y(1), t.dy, axis=axis), None]


def _cumulative_sum(t: Tape) -> Gradients:
    """Summed up from the other end."""
    attributes: dict[str, Any] = {
        "reverse": 1 - int(t.node.attr("reverse", 0)),
        "exclusive": int(t.node.attr("exclusive", 0)),
    }
    return [t.op("CumSum", t.dy, t.x(1), **attributes), None]


def _trilu(t: Tape) -> Gradients:
    return [t.op("Trilu", t.dy, t.x(1) if t.has(1) else None, upper=int(t.node.attr("upper", 1))), None]


def _reverse_sequence(t: Tape) -> Gradients:
    """Turned round once more."""
    attributes: dict[str, Any] = {k: int(t.node.attr(k, d)) for k, d in (("batch_axis", 1), ("time_axis", 0))}
    return [t.op("ReverseSequence", t.dy, t.x(1), **attributes), None]


def _resize(t: Tape) -> Gradients:
    """Resize is linear and works axis by axis: dx = dy times each axis's matrix, which is what the op makes of
    the unit vectors."""
    if t.node.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise GradientError(f"{t.node}: tf_crop_and_resize has no gradient rule")
    if t.node.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise GradientError(f"{t.node}: keep_aspect_ratio_policy has a gradient rule for 'stretch' only")
    dx, shape, out = t.dy, t.shape(), t.y().static_shape
    scales = _resize_scales(t)
    for axis, (size, made) in enumerate(zip(shape, out)):
        scale = scales[axis] if scales is not None else None
        if size == made and scale in (None, 1):
            continue
        matrix = _axis_matrix(t, size, made, scale)
        rank = len(shape)
        order = [a for a in range(rank) if a != axis] + [axis]
        product = t.op("MatMul", t.op("Transpose", dx, perm=order), t.const(matrix))
        dx = t.op("Transpose", product, perm=[int(a) for a in np.argsort(order)])
    return [dx, None, None, None]


def _resize_scales(t: Tape) -> list[float] | None:
    """One scale an axis where the node gives scales; None where it gives sizes."""
    if not t.has(2) or t.shape(2) == (0,):
        return None
    given = t.graph.constant_of(t.x(2))
    if given is None:
        raise GradientError(f"{t.node}: the scales of Resize must be constant")
    scales = [1.0] * len(t.shape())
    for axis, scale in zip(t.node.attr("axes") or range(len(scales)), given):
        scales[int(axis) % len(scales)] = float(scale)
    return scales


def _axis_matrix(t: Tape, size: int, made: int, scale: float | None) -> Array:
    """float32 [made, size]: what the op makes of each unit vector of `size` numbers."""
    graph = Graph("axis", t.graph.opset)
    x = graph.add_input("x", DType.FLOAT, (1, 1, size, size))
    kept = {k: v for k, v in t.node.attributes.items() if k != "axes"}
    empty = graph.add_constant("empty", np.zeros(0, np.float32))
    if scale is not None:
        tail: list[Value | None] = [empty, graph.add_constant("scales", np.array([1, 1, 1, scale], np.float32))]
    else:
        tail = [empty, empty, graph.add_constant("sizes", np.array([1, 1, size, made], np.int64))]
    graph.add_output(graph.op("Resize", x, *tail, name="y", **kept))
    eye = np.eye(size, dtype=np.float32)[None, None]
    return np.ascontiguousarray(Session(graph).run({"x": eye})["y"][0, 0].T)


RULES: dict[str, Rule] = {
    "Concat": _concat,
    "CumSum": _cumulative_sum,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "ReverseSequence": _reverse_sequence,
    "ScatterElements": lambda t: _scatter(
        t, "ScatterElements", "GatherElements", axis=axis_of(t.node, len(t.shape()), 0)
    ),
    "ScatterND": lambda t: _scatter(t, "ScatterND", "GatherND"),
    "Slice": _slice,
    "SpaceToDepth": lambda t: [t.op("DepthToSpace", t.dy, blocksize=int(t.node.attr("blocksize")))],
    "Split": _split,
    "Squeeze": _reshape,
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _reshape,
}
