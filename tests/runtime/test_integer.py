"""The integer evaluator against ONNX Runtime's int8 kernels and against sums written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.errors import DataError, UnsupportedError
from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.integer import IntegerEvaluator, run_integer
from onnxslim.runtime.integer_ops import Ints, Product, conv, matmul, mean
from onnxslim.runtime.session import Session

LARGEST = 2 ** (capabilities().exact_weight_bits - 1) - 1
"""Of a weight."""


class Qdq:
    """Writes a QDQ graph: every activation passes through a pair."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.graph, self.rng = Graph(), np.random.default_rng(seed)
        self.x = self.pair(self.graph.add_input("x", DType.FLOAT, ("N", *shape[1:])), 0.02, 120)
        self.data = self.rng.normal(0, 1.5, shape).astype(np.float32)

    def pair(self, x: Value, scale: float, zero: int, kind: Any = np.uint8) -> Value:
        s, z = self.graph.add_constant("s", np.float32(scale)), self.graph.add_constant("z", np.asarray(zero, kind))
        return self.graph.op("DequantizeLinear", self.graph.op("QuantizeLinear", x, s, z), s, z)

    def weight(self, *shape: int, axis: int | None = 0) -> Value:
        q = self.rng.integers(-LARGEST, LARGEST + 1, shape).astype(np.int8)
        count = () if axis is None else (shape[axis],)
        s = self.weight_scale = self.rng.uniform(0.002, 0.01, count).astype(np.float32)
        parts = (self.graph.add_constant(n, a) for n, a in (("w", q), ("ws", s), ("wz", np.zeros(count, np.int8))))
        return self.graph.op("DequantizeLinear", *parts, axis=axis)

    def bias(self, channels: int) -> Value:
        q = self.rng.integers(-5000, 5000, channels).astype(np.int32)
        s = np.broadcast_to(np.float32(0.02) * self.weight_scale, channels)  # as ONNX Runtime expects it: s_x·s_w
        parts = (self.graph.add_constant(n, a) for n, a in (("b", q), ("bs", s), ("bz", np.zeros(channels, np.int32))))
        return self.graph.op("DequantizeLinear", *parts, axis=0)

    def finish(self, y: Value) -> Graph:
        self.graph.rename(y, "y")
        self.graph.set_type(y, DType.FLOAT)
        self.graph.add_output(y)
        infer_shapes(self.graph)
        return self.graph

    def compare(self, y: Value, step: float, most: int = 0) -> Array:
        """Both results; they differ by at most `most` steps."""
        graph = self.finish(y)
        found = run_integer(graph, {"x": self.data})["y"]
        expected = Session(graph).run({"x": self.data})["y"]
        assert np.abs(found - expected).max(initial=0) <= (most + 0.01) * step
        assert np.unique(found).size > 5  # not all saturated
        return found


@given(
    group=st.sampled_from([1, 2, 4]),
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    pad=st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]),
    per_channel=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=25)
def test_conv_is_the_int8_kernel(
    group: int, kernel: int, stride: int, dilation: int, pad: str, per_channel: bool, seed: int
) -> None:
    if pad.startswith("SAME"):
        dilation = 1
    net = Qdq((3, 4, 9, 8), seed)
    w = net.weight(4, 4 // group, kernel, kernel, axis=0 if per_channel else None)
    # every padding once: explicit, derived, none
    padding: dict[str, Any] = {"pads": [1, 0, 1, 2]} if pad == "NOTSET" else {"auto_pad": pad}
    geometry = {"group": group, "strides": [stride] * 2, "dilations": [dilation] * 2, **padding}
    bias = () if not per_channel else (net.bias(4),)
    y = net.graph.op("Conv", net.x, w, *bias, **geometry)
    net.compare(net.pair(y, 0.05, 128), 0.05)


def of_16_bits(rng: np.random.Generator, *shape: int) -> Ints:
    return Ints(rng.integers(0, 65536, shape).astype(np.uint16), np.float32(1e-4), np.array(9, np.uint16), None)


def test_sums_of_16_bit_activations_are_exact_beyond_int32() -> None:
    """700 products of 16 and 8 bits reach 5.8e9."""
    graph, rng = Graph(), np.random.default_rng(0)
    x, w = of_16_bits(rng, 2, 700), Ints(np.full((700, 3), 127, np.int8), np.float32(1), np.zeros((), np.int8), None)
    source = graph.add_input("x", DType.FLOAT, [1])
    exact = ((x.q.astype(np.int64) - 9) * 127).sum(axis=1)
    assert (exact > 2**31).all()
    product = matmul(graph.add_node("MatMul", [source, source]), x, w, None)
    assert product is not None
    assert (product.acc == exact[:, None]).all()
    kernel = Ints(np.ascontiguousarray(w.q.T[..., None]), w.scale, w.zero_point, None)
    image = Ints(x.q[..., None], x.scale, x.zero_point, None)
    assert (conv(graph.add_node("Conv", [source, source]), image, kernel, None).acc[..., 0] == exact[:, None]).all()
    wide = of_16_bits(rng, 1, 1, 300, 300)
    assert int(mean(wide, (2, 3), True).acc.squeeze()) == int((wide.q.astype(np.int64) - 9).sum()) > 2**31


def test_products_of_16_bits_are_rounded_once() -> None:
    rng = np.random.default_rng(1)
    a, b = of_16_bits(rng, 5000), of_16_bits(rng, 5000)
    exact = (a.q.astype(np.int64) - 9) * (b.q.astype(np.int64) - 9)
    assert (exact > 2**24).any()
    steps = Product(a, b).steps(np.float32(1))
    np.testing.assert_array_equal(steps, exact.astype(np.float32) * (a.scale * b.scale))


def test_conv_by_hand() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, [1, 4, 6, 5])
    node = graph.add_node("Conv", [x, x], 1, {"group": 2, "strides": [2, 1], "pads": [1, 1, 0, 1]})
    rng = np.random.default_rng(0)
    q, w = rng.integers(0, 256, (2, 4, 6, 5)).astype(np.uint8), rng.integers(-128, 128, (6, 2, 3, 2)).astype(np.int8)
    b = rng.integers(-(2**30), 2**30, 6).astype(np.int32)
    one = np.ones((), np.float32)
    result = conv(
        node,
        Ints(q, one, np.array(7, np.uint8), None),
        Ints(w, one, np.zeros((), np.int8), None),
        Ints(b, one, np.zeros((), np.int32), None),
    )
    padded = np.pad(q.astype(np.int64) - 7, [(0, 0), (0, 0), (1, 0), (1, 1)])
    for n, o, i, j in np.ndindex(*result.acc.shape):
        channels = slice(2 * (o // 3), 2 * (o // 3) + 2)
        window = padded[n, channels, 2 * i : 2 * i + 3, j : j + 2]
        assert result.acc[n, o, i, j] == (window * w[o]).sum() + b[o]
    assert result.acc.shape == (2, 6, 3, 6)
    assert result.acc.dtype == np.int32


def test_sums_beyond_float32_are_exact() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, [1, 600, 1, 1])
    node = graph.add_node("Conv", [x, x], 1)
    q, w = np.full((1, 600, 1, 1), 255, np.uint8), np.full((1, 600, 1, 1), 127, np.int8)
    q[0, -1] = 1
    zero, one = np.zeros((), np.uint8), np.ones((), np.float32)
    result = conv(node, Ints(q, one, zero, None), Ints(w, one, zero.astype(np.int8), None), None)
    assert result.acc.item() == 599 * 255 * 127 + 127
    assert result.acc.item() > 2**24


def test_refuses_what_int32_cannot_hold() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, [1, 70000, 1, 1])
    node = graph.add_node("Conv", [x, x], 1)
    w = Ints(np.full((1, 70000, 1, 1), 127, np.int8), np.ones((), np.float32), np.zeros((), np.int8), None)
    q = Ints(np.zeros((1, 70000, 1, 1), np.uint8), np.ones((), np.float32), np.zeros((), np.uint8), None)
    with pytest.raises(UnsupportedError, match="int32"):
        conv(node, q, w, None)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("output", ["integers", "float"])
def test_gemm(transposed: int, output: str) -> None:
    net = Qdq((16, 40))
    w = net.weight(*((10, 40) if transposed else (40, 10)), axis=1 - transposed)
    y = net.graph.op("Gemm", net.x, w, net.bias(10), transB=transposed)
    if output == "integers":
        net.compare(net.pair(y, 0.1, 100), 0.1)
    else:
        net.compare(y, 1e-4)  # float32 rounding of the product of scales


def test_matmul() -> None:
    net = Qdq((16, 40))
    net.compare(net.pair(net.graph.op("MatMul", net.x, net.weight(40, 10, axis=1)), 0.1, 100), 0.1)


def test_residual_add_with_relu() -> None:
    net = Qdq((4, 4, 6, 6))
    a = net.pair(net.graph.op("Conv", net.x, net.weight(4, 4, 1, 1)), 0.05, 128)
    y = net.graph.op("Relu", net.graph.op("Add", a, net.x))
    net.compare(net.pair(y, 0.04, 0), 0.04, most=1)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("GlobalAveragePool", {}),
        ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("AveragePool", {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
    ],
)
def test_pools_and_means(op: str, attributes: dict[str, Any]) -> None:
    net = Qdq((4, 5, 7, 8))
    y = net.graph.op(op, net.x, **attributes)
    if op == "MaxPool":
        net.compare(net.pair(y, 0.02, 120), 0.02)
    else:
        net.compare(net.pair(y, 0.01, 128), 0.01, most=1)


def test_shape_ops_move_integers() -> None:
    net = Qdq((4, 6, 4, 4))
    graph = net.graph
    y = net.pair(graph.op("Transpose", net.x, perm=[0, 2, 3, 1]), 0.02, 120)
    y = net.pair(graph.op("Reshape", y, graph.add_constant("shape", np.array([0, -1, 12]))), 0.02, 120)
    starts, ends, axes = (graph.add_constant("i", np.array([v])) for v in (2, 11, 2))
    y = net.pair(graph.op("Slice", y, starts, ends, axes), 0.02, 120)
    y = net.pair(graph.op("Flatten", y), 0.02, 120)
    net.compare(y, 0.02)


def test_concat_pad_and_split() -> None:
    net = Qdq((2, 4, 3, 3))
    graph = net.graph
    pads = graph.add_constant("pads", np.array([0, 0, 1, 0, 0, 0, 0, 2]))
    y = net.pair(graph.op("Pad", net.x, pads), 0.02, 120)
    split = graph.add_node("Split", [y], 2, {"axis": 1, "num_outputs": 2})
    halves = [net.pair(graph.result(split, slot), 0.02, 120) for slot in (1, 0)]
    net.compare(net.pair(graph.op("Concat", *halves, axis=1), 0.02, 120), 0.02)


def test_other_grid_requantises() -> None:
    net = Qdq((2, 4, 3, 3))
    graph = net.finish(net.pair(net.x, 0.03, 100))
    found = run_integer(graph, {"x": net.data})["y"]
    expected = Session(graph, optimize=False).run({"x": net.data})["y"]  # optimised, it merges the pairs
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_float_ops_in_between() -> None:
    net = Qdq((2, 4, 6, 6))
    y = net.pair(net.graph.op("Conv", net.x, net.weight(4, 4, 3, 3)), 0.05, 128)
    y = net.pair(net.graph.op("HardSwish", y), 0.03, 10)
    net.compare(y, 0.03, most=1)


def test_keeps_integers_on_request() -> None:
    net = Qdq((2, 4, 3, 3))
    quantise = next(n for n in net.graph.nodes() if n.op == "QuantizeLinear")
    graph = net.finish(net.graph.op("Relu", net.x))
    name = graph.result(quantise).name
    found = IntegerEvaluator(graph).run({"x": net.data}, keep=[name])
    expected = np.clip(np.rint(net.data / np.float32(0.02)) + 120, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(found[name], expected)
    np.testing.assert_array_equal(found["y"], np.maximum(expected.astype(np.float32) - 120, 0) * np.float32(0.02))


def test_missing_input_is_named() -> None:
    net = Qdq((2, 4))
    with pytest.raises(DataError, match="input 'x'"):
        run_integer(net.finish(net.graph.op("Relu", net.x)), {})
