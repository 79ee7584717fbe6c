"""ShiftActivations: the other activation type with the same numbers, or a refusal by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxslim.analysis.precision import precision_of
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.rewrite import Context
from onnxslim.runtime.session import Session
from onnxslim.stages.export import lower
from onnxslim.targets import load_target
from passes.quantize import InsertFakeQuant, ShiftActivations


class Pairs:
    """A graph of pairs in one type, with integers that are moved, clipped and joined between their two nodes."""

    def __init__(self, dtype: DType) -> None:
        self.graph, self.dtype = Graph("net"), dtype
        self.x = self.graph.add_input("x", DType.FLOAT, ["N", 4, 6])

    def number(self, name: str, value: float, dtype: DType | None = None) -> Value:
        return self.graph.add_constant(name, np.asarray(value, (dtype or self.dtype).numpy))

    def quantize(self, x: Value, zero_point: int | None = 0) -> Value:
        given = [] if zero_point is None else [self.number("z", zero_point)]
        y = self.graph.op("QuantizeLinear", x, self.number("s", 0.05, DType.FLOAT), *given)
        self.graph.set_type(y, self.dtype, None)
        return y

    def dequantize(self, q: Value, zero_point: int | None = 0) -> Value:
        given = [] if zero_point is None else [self.number("z", zero_point)]
        y = self.graph.op("DequantizeLinear", q, self.number("s", 0.05, DType.FLOAT), *given)
        self.graph.set_type(y, DType.FLOAT, None)
        return y

    def finish(self, y: Value) -> Graph:
        self.graph.add_output(y)
        return self.graph


def outputs(graph: Graph, x: Array) -> Array:
    (found,) = Session(graph, optimize=False).run({"x": x}).values()
    return found


@pytest.mark.parametrize("dtype", [DType.UINT8, DType.INT8])
def test_what_stands_between_the_two_nodes_is_shifted_too(dtype: DType) -> None:
    low, high = (100, 140) if dtype is DType.UINT8 else (-28, 12)
    pairs = Pairs(dtype)
    graph = pairs.graph
    q = graph.op("Clip", pairs.quantize(pairs.x, low + 20), pairs.number("a", low), pairs.number("b", high))
    moved = graph.op("Transpose", q, perm=[0, 2, 1])
    joined = graph.op("Concat", moved, moved, axis=1)
    for value in (q, moved, joined):
        graph.set_type(value, dtype, None)
    graph = pairs.finish(pairs.dequantize(joined, low + 20))
    x = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    before = outputs(graph, x)
    ShiftActivations(dtype is DType.UINT8)(graph)
    assert precision_of(graph).activations == ((DType.INT8,) if dtype is DType.UINT8 else (DType.UINT8,))
    np.testing.assert_array_equal(outputs(graph, x), before)
    assert ShiftActivations(dtype is DType.UINT8)(graph).rewrites == 0


def test_a_zero_point_that_is_left_out_is_0() -> None:
    pairs = Pairs(DType.UINT8)
    graph = pairs.finish(pairs.dequantize(pairs.quantize(pairs.x, None), None))
    x = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    before = outputs(graph, x)
    ShiftActivations(True)(graph)
    np.testing.assert_array_equal(outputs(graph, x), before)


@pytest.mark.parametrize("signed", [True, False])
def test_a_whole_network(net: Any, calibrated: Callable[..., Context], images: Array, signed: bool) -> None:
    """With unsigned weights, as other quantisers write them: no kernel takes them beside int8 activations."""
    graph = net.finish(net.gemm(net.op("MaxPool", net.conv(net.x, 4), kernel_shape=[2, 2])))
    source, wanted = ("x64", "arm") if signed else ("arm", "x64")
    step = InsertFakeQuant(7)
    step(graph, calibrated(graph, step, images, source))
    int8, _ = lower(graph, source)
    if signed:
        for node in [n for n in int8.nodes() if n.op == "DequantizeLinear"]:
            stored = int8.operand(node, 0)
            if stored.dtype is DType.INT8 and stored.array is not None:
                zeros = np.full(int8.operand(node, 1).static_shape, 128, np.uint8)
                int8.set_input(node, 0, int8.add_constant("u", (stored.array.astype(int) + 128).astype(np.uint8)))
                int8.set_input(node, 2, int8.add_constant("z", zeros))
    before = outputs(int8, images)
    ShiftActivations(signed)(int8)
    assert precision_of(int8).target == wanted
    integers = {v.dtype for v in int8.initializers()} & {DType.INT8, DType.UINT8}
    assert integers == ({DType.INT8} if signed else {DType.INT8, DType.UINT8})  # weights stay int8
    np.testing.assert_array_equal(outputs(int8, images), before)


def test_what_cannot_be_shifted_is_named() -> None:
    wide = Pairs(DType.UINT16)
    with pytest.raises(UnsupportedError, match=r"QuantizeLinear.* quantises to uint16.*quantise for the target"):
        ShiftActivations(True)(wide.finish(wide.dequantize(wide.quantize(wide.x))))
    handed_out = Pairs(DType.UINT8)
    with pytest.raises(UnsupportedError, match=r"gives the model's output"):
        ShiftActivations(True)(handed_out.finish(handed_out.quantize(handed_out.x)))
    read = Pairs(DType.UINT8)
    q = read.quantize(read.x)
    with pytest.raises(UnsupportedError, match=r"\(MatMulInteger\) reads the integers"):
        ShiftActivations(True)(read.finish(read.graph.op("MatMulInteger", q, q, name="m")))
    computed = Pairs(DType.UINT8)
    zero_point = computed.graph.add_input("z", DType.UINT8, [])
    y = computed.graph.op("QuantizeLinear", computed.x, computed.number("s", 0.05, DType.FLOAT), zero_point)
    with pytest.raises(UnsupportedError, match=r"reads 'z', which is computed"):
        ShiftActivations(True)(computed.finish(computed.dequantize(y)))


def test_integer_ops_of_the_runtime_are_one_targets_alone() -> None:
    graph = Graph("g")
    x = graph.add_input("x", DType.FLOAT, ["N", 4])
    y = graph.op("QLinearSigmoid", x, x, x, x, x, domain="com.microsoft")
    graph.set_type(y, DType.FLOAT, None)
    graph.add_output(y)
    assert precision_of(graph).kind == "int8"
    assert load_target("arm").name == "arm"
    with pytest.raises(UnsupportedError, match="QLinearSigmoid, which are made for one target"):
        lower(graph, "arm")


@pytest.mark.parametrize("target", ["arm", "x64"])
def test_what_quantises_activations_as_they_come_suits_every_target(target: str) -> None:
    graph = Graph("g")
    x, w = graph.add_input("x", DType.FLOAT, ["N", 4]), graph.add_constant("w", np.ones((4, 4), np.int8))
    split = graph.add_node("DynamicQuantizeLinear", [x], 3)
    q, _, zero_point = (graph.result(split, slot) for slot in range(3))
    y = graph.op("Cast", graph.op("MatMulInteger", q, w, zero_point), to=int(DType.FLOAT))
    graph.set_type(y, DType.FLOAT, None)
    graph.add_output(y)
    lowered, _ = lower(graph, target)
    assert [n.op for n in lowered.nodes()] == [n.op for n in graph.nodes()]
