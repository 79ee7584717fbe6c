"""FoldAffine: factors and summands a channel, into every kind of layer, from either side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from passes.simplify import FoldAffine

LAYERS = {
    "Conv": ((2, 3, 6, 6), (4, 3, 3, 3), {}),
    "ConvTranspose": ((2, 3, 6, 6), (3, 4, 2, 2), {}),
    "Gemm": ((2, 3), (3, 4), {}),
    "Gemm, transposed": ((2, 3), (4, 3), {"transB": 1}),
}
CONSTANTS = {"one": (), "a channel": (1, 4, 1, 1), "without batch": (4, 1, 1)}


def affine(build, layer: str, op: str, shape: tuple[int, ...], left: bool, biased: bool = True, value=None):
    x, w, attributes = LAYERS[layer]
    b = build(*x)
    bias = [b.weight(4, name="b")] if biased else []
    y = b.graph.op(layer.split(",")[0], b.x, b.weight(*w), *bias, name="layer", **attributes)
    shape = tuple(d for d in shape if d != 1) if "Gemm" in layer else shape
    constant = b.constant(b.rng.uniform(0.5, 2, shape).astype(np.float32) if value is None else value)
    return b.finish(b.graph.op(op, *((constant, y) if left else (y, constant)), name="affine"))


def test_every_model_file(model_path: Path, run_on_file, largest_error) -> None:
    before, after, _ = run_on_file(FoldAffine(), model_path)
    assert largest_error(before, after) <= 1e-5


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_fires(layer: str, constant: str, op: str, left: bool, biased: bool, build, ops, largest_error) -> None:
    if op == "Div" and left:
        return
    graph = affine(build, layer, op, CONSTANTS[constant], left, biased)
    before = graph.copy()
    assert FoldAffine()(graph).rewrites == 1
    assert ops(graph) == [layer.split(",")[0]]
    assert largest_error(before, graph) <= 1e-5


@pytest.mark.parametrize(
    ("op", "value", "left", "why"),
    [
        ("Div", 2.0, True, None),
        ("Div", [[[1.0]], [[0.0]], [[1.0]], [[1.0]]], False, None),
        ("Add", [1.0, 2.0, 3.0, 4.0], False, "more than one value a channel"),
        ("Mul", [[[[[2.0]]]]], False, "more than one value a channel"),
        ("Mul", 3e38, False, "would overflow"),
    ],
)
def test_retained(op: str, value, left: bool, why: str | None, build) -> None:
    graph = affine(build, "Conv", op, (), left, value=np.array(value, np.float32))
    outcome = FoldAffine()(graph)
    assert outcome.rewrites == 0
    assert [why in r.why for r in outcome.refused] == ([True] if why else [])


def test_what_others_read_is_refused(build) -> None:
    b = build("N", 3, 6, 6)
    y = b.graph.op("Conv", b.x, b.weight(4, 3, 3, 3), name="layer")
    graph = b.finish(b.graph.op("Mul", y, b.constant(np.float32(2)), name="twice"), b.graph.op("Relu", y))
    outcome = FoldAffine()(graph)
    assert outcome.rewrites == 0
    assert outcome.refused[0].why.startswith("the output of node 'layer' (Conv) is read elsewhere")


def test_shared_and_fake_quantised_weights_are_refused(build) -> None:
    b = build("N", 4, 6, 6)
    w = b.weight(4, 4, 1, 1)
    shared = b.graph.op("Mul", b.graph.op("Conv", b.x, w), b.constant(np.float32(2)))
    gridded = b.graph.op("Conv", b.graph.op("Conv", shared, w), b.fake_quant(b.weight(4, 4, 1, 1, name="v"), 0))
    graph = b.finish(b.graph.op("Mul", gridded, b.constant(np.float32(2))))
    outcome = FoldAffine()(graph)
    assert outcome.rewrites == 0
    assert ["shared" in outcome.refused[0].why, "fake-quantised" in outcome.refused[1].why] == [True, True]
