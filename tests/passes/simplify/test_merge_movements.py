"""MergeMovements: transposes composed, reshapes overtaken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.simplify import EliminateIdentity, MergeMovements
from tests.passes.simplify.conftest import Builder, largest_error

ORDERS = st.permutations(range(4))


def test_every_model_file(model_path: Path, run_on_file, largest_error) -> None:
    before, after, _ = run_on_file(MergeMovements(), model_path)
    assert largest_error(before, after) == 0


@given(st.lists(ORDERS, min_size=2, max_size=4))
def test_transposes_compose(orders: list[list[int]]) -> None:
    b = Builder(2, 3, 4, 5)
    y = b.x
    for order in orders:
        y = b.graph.op("Transpose", y, perm=order)
    graph = b.finish(b.graph.op("Neg", y))
    before = graph.copy()
    assert MergeMovements()(graph).rewrites == len(orders) - 1
    assert [n.op for n in graph.nodes()] == ["Transpose", "Neg"]
    assert largest_error(before, graph) == 0


def test_a_transpose_and_its_inverse_vanish(build, ops) -> None:
    b = build("N", 3, 4, 5)
    there = b.graph.op("Transpose", b.x, perm=[0, 2, 3, 1])
    graph = b.finish(b.graph.op("Neg", b.graph.op("Transpose", there, perm=[0, 3, 1, 2])))
    assert MergeMovements()(graph).rewrites == 1
    assert EliminateIdentity()(graph).rewrites == 1
    assert ops(graph) == ["Neg"]


FIRST = {
    "Reshape": ([np.array([12, -1])], {}),
    "Flatten": ([], {"axis": 2}),
    "Unsqueeze": ([np.array([0])], {}),
    "Squeeze": ([np.array([2])], {}),
}


@pytest.mark.parametrize("op", FIRST)
@pytest.mark.parametrize("shared", [False, True])
def test_reshapes(op: str, shared: bool, build, ops, largest_error) -> None:
    b = build(3, 4, 1, 5)
    operands, attributes = FIRST[op]
    first = b.graph.op(op, b.x, *(b.constant(o) for o in operands), **attributes)
    second = b.graph.op("Neg", b.graph.op("Reshape", first, b.constant(np.array([-1, 4]))))
    graph = b.finish(second, *([b.graph.op("Abs", first)] if shared else []))
    before = graph.copy()
    assert MergeMovements()(graph).rewrites == 1
    assert ops(graph).count(op) == (1 if op == "Reshape" else 0) + shared
    assert largest_error(before, graph) == 0


def test_a_target_with_a_zero_is_retained(build) -> None:
    b = build(3, 4, 5)
    first = b.graph.op("Reshape", b.x, b.constant(np.array([12, 5])))
    graph = b.finish(b.graph.op("Neg", b.graph.op("Reshape", first, b.constant(np.array([0, 5, 1])))))
    assert MergeMovements()(graph).rewrites == 0
