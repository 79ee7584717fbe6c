"""FlattenToReshape: the same shape, by an op that moves integers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.ir.graph import Dim, DType, Graph
from onnxslim.runtime.session import Session
from passes.quantize import FlattenToReshape


def flatten(shape: list[Dim] | None, axis: int) -> Graph:
    graph = Graph()
    y = graph.op("Flatten", graph.add_input("x", DType.FLOAT, shape), axis=axis)
    graph.set_type(y, DType.FLOAT, None)
    graph.add_output(y)
    return graph


@pytest.mark.parametrize(
    ("shape", "axis", "target"),
    [(["N", 3, 2], 1, [0, 6]), (["N", 3, "h"], 1, [0, -1]), ([2], 1, [0, 1]), (["N", 3, 2], -2, [0, 6])],
)
def test_fires(shape: list[Dim], axis: int, target: list[int]) -> None:
    graph = flatten(shape, axis)
    x = np.arange(12, dtype=np.float32).reshape([2, 3, 2] if len(shape) == 3 else [12])
    x = x[:2] if len(shape) == 1 else x
    (before,) = Session(graph).run({"x": x}).values()
    assert FlattenToReshape()(graph).rewrites == 1
    (node,) = graph.nodes()
    given = graph.constant_of(graph.operand(node, 1))
    assert given is not None
    assert given.tolist() == target
    (after,) = Session(graph).run({"x": x}).values()
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(("shape", "axis"), [(["N", 3, 2], 2), (["N", 3, 2], 0), (None, 1)])
def test_retained(shape: list[Dim] | None, axis: int) -> None:
    assert FlattenToReshape()(flatten(shape, axis)).rewrites == 0
