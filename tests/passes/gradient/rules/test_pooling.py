from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.errors import GradientError
from onnxslim.ir.graph import DType, Graph
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.session import Session
from passes.gradient import GradientOptions, differentiate
from passes.gradient.rules import pooling

KERNELS = pytest.mark.parametrize(
    "kernels",
    [
        pytest.param(True, marks=pytest.mark.skipif(not capabilities().has_training_kernels, reason="plain runtime")),
        False,
    ],
    ids=["kernels", "plain"],
)


def pool(op: str, kernel: Any, strides: Any, pads: Any, dilations: Any, include: int, ceil: int = 0) -> Callable:
    """The pool in float64, window by window (taps in the padding are NaN)."""
    rank = len(kernel)

    def run(x: np.ndarray) -> np.ndarray:
        reach = [(k - 1) * d for k, d in zip(kernel, dilations)]
        full = [n + a + b - r - 1 for n, a, b, r in zip(x.shape[2:], pads[:rank], pads[rank:], reach)]
        sizes = [(-(-f // s) if ceil else f // s) + 1 for f, s in zip(full, strides)]
        sizes = [
            o - 1 if ceil and (o - 1) * s >= n + a else o
            for o, s, n, a in zip(sizes, strides, x.shape[2:], pads[:rank])
        ]
        spare = [s + r for s, r in zip(strides, reach)]
        wide = np.pad(
            x,
            [(0, 0), (0, 0), *[(a, b + e) for a, b, e in zip(pads[:rank], pads[rank:], spare)]],
            constant_values=np.nan,
        )
        taps = []
        for tap in np.ndindex(*kernel):
            cut = [slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, o, s in zip(tap, dilations, sizes, strides)]
            taps.append(wide[(slice(None), slice(None), *cut)])
        stack = np.stack(taps)
        if op == "MaxPool":
            return np.nanmax(stack, axis=0).reshape(-1)
        count = len(taps) if include else (~np.isnan(stack)).sum(0)
        return (np.nansum(stack, axis=0) / count).reshape(-1)

    return run


def test_every_rule_has_a_case() -> None:
    assert sorted(pooling.RULES) == ["AveragePool", "GlobalMaxPool", "MaxPool"]


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    def each(low: int, high: int, count: int = 2) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    kernel, dilations = each(1, 3), each(1, 2)
    pads = [draw(st.integers(0, k - 1)) if d == 1 else 0 for k, d in zip(kernel * 2, dilations * 2)]
    return {"kernel_shape": kernel, "strides": each(1, 3), "pads": pads, "dilations": dilations}


@KERNELS
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@settings(max_examples=25)
@given(window=windows(), size=st.tuples(st.integers(5, 7), st.integers(5, 7)), include=st.integers(0, 1))
def test_pools(
    op: str, kernels: bool, window: dict[str, Any], size: Any, include: int, check: Callable, spaced: Callable
) -> None:
    if op == "AveragePool":  # which has no dilations in opset 18
        window = {**window, "dilations": [1, 1]}
    forward = pool(op, window["kernel_shape"], window["strides"], window["pads"], window["dilations"], include)
    own = "dilations" if op == "MaxPool" else "count_include_pad"
    attributes = {
        k: v
        for k, v in {**window, "count_include_pad": include}.items()
        if k in ("kernel_shape", "strides", "pads", own)
    }
    check(op, [spaced((2, 2, *size), 1)], forward=forward, kernels=kernels, **attributes)


@KERNELS
@pytest.mark.parametrize("kernel, stride", [(2, 2), (4, 4), (3, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize("size", [8, 7])
def test_max_pool_ceil_mode(
    kernel: int, stride: int, size: int, kernels: bool, check: Callable, spaced: Callable
) -> None:
    for ceil in (0, 1):
        forward = pool("MaxPool", [kernel] * 2, [stride] * 2, [0] * 4, [1, 1], 0, ceil)
        x = spaced((2, 3, size, size), 1)
        check(
            "MaxPool",
            [x],
            forward=forward,
            kernels=kernels,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            ceil_mode=ceil,
        )


@KERNELS
@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank: int, kernels: bool, check: Callable, spaced: Callable) -> None:
    kernel, strides, pads = [3, 2, 2][:rank], [2, 1, 2][:rank], [1, 0, 0][:rank] * 2
    x = spaced((2, 2, *(5, 4, 4)[:rank]), 1)
    for op in ("MaxPool", "AveragePool"):
        forward = pool(op, kernel, strides, pads, [1] * rank, 0)
        check(op, [x], forward=forward, kernels=kernels, kernel_shape=kernel, strides=strides, pads=pads)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5)])
def test_global_max_pool(shape: tuple[int, ...], check: Callable, spaced: Callable) -> None:
    check("GlobalMaxPool", [spaced(shape, 1)], forward=lambda x: x.reshape(2, 3, -1).max(2).reshape(-1))


@KERNELS
@pytest.mark.parametrize("kernel, stride", [(2, 2), (3, 2), (2, 1)])
def test_the_first_of_equal_maxima_wins(kernel: int, stride: int, kernels: bool) -> None:
    """Quantised activations tie all the time: exactly one pixel of a window gets its gradient."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (1, 1, 4, 4))
    y = graph.op("MaxPool", x, kernel_shape=[kernel] * 2, strides=[stride] * 2)
    out = (4 - kernel) // stride + 1
    graph.set_type(y, DType.FLOAT, (1, 1, out, out))
    loss = graph.op("ReduceSum", y, keepdims=0)
    graph.set_type(loss, DType.FLOAT, ())
    gradient = differentiate(graph, loss, [x], GradientOptions(training_kernels=kernels))["x"]
    graph.add_output(gradient)
    found = Session(graph).run({"x": np.ones((1, 1, 4, 4), np.float32)})[gradient.name]
    expected = np.zeros((4, 4))
    expected[: out * stride : stride, : out * stride : stride] = 1
    np.testing.assert_array_equal(found[0, 0], expected)


@pytest.mark.parametrize("op, attribute", [("AveragePool", "ceil_mode"), ("MaxPool", "storage_order")])
def test_refusals_name_the_node(op: str, attribute: str) -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (1, 1, 5, 5))
    y = graph.op(op, x, name="pool", kernel_shape=[2, 2], **{attribute: 1})
    graph.set_type(y, DType.FLOAT, (1, 1, 4, 4))
    loss = graph.op("ReduceSum", y, keepdims=0)
    graph.set_type(loss, DType.FLOAT, ())
    with pytest.raises(GradientError, match=rf"'pool' \({op}\).*{attribute}"):
        differentiate(graph, loss, [x])
