"""FuseGemm: a product and a bias, where a Gemm can say it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from passes.simplify import FuseGemm, InferShapes


def test_every_model_file(model_path: Path, run_on_file, largest_error) -> None:
    before, after, _ = run_on_file(InferShapes(), model_path)
    FuseGemm()(after)
    assert largest_error(before, after) <= 1e-5


def biased(build, x: tuple[object, ...], bias: tuple[int, ...], left: bool = False, taps: bool = False):
    b = build(*x)
    y = b.graph.op("MatMul", b.x, b.weight(3, 4), name="product")
    c = b.constant(b.rng.normal(size=bias).astype(np.float32))
    return b.finish(
        b.graph.op("Add", *((c, y) if left else (y, c)), name="add"), *([b.graph.op("Abs", y)] if taps else [])
    )


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("bias", [(4,), (1, 4)])
def test_fires(bias: tuple[int, ...], left: bool, build, ops, largest_error) -> None:
    graph = biased(build, ("N", 3), bias, left)
    before = graph.copy()
    assert FuseGemm()(graph).rewrites == 1
    assert ops(graph) == ["Gemm"]
    assert largest_error(before, graph) <= 1e-5


@pytest.mark.parametrize(("x", "bias"), [((2, 5, 3), (4,)), ((1, 3), (2, 4)), (("N", 3), (1,)), (("N", 3), (1, 1, 4))])
def test_retained(x: tuple[object, ...], bias: tuple[int, ...], build) -> None:
    assert FuseGemm()(biased(build, x, bias)).rewrites == 0


def test_a_product_that_is_read_elsewhere_is_refused(build) -> None:
    outcome = FuseGemm()(biased(build, ("N", 3), (4,), taps=True))
    assert outcome.rewrites == 0
    assert "'add'" in outcome.refused[0].where
    assert "read elsewhere" in outcome.refused[0].why


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("x", [("N", 5, 3), (2, 5, 3), (2, "T", 3), ("N", 2, 4, 3), (2, 2, 2, 2, 3)])
def test_any_rank(x: tuple[object, ...], left: bool, build, ops, largest_error) -> None:
    graph = biased(build, x, (4,), left)
    before = graph.copy()
    assert FuseGemm(any_rank=True)(graph).rewrites == 1
    assert ops(graph) == ["Reshape", "Gemm", "Reshape"]
    assert largest_error(before, graph) <= 1e-5
    InferShapes()(graph)
    assert graph.outputs[0].shape == (*x[:-1], 4)


@pytest.mark.parametrize("op", ["Relu", "Clip"])
@pytest.mark.parametrize("taps", [False, True])
def test_an_activation_stands_before_the_second_reshape(op: str, taps: bool, build, ops, largest_error) -> None:
    b = build("N", 5, 3)
    y = b.graph.op("Add", b.graph.op("MatMul", b.x, b.weight(3, 4)), b.weight(4, name="b"))
    limits = [b.constant(np.float32(v)) for v in (0, 1)] if op == "Clip" else []
    z = b.graph.op(op, y, *limits, name="act")
    graph = b.finish(b.graph.op("Neg", z), *([y] if taps else []))
    before = graph.copy()
    assert FuseGemm(any_rank=True)(graph).rewrites == 1
    expected = ["Reshape", "Gemm", op, "Reshape", "Neg"]
    assert ops(graph) == (["Reshape", "Gemm", "Reshape", op, "Neg"] if taps else expected)
    assert largest_error(before, graph) <= 1e-5


@pytest.mark.parametrize("x", [("N", "T", 3), (0, 5, 3), (None, None, 3)])
def test_two_free_axes_are_retained(x: tuple[object, ...], build) -> None:
    assert FuseGemm(any_rank=True)(biased(build, x, (4,))).rewrites == 0
