"""quant_math against ONNX Runtime's QuantizeLinear and DequantizeLinear, and against its own promises."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxslim.ir.graph import Array, DType
from onnxslim.ir.quant_math import (
    GRID_BITS,
    SCALE_FLOOR,
    affine_from_range,
    dequantize,
    fake_quant,
    pair_domain,
    qrange,
    quantize,
    storage,
    weight_scale,
)


def quantize_with_ort(x: Array, scale: Array, zero_point: Array, axis: int | None) -> tuple[Array, Array]:
    """(integers, dequantised) by ONNX Runtime."""
    attributes = {} if axis is None else {"axis": axis}
    kind = helper.np_dtype_to_tensor_dtype(zero_point.dtype)
    domain = pair_domain(DType.of(zero_point), 18)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], domain=domain, **attributes),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], domain=domain, **attributes),
        ],
        "g",
        [
            info("x", TensorProto.FLOAT, x.shape),
            info("s", TensorProto.FLOAT, scale.shape),
            info("z", kind, zero_point.shape),
        ],
        [info("q", kind, x.shape), info("y", TensorProto.FLOAT, x.shape)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    integers, values = session.run(["q", "y"], {"x": x, "s": scale, "z": zero_point})
    return integers, values


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "expected"),
    [
        (8, True, False, (-128, 127)),
        (8, True, True, (-127, 127)),
        (8, False, False, (0, 255)),
        (4, True, True, (-7, 7)),
        (4, False, False, (0, 15)),
        (2, True, True, (-1, 1)),
        (16, True, False, (-32768, 32767)),
        (16, False, False, (0, 65535)),
    ],
)
def test_qrange(bits: int, signed: bool, narrow: bool, expected: tuple[int, int]) -> None:
    assert qrange(bits, signed, narrow) == expected


@pytest.mark.parametrize("bits", [1, 9, 15, 32])
def test_qrange_refuses_other_widths(bits: int) -> None:
    with pytest.raises(ValueError, match=f"not {bits}"):
        qrange(bits, True)


def test_storage() -> None:
    for bits in range(2, 9):
        assert (storage(bits, True), storage(bits, False)) == (DType.INT8, DType.UINT8)
    assert (storage(16, True), storage(16, False)) == (DType.INT16, DType.UINT16)


def test_pairs_of_16_bits_are_the_runtimes_own_before_opset_21() -> None:
    assert pair_domain(DType.UINT16, 20) == pair_domain(DType.INT16, 18) == "com.microsoft"
    assert pair_domain(DType.UINT16, 21) == pair_domain(DType.UINT8, 18) == pair_domain(DType.INT8, 21) == ""


@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(2.0**-12, 8.0, width=32),
    signed=st.booleans(),
    zero=st.integers(0, 255),
)
@settings(deadline=None, max_examples=25)
def test_per_tensor_is_bit_exact(seed: int, scale: float, signed: bool, zero: int) -> None:
    rng = np.random.default_rng(seed)
    step = np.float32(scale)
    ties = (np.arange(-300, 300, dtype=np.float32) + np.float32(0.5)) * step
    x = np.concatenate([ties, rng.normal(0, 200 * scale, 1000).astype(np.float32)])
    zero_point = np.array(zero - 128 * signed, np.int8 if signed else np.uint8)
    integers, values = quantize_with_ort(x, np.asarray(step), zero_point, None)
    np.testing.assert_array_equal(quantize(x, step, zero_point, signed=signed), integers)
    np.testing.assert_array_equal(fake_quant(x, step, zero_point, signed=signed), values)


@pytest.mark.parametrize("signed", [True, False])
def test_16_bits_are_bit_exact(signed: bool) -> None:
    step = np.float32(2e-4)
    ties = (np.arange(-70_000, 70_000, dtype=np.float32) + np.float32(0.5)) * step
    x = np.concatenate([ties, np.random.default_rng(0).normal(0, 8, 10_000).astype(np.float32)])
    zero_point = np.array(31_000 - 32_768 * signed, np.int16 if signed else np.uint16)
    integers, values = quantize_with_ort(x, np.asarray(step), zero_point, None)
    np.testing.assert_array_equal(quantize(x, step, zero_point, bits=16, signed=signed), integers)
    np.testing.assert_array_equal(fake_quant(x, step, zero_point, bits=16, signed=signed), values)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_per_channel_is_bit_exact(axis: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 4, 3, 3)).astype(np.float32)
    scale = weight_scale(x, axis)
    assert scale.shape == (x.shape[axis],)
    integers, values = quantize_with_ort(x, scale, np.zeros(scale.shape, np.int8), axis % 4)
    np.testing.assert_array_equal(quantize(x, scale, axis=axis, narrow=True), integers)
    np.testing.assert_array_equal(fake_quant(x, scale, axis=axis, narrow=True), values)


@given(
    lo=st.floats(-1e6, 1e6, width=32),
    hi=st.floats(-1e6, 1e6, width=32),
    bits=st.sampled_from(GRID_BITS),
    signed=st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_affine_grid_holds_zero_and_the_range(lo: float, hi: float, bits: int, signed: bool) -> None:
    lo, hi = min(lo, hi), max(lo, hi)
    scale, zero_point = affine_from_range(lo, hi, bits, signed)
    qmin, qmax = qrange(bits, signed)
    assert scale.dtype == zero_point.dtype == np.float32
    assert scale >= SCALE_FLOOR
    assert zero_point == np.rint(zero_point)
    assert qmin <= zero_point <= qmax
    assert fake_quant(np.zeros(1, np.float32), scale, zero_point, bits=bits, signed=signed) == 0
    ends = np.array([min(lo, 0), max(hi, 0)], np.float32)
    error = np.abs(fake_quant(ends, scale, zero_point, bits=bits, signed=signed) - ends)
    assert (error <= 1.01 * scale).all()  # half a step of rounding, half of the zero point's


def test_signed_and_unsigned_grids_coincide() -> None:
    rng = np.random.default_rng(1)
    for lo, hi in rng.uniform(-4, 4, (50, 2)):
        scale_u, zero_u = affine_from_range(lo, hi, 8, signed=False)
        scale_s, zero_s = affine_from_range(lo, hi, 8, signed=True)
        assert scale_u == scale_s
        assert abs(zero_u - 128 - zero_s) <= 1  # one rounding of another number: equal but at ties
    assert affine_from_range(0, 6, 8, False)[1] == 0
    assert affine_from_range(0, 6, 8, True)[1] == -128


def test_range_without_extent_is_floored() -> None:
    scale, zero_point = affine_from_range(0.0, 0.0, 8, False)
    assert (scale, zero_point) == (SCALE_FLOOR, 0)


def test_weight_scale_reaches_the_largest_weight_and_floors_dead_channels() -> None:
    w = np.array([[1.27, -0.5], [0.0, 0.0], [-2.54, 1.0]], np.float32)
    np.testing.assert_allclose(weight_scale(w, 0), [0.01, SCALE_FLOOR, 0.02], rtol=1e-6)
    np.testing.assert_allclose(weight_scale(w, None), 0.02, rtol=1e-6)
    assert weight_scale(w, None).shape == ()
    np.testing.assert_allclose(weight_scale(w, None, bits=4), 2.54 / 7, rtol=1e-6)
    assert np.abs(quantize(w, weight_scale(w, 0), axis=0, narrow=True)).max() == 127


def test_dequantize_is_the_inverse_on_the_grid() -> None:
    q = np.arange(-128, 128).astype(np.int8)
    assert (quantize(dequantize(q, 0.03, 5), 0.03, 5) == q).all()


def test_clips_to_fewer_bits() -> None:
    x = np.linspace(-3, 3, 50).astype(np.float32)
    q = quantize(x, 0.1, bits=3, signed=True, narrow=True)
    assert (q.min(), q.max(), q.dtype) == (-3, 3, np.int8)
