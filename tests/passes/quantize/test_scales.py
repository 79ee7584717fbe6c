"""Grids of small numbers: how fine a scale is follows from the numbers alone, whatever their size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxslim.calibration import gather
from onnxslim.ir.graph import Array, DType, Graph
from onnxslim.ir.quant_math import fitting_weight_scale
from onnxslim.ir.rewrite import Context
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.integer import run_integer
from onnxslim.runtime.session import Session
from onnxslim.stages.export import lower
from onnxslim.targets import load_target
from passes.quantize import InsertFakeQuant

TARGET = load_target("x64")


def decibels(exact: Array, found: Array) -> float:
    """Signal to quantisation noise."""
    exact, found = exact.astype(np.float64), found.astype(np.float64)
    return float(10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum()))


def quantised(graph: Graph, x: Array, **options: Any) -> Graph:
    graph, context = graph.copy(), Context(target=TARGET)
    insert = InsertFakeQuant(capabilities().exact_weight_bits, **options)
    statistics = gather(graph, insert.requests(graph, context), [{"x": x}], threads=1)
    insert(graph, Context(target=TARGET, statistics=statistics))
    return lower(graph, "x64")[0]


def network(kind: str, inputs: float, first: float, second: float) -> tuple[Graph, Array]:
    """Two layers whose weights and biases have the given sizes, and an input for them."""
    rng, graph = np.random.default_rng(3), Graph()
    shape = {"Conv": (16, 6, 5, 5), "Gemm": (32, 6), "MatMul": (4, 8, 6)}[kind]
    x = graph.add_input("x", DType.FLOAT, ["N", *shape[1:]])
    y, size = x, inputs
    for name, scale, out in (("a", first, 8), ("b", second, 5)):
        inner = 6 if name == "a" else 8
        size *= scale
        array = rng.normal(0, scale, (out, inner, 1, 1) if kind == "Conv" else (inner, out)).astype(np.float32)
        w, b = graph.add_constant(f"{name}.w", array), rng.normal(0, size, out).astype(np.float32)
        y = graph.op(kind, y, w, *([] if kind == "MatMul" else [graph.add_constant(f"{name}.b", b)]), name=name)
        y = graph.op("Relu", y) if name == "a" else y
    graph.set_type(y, DType.FLOAT, None)
    graph.add_output(y)
    return graph, (inputs * rng.normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize("kind", ["Conv", "Gemm", "MatMul"])
@pytest.mark.parametrize(
    ("inputs", "first", "second"),
    [(1, 1e-5, 1), (1, 1e-9, 1e-4), (1e-6, 1, 1), (1e-9, 1e-3, 1e3), (1e4, 1e-8, 1), (1, 1e3, 1e-7)],
)
def test_small_numbers_lose_no_accuracy(kind: str, inputs: float, first: float, second: float) -> None:
    usual, x = network(kind, 1, 1, 1)
    small, tiny = network(kind, inputs, first, second)
    exact = Session(usual).run({"x": x})
    least = min(decibels(y, Session(quantised(usual, x)).run({"x": x})[n]) for n, y in exact.items())
    assert least > 30
    ((name, expected),) = Session(small).run({"x": tiny}).items()
    int8 = quantised(small, tiny)
    # The same network in other units; sizes that are no powers of two move numbers across ties of rounding.
    assert decibels(expected, Session(int8).run({"x": tiny})[name]) > least - 1
    assert decibels(expected, run_integer(int8, {"x": tiny})[name]) > least - 1


@pytest.mark.parametrize("axis", [1, -1])
def test_branches_of_very_different_width_keep_their_accuracy(axis: int) -> None:
    """Three branches, the wide one 10,000 times the narrow one, joined; each is also read beside the Concat."""
    rng, graph = np.random.default_rng(5), Graph()
    x = graph.add_input("x", DType.FLOAT, ["N", 4, 6, 6])
    branches, outputs = [], []
    for name, width in (("narrow", 1e-2), ("middle", 1.0), ("wide", 100.0)):
        w = graph.add_constant(f"{name}.w", rng.normal(0, 0.5 * width, (4, 4, 1, 1)).astype(np.float32))
        branch = graph.op("Relu", graph.op("Conv", x, w, name=name))
        branches.append(graph.op("MaxPool", branch, kernel_shape=[1, 1]) if name == "middle" else branch)
        beside = graph.add_constant(f"{name}.beside", rng.normal(0, 0.5, (3, 4, 1, 1)).astype(np.float32))
        outputs.append(graph.op("Conv", branch, beside, name=f"{name}.reader"))
    joined = graph.op("Concat", *branches, axis=axis, name="joined")
    last = rng.normal(0, 0.5, (3, 12 if axis == 1 else 4, 1, 1)).astype(np.float32)
    outputs.append(graph.op("Conv", joined, graph.add_constant("last.w", last), name="last"))
    for value in outputs:
        graph.set_type(value, DType.FLOAT, None)
        graph.add_output(value)
    data = rng.normal(size=(8, 4, 6, 6)).astype(np.float32)
    exact, found = Session(graph).run({"x": data}), Session(quantised(graph, data)).run({"x": data})
    # 8 bits give about 35 dB; a grid shared with the wide branch would leave the narrow one below 0.
    assert min(decibels(y, found[name]) for name, y in exact.items()) > 28


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("dead", [0.0, 1e-12, 1e-30])
def test_a_dead_channel_keeps_its_bias(dead: float, per_channel: bool) -> None:
    """All weights of a channel (nearly) 0, at every size of the network: what it gives is its bias."""
    for size in (1.0, 1e-6):
        graph, x = network("Conv", 1, size, 1)
        weight, bias = graph.value("a.w"), graph.value("a.b")
        assert weight.array is not None
        assert bias.array is not None
        weights, biases = weight.array.copy(), bias.array.copy()
        weights[2], biases[2] = dead, 3 * size
        graph.set_array(weight, weights)
        graph.set_array(bias, biases)
        ((name, expected),) = Session(graph).run({"x": x}).items()
        assert decibels(expected, Session(quantised(graph, x, per_channel=per_channel)).run({"x": x})[name]) > 30


def test_an_input_that_was_always_zero() -> None:
    graph, x = network("Conv", 0, 1, 1)
    bias = graph.value("a.b")
    graph.set_array(bias, np.linspace(-1, 1, 8, dtype=np.float32))
    ((name, expected),) = Session(graph).run({"x": x}).items()
    assert decibels(expected, Session(quantised(graph, x)).run({"x": x})[name]) > 30


@pytest.mark.parametrize("input_scale", [1e-6, 0.01, 100.0])
def test_only_scales_that_their_bias_does_not_fit_are_raised(input_scale: float) -> None:
    scale = np.array([1e-3, 1e-3, 1e-15], np.float32)
    bias = np.array([0.5, -2e6 * 1e-3 * input_scale, 0.5], np.float32) * np.float32(input_scale * 1e-3)
    fitted = fitting_weight_scale(scale, input_scale, bias)
    np.testing.assert_array_equal(fitted[:2], scale[:2])
    np.testing.assert_allclose(fitted[2], 0.5e-3 / 2**30, rtol=1e-6)
    assert np.abs(bias / (input_scale * fitted)).max() <= 2**30 * (1 + 2**-20)
    assert fitting_weight_scale(np.float32(1e-15).reshape(()), input_scale, bias).shape == ()


@pytest.mark.parametrize("rows", [4, 6])
@pytest.mark.parametrize("bias", ["column", "row", "matrix", "number"])
def test_a_gemm_adds_what_it_is_told(bias: str, rows: int) -> None:
    """C of [M, 1] is one number a row, also where there are as many rows as columns."""
    rng, graph = np.random.default_rng(0), Graph()
    x = graph.add_input("x", DType.FLOAT, [rows, 6])
    shape = {"column": (rows, 1), "row": (1, 4), "matrix": (rows, 4), "number": (1,)}[bias]
    w = graph.add_constant("w", rng.normal(size=(6, 4)).astype(np.float32))
    y = graph.op("Gemm", x, w, graph.add_constant("c", rng.normal(0, 5, shape).astype(np.float32)))
    w2 = graph.add_constant("w2", rng.normal(size=(4, 4)).astype(np.float32))
    graph.add_output(graph.op("Gemm", y, w2, name="last"))
    data = rng.normal(size=(rows, 6)).astype(np.float32)
    ((name, expected),) = Session(graph).run({"x": data}).items()
    assert decibels(expected, Session(quantised(graph, data)).run({"x": data})[name]) > 30
