"""Exact integer kernels for the integer evaluator, on numpy.

Integers are multiplied as floats, by BLAS: a sum of products whose absolute values add up to less
than 2²⁴ (float32) or 2⁵³ (float64) is exact in any order of summation.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np

from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Array, Node
from onnxslim.ir.ops import window_of
from onnxslim.ir.quant_math import dequantize, per_axis

__all__ = ["Accumulator", "Ints", "Product", "Sum", "Tensor", "conv", "matmul", "mean", "pool", "real", "reshape_like"]

_CHUNK = 1 << 24  # elements of an im2col matrix


@dataclass(frozen=True)
class Ints:
    """Integers with their grid: scale and zero point [] (axis None), or [C] along `axis`."""

    q: Array
    scale: Array
    zero_point: Array
    axis: int | None

    def centred(self, dtype: Any) -> Array:
        """q − zero_point in a float type."""
        centred = self.q.astype(dtype)
        if self.zero_point.any():
            centred -= per_axis(self.zero_point, self.axis, self.q.ndim).astype(dtype)
        return centred

    @property
    def accumulator(self) -> type[np.signedinteger[Any]]:
        """What sums of such integers are added up in."""
        return np.int64 if self.q.dtype.itemsize > 1 else np.int32

    @property
    def reach(self) -> float:
        """The largest |q − zero_point| that the type allows."""
        limits = np.iinfo(self.q.dtype)
        return float(max(limits.max - int(self.zero_point), int(self.zero_point) - limits.min))


@dataclass(frozen=True)
class Accumulator:
    """An integer tensor; the number it stands for is acc · scale (scale float32, broadcasting against acc)."""

    acc: Array
    scale: Array


@dataclass(frozen=True)
class Sum:
    """Two integer tensors to be added on the grid of the result."""

    a: Ints
    b: Ints

    def steps(self, scale: Array) -> Array:
        """The sum in units of `scale`, float32."""
        left = self.a.centred(np.float32) * (self.a.scale / scale)
        left = left + self.b.centred(np.float32) * (self.b.scale / scale)
        return np.asarray(left, np.float32)


@dataclass(frozen=True)
class Product:
    """Two integer tensors to be multiplied on the grid of the result."""

    a: Ints
    b: Ints

    def steps(self, scale: Array) -> Array:
        """The product in units of `scale`, float32: rounded once, where the integers have 16 bits."""
        product = self.a.centred(np.float32) * self.b.centred(np.float32)
        return np.asarray(product * (self.a.scale * self.b.scale / scale), np.float32)


Tensor: TypeAlias = "Array | Ints | Accumulator | Sum | Product"
"""What a value is during evaluation; a plain array is float32 numbers, or integers without a grid."""


def real(x: Tensor) -> Array:
    """The float32 numbers a tensor stands for; arrays as they are."""
    if isinstance(x, Ints):
        return dequantize(x.q, x.scale, x.zero_point, axis=x.axis)
    if isinstance(x, Accumulator):
        return np.asarray(x.acc.astype(np.float32) * x.scale, np.float32)
    if isinstance(x, Sum):
        return np.asarray(real(x.a) + real(x.b), np.float32)
    if isinstance(x, Product):
        return np.asarray(real(x.a) * real(x.b), np.float32)
    return x


def conv(node: Node, x: Ints, w: Ints, bias: Ints | None) -> Accumulator:
    """Convolution of [N, C, *spatial] with [O, C/group, *kernel], any group, stride, dilation and padding."""
    group, kernel = int(node.attr("group", 1)), w.q.shape[2:]
    window = _Window.of(node, x.q.shape[2:], kernel)
    centred = w.centred(np.float64)
    largest = float(np.abs(centred).sum(axis=tuple(range(1, w.q.ndim))).max(initial=0))
    dtype = _exact_type(largest * x.reach, x.accumulator)
    weight = centred.astype(dtype)
    data = window.pad(x.centred(dtype), 0)
    channels, out = w.q.shape[0], window.out
    acc = np.empty((len(x.q), channels, *out), x.accumulator)
    if w.q.shape[1] == 1 and channels == group:
        acc[...] = _depthwise(data, weight, window)
    else:
        step = max(1, _CHUNK // max(1, x.q.shape[1] * prod(kernel) * prod(out)))
        for start in range(0, len(acc), step):
            acc[start : start + step] = _dense(data[start : start + step], weight, window, group)
    if bias is not None:
        acc += per_axis(bias.q.astype(acc.dtype), 1, acc.ndim)
    return Accumulator(acc, per_axis(x.scale * w.scale, 1, acc.ndim))


def _depthwise(data: Array, weight: Array, window: _Window) -> Array:
    total = None
    for place in np.ndindex(*window.kernel):
        tap = weight[(slice(None), 0, *place)]
        term = data[window.tap(place)] * per_axis(tap, 1, data.ndim)
        total = term if total is None else np.add(total, term, out=total)
    assert total is not None
    return total


def _dense(data: Array, weight: Array, window: _Window, group: int) -> Array:
    batch, channels = data.shape[:2]
    positions = prod(window.out)
    taps = [data[window.tap(place)] for place in np.ndindex(*window.kernel)]
    outs = []
    for g in range(group):
        mine = slice(g * channels // group, (g + 1) * channels // group)
        columns = np.stack([tap[:, mine] for tap in taps], axis=2)  # [n, c, k, *out]
        columns = np.moveaxis(columns, 0, 2).reshape(-1, batch * positions)
        rows = weight[g * len(weight) // group : (g + 1) * len(weight) // group]
        outs.append(rows.reshape(len(rows), -1) @ columns)
    stacked = np.concatenate(outs).reshape(len(weight), batch, *window.out)
    return np.moveaxis(stacked, 0, 1)


def matmul(node: Node, a: Ints, b: Ints, bias: Ints | None) -> Accumulator | None:
    """Gemm ([M, K]·[K, N] + [N], with transA and transB) or MatMul; None where scales lie along K."""
    left, right = a.q, b.q
    axis = b.axis
    if node.op == "Gemm":
        if node.attr("alpha", 1.0) != 1.0 or node.attr("beta", 1.0) != 1.0:
            return None
        left = left.T if node.attr("transA", 0) else left
        if node.attr("transB", 0):
            right, axis = right.T, None if axis is None else 1 - axis
    if axis is not None and axis != right.ndim - 1:
        return None
    if b.zero_point.any() and b.axis is not None:
        return None
    offset = float(b.zero_point) if b.zero_point.ndim == 0 else 0.0
    weight = right.astype(np.float64) - offset
    largest = float(np.abs(weight).sum(axis=-2).max(initial=0))
    dtype = _exact_type(largest * a.reach, a.accumulator)
    acc = ((left.astype(dtype) - dtype(a.zero_point)) @ weight.astype(dtype)).astype(a.accumulator)
    if bias is not None:
        acc = acc + bias.q.astype(a.accumulator)
    return Accumulator(np.asarray(acc, a.accumulator), np.asarray(a.scale * b.scale, np.float32))


def mean(x: Ints, axes: tuple[int, ...], keepdims: bool) -> Accumulator:
    """The mean over axes."""
    count = prod(x.q.shape[a] for a in axes)
    total = x.q.sum(axis=axes, keepdims=keepdims, dtype=np.int64) - count * int(x.zero_point)
    return Accumulator(np.asarray(total, x.accumulator), np.asarray(x.scale / np.float32(count), np.float32))


def pool(node: Node, x: Ints) -> Accumulator | Ints:
    """MaxPool on integers (padding never wins), or AveragePool as exact window sums."""
    window = _Window.of(node, x.q.shape[2:], tuple(node.attr("kernel_shape")))
    places = list(np.ndindex(*window.kernel))
    if node.op == "MaxPool":
        data = window.pad(x.q, np.iinfo(x.q.dtype).min)
        best = data[window.tap(places[0])]
        for place in places[1:]:
            best = np.maximum(best, data[window.tap(place)])
        return Ints(np.ascontiguousarray(best), x.scale, x.zero_point, None)
    data = window.pad(x.q.astype(x.accumulator) - x.accumulator(x.zero_point), 0)
    total = sum((data[window.tap(place)] for place in places[1:]), data[window.tap(places[0])])
    inside = np.ones((1, 1, *x.q.shape[2:]), np.float32)
    # Padding counts where asked for, but never what ceil_mode adds beyond it.
    counted = window.pad(inside, 1.0 if node.attr("count_include_pad", 0) else 0.0, extra=0.0)
    count = sum((counted[window.tap(place)] for place in places[1:]), counted[window.tap(places[0])])
    return Accumulator(np.asarray(total, x.accumulator), np.asarray(x.scale / count, np.float32))


def reshape_like(node: Node, q: Array, parameters: list[Array]) -> Array | None:
    """Shape ops that numpy does without copying; None for the others."""
    if node.op == "Identity":
        return q
    if node.op == "Transpose":
        return q.transpose(node.attr("perm"))
    if node.op == "Flatten":
        axis = int(node.attr("axis", 1))
        axis += q.ndim if axis < 0 else 0
        return q.reshape(prod(q.shape[:axis]), -1)
    if node.op == "Reshape" and not node.attr("allowzero", 0):
        target = [q.shape[i] if d == 0 else int(d) for i, d in enumerate(parameters[0])]
        return q.reshape(target)
    return None


def _exact_type(bound: float, accumulator: type[np.signedinteger[Any]]) -> type[np.floating[Any]]:
    """The float type in which sums of products up to a bound are exact."""
    if bound < 2.0**24:
        return np.float32
    limit, name = (2.0**31, "an int32 accumulator") if accumulator is np.int32 else (2.0**53, "what is exact here")
    if bound >= limit:
        raise UnsupportedError(f"A sum of products may reach {bound:.3g}, beyond {name}")
    return np.float64


@dataclass(frozen=True)
class _Window:
    """The geometry of a sliding window, all tuples one entry a spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    extra: tuple[int, ...]  # what ceil_mode reads beyond the padding
    out: tuple[int, ...]

    @classmethod
    def of(cls, node: Node, size: tuple[int, ...], kernel: tuple[int, ...]) -> _Window:
        rank, w = len(kernel), window_of(node, kernel, size)
        strides, dilations = w.strides, w.dilations
        pads, extra, out = [], [], []
        for i in range(rank):
            reach = (kernel[i] - 1) * dilations[i] + 1
            ends = w.pads[i], w.pads[i + rank]
            room = size[i] + sum(ends) - reach
            steps = -(-room // strides[i]) if node.attr("ceil_mode", 0) else room // strides[i]
            if node.attr("ceil_mode", 0) and steps * strides[i] >= size[i] + ends[0]:
                steps -= 1  # a window must start inside the input or its left padding
            pads.append(ends)
            out.append(steps + 1)
            extra.append(max(0, steps * strides[i] + reach - size[i] - sum(ends)))
        return cls(kernel, strides, dilations, tuple(pads), tuple(extra), tuple(out))

    def pad(self, data: Array, fill: float, extra: float | None = None) -> Array:
        """[N, C, *spatial] with the padding around it."""
        if any(a or b for a, b in self.pads):
            data = np.pad(data, [(0, 0), (0, 0), *self.pads], constant_values=fill)
        if any(self.extra):
            beyond = [(0, 0), (0, 0), *((0, e) for e in self.extra)]
            data = np.pad(data, beyond, constant_values=fill if extra is None else extra)
        return data

    def tap(self, place: tuple[int, ...]) -> tuple[slice, ...]:
        """The elements of padded data that meet one kernel position, as an index."""
        spatial = [
            slice(p * d, p * d + (o - 1) * s + 1, s)
            for p, d, s, o in zip(place, self.dilations, self.strides, self.out)
        ]
        return (slice(None), slice(None), *spatial)
