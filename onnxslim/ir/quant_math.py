"""The arithmetic of quantisation, in one place: grids, scales, and fake-quantisation in float32.

Everything is numpy float32 and rounds half to even, bit for bit as ONNX's QuantizeLinear and
DequantizeLinear do in ONNX Runtime, so that a grid computed here, in a training graph and in an
exported model is one grid.

    q = clip(round_half_even(x / scale) + zero_point, qmin, qmax)        (QuantizeLinear)
    y = (q − zero_point) · scale                                         (DequantizeLinear)

See the ONNX operator specification, and Jacob et al. 2018 (arXiv:1712.05877) for the affine grid.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxslim.ir.graph import Array, DType

__all__ = [
    "GRID_BITS",
    "SCALE_FLOOR",
    "affine_from_range",
    "dequantize",
    "fake_quant",
    "fitting_weight_scale",
    "pair_domain",
    "per_axis",
    "qrange",
    "quantize",
    "storage",
    "weight_scale",
]

SCALE_FLOOR = np.float32(2.0**-80)
"""No scale is smaller, so that nothing is divided by 0 where all values are 0. It is no smallest useful scale: how
small a weight's may be for a bias to fit an int32 is relative to that bias and to the input's scale
(`fitting_weight_scale`)."""

GRID_BITS = (*range(2, 9), 16)
"""How many bits a grid may have."""

_BIAS_LIMIT = 2.0**30
_PRODUCT_FLOOR = 2.0**-110  # of s_x · s_w: the multiplier s_x · s_w / s_y stays a normal float32 number


def qrange(bits: int, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """Smallest and largest integer of a grid; `narrow` drops the most negative one, so that a
    signed grid is symmetric ([-127, 127] for 8 bits).

    Raises ValueError where there is no grid of so many bits.
    """
    if bits not in GRID_BITS:
        raise ValueError(f"A grid has 2 to 8 bits, or 16, not {bits}")
    if not signed:
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1


def storage(bits: int, signed: bool) -> DType:
    """The element type that holds the integers of a grid: 8 bits, or 16 where it has more."""
    if bits > 8:
        return DType.INT16 if signed else DType.UINT16
    return DType.INT8 if signed else DType.UINT8


def pair_domain(integers: DType, opset: int) -> str:
    """The domain of the QuantizeLinear and DequantizeLinear that take integers of a type: ONNX's own take 16 bits from
    opset 21 on, ONNX Runtime's in any."""
    return "com.microsoft" if integers in (DType.INT16, DType.UINT16) and opset < 21 else ""


def affine_from_range(lo: npt.ArrayLike, hi: npt.ArrayLike, bits: int, signed: bool) -> tuple[Array, Array]:
    """Scale and zero point (float32, integer-valued) of the grid that covers [lo, hi] and 0.

    lo' = min(lo, 0); hi' = max(hi, 0); scale = max((hi' − lo') / (qmax − qmin), SCALE_FLOOR);
    zero_point = clip(round_half_even(qmin − lo' / scale), qmin, qmax). Each step is one float32
    operation, so a graph of the same ops gives the same bits. Shapes follow numpy broadcasting.
    """
    qmin, qmax = qrange(bits, signed)
    low = np.minimum(np.asarray(lo, np.float32), np.float32(0))
    high = np.maximum(np.asarray(hi, np.float32), np.float32(0))
    scale = np.maximum((high - low) / np.float32(qmax - qmin), SCALE_FLOOR)
    zero_point = np.clip(np.rint(np.float32(qmin) - low / scale), np.float32(qmin), np.float32(qmax))
    return np.asarray(scale, np.float32), np.asarray(zero_point, np.float32)


def weight_scale(array: Array, axis: int | None, bits: int = 8) -> Array:
    """Symmetric scale max(max|w| / qmax, SCALE_FLOOR), float32: [C] along `axis`, or [] where it is None."""
    qmax = np.float32(qrange(bits, True, narrow=True)[1])
    others = None if axis is None else tuple(a for a in range(array.ndim) if a != axis % array.ndim)
    largest = np.max(np.abs(array.astype(np.float32)), axis=others, initial=0)
    return np.asarray(np.maximum(largest / qmax, SCALE_FLOOR), np.float32)


def fitting_weight_scale(scale: Array, input_scale: float, bias: Array | None) -> Array:
    """A weight's scale, float32 [C] or [], raised where |bias| / (input_scale · scale) would exceed 2³⁰; bias is [C].

    That is a channel whose weights are next to nothing beside its bias, a dead one most often. Raising the scale moves
    its weights by at most half of the new scale each, which is 2⁻³¹ of the bias per step of the input: nothing that
    the output's grid can show. All other channels keep their scale, bit for bit.
    """
    least = np.asarray(_PRODUCT_FLOOR / float(input_scale))
    if bias is not None:
        needed = np.abs(bias.astype(np.float64)) / (float(input_scale) * _BIAS_LIMIT)
        least = np.maximum(least, needed if scale.ndim else needed.max(initial=0))
    return np.asarray(np.where(least > scale * (1 + 2.0**-20), least, scale).astype(np.float32), np.float32)


def per_axis(parameter: Array, axis: int | None, rank: int) -> Array:
    """A [C] scale or zero point in the shape that broadcasts along `axis` of a tensor of that rank."""
    if axis is None or parameter.ndim == 0:
        return parameter
    shape = [1] * rank
    shape[axis % rank] = parameter.size
    return parameter.reshape(shape)


def quantize(
    array: Array,
    scale: npt.ArrayLike,
    zero_point: npt.ArrayLike = 0,
    *,
    bits: int = 8,
    signed: bool = True,
    narrow: bool = False,
    axis: int | None = None,
) -> Array:
    """The integers of `array` (float32, any shape) in the grid's storage, of the same shape."""
    qmin, qmax = qrange(bits, signed, narrow)
    steps = np.asarray(array, np.float32) / per_axis(np.asarray(scale, np.float32), axis, np.ndim(array))
    shifted = np.rint(steps) + per_axis(np.asarray(zero_point, np.float32), axis, np.ndim(array))
    return np.asarray(np.clip(shifted, qmin, qmax).astype(storage(bits, signed).numpy))


def dequantize(
    integers: Array, scale: npt.ArrayLike, zero_point: npt.ArrayLike = 0, *, axis: int | None = None
) -> Array:
    """(q − zero_point) · scale, float32, of the same shape."""
    offset = per_axis(np.asarray(zero_point, np.float32), axis, np.ndim(integers))
    step = per_axis(np.asarray(scale, np.float32), axis, np.ndim(integers))
    return np.asarray((np.asarray(integers, np.float32) - offset) * step, np.float32)


def fake_quant(
    array: Array,
    scale: npt.ArrayLike,
    zero_point: npt.ArrayLike = 0,
    *,
    bits: int = 8,
    signed: bool = True,
    narrow: bool = False,
    axis: int | None = None,
) -> Array:
    """`dequantize(quantize(array))`: the values of the grid, float32."""
    integers = quantize(array, scale, zero_point, bits=bits, signed=signed, narrow=narrow, axis=axis)
    return dequantize(integers, scale, zero_point, axis=axis)
