"""MeanToPool: means over all spatial axes become the pool that has an integer kernel; others stay."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.ir.graph import DType, Graph
from onnxslim.runtime.session import Session
from passes.quantize import MeanToPool


def mean(rank: int, axes: list[int] | None, keep: int, shape: bool = True) -> Graph:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, [None, 4, *[None] * (rank - 2)] if shape else None)
    given = [] if axes is None else [graph.add_constant("axes", np.array(axes, np.int64))]
    y = graph.op("ReduceMean", x, *given, keepdims=keep, name="mean")
    graph.set_type(y, DType.FLOAT, None)
    graph.add_output(y)
    return graph


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize(("rank", "axes"), [(3, [2]), (4, [-1, 2]), (4, [3, 2]), (5, [2, -2, 4])])
def test_fires(rank: int, axes: list[int], keep: int) -> None:
    graph = mean(rank, axes, keep)
    x = np.random.default_rng(0).normal(size=[3, 4, 2, 5, 3][:rank]).astype(np.float32)
    (before,) = Session(graph).run({"x": x}).values()
    assert MeanToPool()(graph).rewrites == 1
    assert [n.op for n in graph.nodes()] == ["GlobalAveragePool", *([] if keep else ["Reshape"])]
    assert graph.find("axes") is None
    (after,) = Session(graph).run({"x": x}).values()
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("rank", "axes", "shape"),
    [(4, [1, 2, 3], True), (4, [3], True), (4, None, True), (2, [1], True), (4, [2, 3], False)],
)
def test_retained(rank: int, axes: list[int] | None, shape: bool) -> None:
    graph = mean(rank, axes, 1, shape)
    assert MeanToPool()(graph).rewrites == 0
    assert [n.op for n in graph.nodes()] == ["ReduceMean"]
