"""EliminateNeutral: + 0, · 1 and their kin, where they change neither number nor shape."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.ir.graph import DType, Graph
from passes.simplify import EliminateNeutral, simplify


def built(build, op: str, constant: np.ndarray, x: tuple[object, ...] = ("N", 4, 6), left: bool = False) -> Graph:
    b = build(*x)
    c = b.constant(constant)
    operands = (c, b.graph.op("Abs", b.x)) if left else (b.graph.op("Abs", b.x), c)
    return b.finish(b.graph.op("Neg", b.graph.op(op, *operands)))


@pytest.mark.parametrize("shape", [(), (1,), (6,), (4, 1), (1, 4, 6), (1, 1, 1)])
@pytest.mark.parametrize(("op", "number"), [("Add", 0), ("Sub", 0), ("Mul", 1), ("Div", 1), ("Pow", 1)])
def test_fires(op: str, number: float, shape: tuple[int, ...], build, ops, largest_error) -> None:
    graph = built(build, op, np.full(shape, number, np.float32))
    before = graph.copy()
    assert EliminateNeutral()(graph).rewrites == 1
    assert ops(graph) == ["Abs", "Neg"]
    assert largest_error(before, graph) == 0


@pytest.mark.parametrize(("op", "number"), [("Add", 0), ("Mul", 1)])
def test_the_constant_may_come_first(op: str, number: float, build, ops) -> None:
    graph = built(build, op, np.full(6, number, np.float32), left=True)
    assert EliminateNeutral()(graph).rewrites == 1


@pytest.mark.parametrize(
    ("op", "constant", "x", "left"),
    [
        ("Add", np.zeros((2, 1, 1, 1), np.float32), ("N", 4, 6), False),  # another rank
        ("Add", np.zeros((3, 1, 1), np.float32), ("N", 4, 6), False),  # a batch of 1 would become 3
        ("Mul", np.ones(6, np.float32), ("N", 4, 1), False),
        ("Mul", np.array([1, 1, 1, 1, 1, 2], np.float32), ("N", 4, 6), False),
        ("Add", np.ones(6, np.float32), ("N", 4, 6), False),
        ("Sub", np.zeros(6, np.float32), ("N", 4, 6), True),
        ("Div", np.ones(6, np.float32), ("N", 4, 6), True),
        ("Pow", np.ones(6, np.float32), ("N", 4, 6), True),
    ],
)
def test_retained(op: str, constant: np.ndarray, x: tuple[object, ...], left: bool, build) -> None:
    assert EliminateNeutral()(built(build, op, constant, x, left)).rewrites == 0


def test_a_power_of_another_type_is_retained_where_it_is_not_read_as_one(build) -> None:
    assert EliminateNeutral()(built(build, "Pow", np.ones((), np.int64))).rewrites == 0


def test_integers_count_too(build, ops) -> None:
    b = build("N", 4)
    x = b.graph.op("Cast", b.x, to=int(DType.INT64))
    y = b.graph.op("Add", x, b.constant(np.zeros(4, np.int64)))
    b.graph.set_type(y, DType.INT64)
    graph = b.finish(b.graph.op("Cast", y, to=int(DType.FLOAT)))
    simplify()(graph)
    assert ops(graph) == ["Cast", "Cast"]
