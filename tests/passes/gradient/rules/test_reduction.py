from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from onnxslim.errors import GradientError
from onnxslim.ir.graph import DType, Graph
from onnxslim.runtime.session import Session
from passes.gradient import differentiate
from passes.gradient.rules import reduction

REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceL1": lambda x, **k: np.abs(x).sum(**k),
    "ReduceL2": lambda x, **k: np.sqrt((x * x).sum(**k)),
    "ReduceLogSumExp": lambda x, **k: np.log(np.exp(x).sum(**k)),
    "ReduceMax": np.max,
    "ReduceMean": np.mean,
    "ReduceMin": np.min,
    "ReduceProd": np.prod,
    "ReduceSum": np.sum,
    "ReduceSumSquare": lambda x, **k: (x * x).sum(**k),
}
"""Closed forms with numpy's `axis` and `keepdims`."""

OTHERS = ("GlobalAveragePool", "LogSoftmax", "Softmax")
SHAPES = array_shapes(min_dims=1, max_dims=4, max_side=4)
SEEDS = st.integers(0, 99)
FEW = settings(max_examples=8)


def test_every_rule_has_a_case() -> None:
    assert sorted([*REDUCTIONS, *OTHERS]) == sorted(reduction.RULES)


@pytest.mark.parametrize("op", sorted(REDUCTIONS))
@FEW
@given(shape=SHAPES, seed=SEEDS, keep=st.booleans(), data=st.data())
def test_reductions(
    op: str, shape: tuple[int, ...], seed: int, keep: bool, data: st.DataObject, check: Callable, spaced: Callable
) -> None:
    rank = len(shape)
    axes = data.draw(st.none() | st.lists(st.integers(0, rank - 1), min_size=1, unique=True))
    axis = None if axes is None else tuple(axes)

    def forward(x: np.ndarray, *_: Any) -> np.ndarray:
        return np.ravel(REDUCTIONS[op](x, axis=axis, keepdims=keep))

    signed = None if axes is None else np.array([a - rank if data.draw(st.booleans()) else a for a in axes], np.int64)
    inputs = [spaced(shape, seed)] + ([] if signed is None else [signed])
    check(op, inputs, forward=forward, keepdims=int(keep))


def test_axes_as_an_attribute(check: Callable, spaced: Callable) -> None:
    check("ReduceMean", [spaced((2, 3, 4), 1)], opset=13, axes=[0, -1], keepdims=0)


def test_no_axes_may_mean_no_reduction(check: Callable, spaced: Callable) -> None:
    forward = lambda x, *_: x.reshape(-1)  # noqa: E731
    check("ReduceSum", [spaced((2, 3), 1), np.zeros(0, np.int64)], forward=forward, noop_with_empty_axes=1)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@FEW
@given(shape=SHAPES, seed=SEEDS, data=st.data())
def test_softmax(
    op: str, shape: tuple[int, ...], seed: int, data: st.DataObject, check: Callable, spaced: Callable
) -> None:
    axis = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    check(op, [spaced(shape, seed)], **({} if axis is None else {"axis": axis}))


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (1, 2, 1, 1)])
def test_global_average_pool(shape: tuple[int, ...], check: Callable, spaced: Callable) -> None:
    check("GlobalAveragePool", [spaced(shape, 1)])


def test_the_norm_of_zeros_has_a_gradient_of_zeros() -> None:
    """0/0 must not become NaN."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (2, 2))
    norm = graph.op("ReduceL2", x, graph.add_constant("axes", np.int64([1])), keepdims=0)
    graph.set_type(norm, DType.FLOAT, (2,))
    loss = graph.op("ReduceSum", norm, keepdims=0)
    graph.set_type(loss, DType.FLOAT, ())
    gradient = differentiate(graph, loss, [x])["x"]
    graph.add_output(gradient)
    found = Session(graph).run({"x": np.float32([[0, 0], [3, 4]])})[gradient.name]
    np.testing.assert_allclose(found, [[0, 0], [0.6, 0.8]], rtol=1e-6)


def test_computed_axes_are_refused() -> None:
    graph = Graph()
    x, axes = graph.add_input("x", DType.FLOAT, (2, 2)), graph.add_input("axes", DType.INT64, (1,))
    y = graph.op("ReduceSum", x, axes, name="total", keepdims=1)
    graph.set_type(y, DType.FLOAT, (2, 1))
    loss = graph.op("ReduceSum", y, keepdims=0)
    graph.set_type(loss, DType.FLOAT, ())
    with pytest.raises(GradientError, match=r"'total' \(ReduceSum\).*constant"):
        differentiate(graph, loss, [x])
