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
