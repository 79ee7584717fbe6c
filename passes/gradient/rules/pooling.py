"""Pools: the average spreads its gradient over the window, the maximum gives it to the winner."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxslim.errors import GradientError
from onnxslim.ir.graph import Value
from onnxslim.ir.ops import Window, window
from passes.gradient.tape import Rule, Tape

__all__ = ["RULES"]

Gradients = Sequence[Value | None]


def _patches(
    t: Tape, shape: Sequence[int], geometry: Window
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int64]], int]:
    """For each output pixel and window position the flat input pixel it reads, int64 [Ho·Wo, k];
    what lies in the padding is the number of pixels, returned too."""
    out = t.y().static_shape[2:]
    pixels = math.prod(shape[2:])
    index = np.zeros((1, 1), np.int64)
    valid = np.ones((1, 1), bool)
    for size, o, k, s, p, d in zip(
        shape[2:], out, geometry.kernel, geometry.strides, geometry.pads, geometry.dilations
    ):
        at = np.arange(o)[:, None] * s - p + np.arange(k)[None, :] * d
        ok = (at >= 0) & (at < size)
        rows, taps = index.shape
        index = (index[:, None, :, None] * size + np.where(ok, at, 0)[None, :, None, :]).reshape(rows * o, taps * k)
        valid = (valid[:, None, :, None] & ok[None, :, None, :]).reshape(rows * o, taps * k)
    return np.where(valid, index, pixels), pixels


def _scatter(
    t: Tape, shape: Sequence[int], index: np.ndarray[tuple[int, ...], np.dtype[np.int64]], pixels: int, values: Value
) -> Value:
    """Adds values [N·C, Ho·Wo, k] up at their input pixels: one Gather a tap that can meet a pixel."""
    flat = index.reshape(-1)
    order = np.argsort(flat, kind="stable")
    order = order[flat[order] < pixels]
    counts = np.bincount(flat[order], minlength=pixels)
    table = np.full((int(counts.max(initial=1)), pixels), flat.size, np.int64)
    rank = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
    table[rank, flat[order]] = order
    planes = math.prod(shape[:2])
    padded = t.op("Pad", t.reshape(values, [planes, flat.size]), t.ints(0, 0, 0, 1))
    parts = [t.op("Gather", padded, t.const(row, np.int64), axis=1) for row in table]
    return t.reshape(parts[0] if len(parts) == 1 else t.op("Sum", *parts), shape)


def _average(t: Tape) -> Gradients:
    """dy / (pixels in the window), added up over windows."""
    shape, geometry = t.shape(), window(t.graph, t.node)
    if t.node.attr("ceil_mode", 0):
        raise GradientError(f"{t.node}: AveragePool has a gradient rule for ceil_mode=0 only")
    index, pixels = _patches(t, shape, geometry)
    counted = (
        (index < pixels).sum(1) if not t.node.attr("count_include_pad", 0) else np.full(len(index), index.shape[1])
    )
    planes = math.prod(shape[:2])
    share = t.mul(t.reshape(t.dy, [planes, len(index)]), t.const(1 / counted))
    taps = t.op("Expand", t.reshape(share, [planes, len(index), 1]), t.ints(planes, *index.shape))
    return [_scatter(t, shape, index, pixels, taps)]


def _maximum(t: Tape) -> Gradients:
    """To the first pixel of the window that holds the maximum.

    Windows that tile the image need only Reshape and ArgMax's one-hot; others gather their pixels.
    """
    shape, geometry = t.shape(), window(t.graph, t.node)
    if t.node.attr("storage_order", 0):
        raise GradientError(f"{t.node}: MaxPool has a gradient rule for storage_order=0 only")
    index, pixels = _patches(t, shape, geometry)
    planes, taps = math.prod(shape[:2]), index.shape[1]
    lowest = float(np.finfo(np.float32).min)
    padded = t.op("Pad", t.reshape(t.x(), [planes, pixels]), t.ints(0, 0, 0, 1), t.const(lowest))
    columns = t.op("Gather", padded, t.const(index, np.int64), axis=1)
    first = t.op("ArgMax", columns, axis=2, keepdims=1)
    onehot = t.as_float(t.op("Equal", first, t.const(np.arange(taps), np.int64)))
    spread = t.mul(onehot, t.reshape(t.dy, [planes, len(index), 1]))
    return [_scatter(t, shape, index, pixels, spread)]


def _global_max(t: Tape) -> Gradients:
    """To the winners, ties sharing."""
    hits = t.as_float(t.op("Equal", t.x(), t.y()))
    axes = list(range(2, len(t.shape())))
    return [t.mul(hits, t.div(t.dy, t.sum(hits, axes, keepdims=True)))]


RULES: dict[str, Rule] = {"AveragePool": _average, "GlobalMaxPool": _global_max, "MaxPool": _maximum}
