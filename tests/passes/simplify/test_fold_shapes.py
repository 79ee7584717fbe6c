"""FoldShapes: shape arithmetic around a dynamic batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxslim.ir.rewrite import Pipeline
from onnxslim.runtime.checker import random_feeds
from passes.simplify import EliminateDead, FoldConstants, FoldShapes, InferShapes


def test_every_model_file(model_path: Path, run_on_file, largest_error) -> None:
    steps = Pipeline((InferShapes(), FoldConstants(), FoldShapes(), EliminateDead()))
    before, after, _ = run_on_file(steps, model_path)
    assert not [n for n in after.nodes() if n.op == "Shape"]
    for batch in (2, 3):
        if after.inputs[0].shape[0] in (2, batch) or not isinstance(after.inputs[0].shape[0], int):
            feeds = random_feeds(before, batch=batch)
            assert largest_error(before, after, feeds) <= 1e-5


def shuffled(b: object) -> object:
    """ShuffleNet's channel shuffle as exporters write it."""
    g = b.graph
    shape = g.op("Shape", b.x, name="shape")
    batch, channels = (g.op("Gather", shape, b.constant(np.array([i])), name=f"axis{i}") for i in (0, 1))
    per_group = g.op("Div", channels, b.constant(np.array([2])), name="per_group")
    target = g.op(
        "Concat", batch, b.constant(np.array([2])), per_group, b.constant(np.array([4])), name="target", axis=0
    )
    return g.op("Reshape", b.x, target, name="reshape")


def test_one_unknown_axis_becomes_minus_one(build, largest_error) -> None:
    b = build("N", 6, 4)
    graph = b.finish(shuffled(b))
    before = graph.copy()
    assert FoldShapes()(graph).rewrites == 3  # axis1, per_group, and the Reshape's target
    EliminateDead()(graph)
    assert [n.op for n in graph.nodes()] == ["Reshape"]
    assert graph.operand(graph.nodes()[0], 1).array.tolist() == [-1, 2, 3, 4]
    assert largest_error(before, graph) == 0


def test_axes_that_are_the_inputs_own_become_zero(build, largest_error) -> None:
    b = build("N", "T", 6)
    g = b.graph
    shape = g.op("Shape", b.x, name="shape")
    axes = [g.op("Gather", shape, b.constant(np.array([i])), name=f"axis{i}") for i in (0, 1)]
    target = g.op("Concat", *axes, b.constant(np.array([2, -1])), name="target", axis=0)
    graph = b.finish(g.op("Reshape", b.x, target, name="reshape"))
    before = graph.copy()
    FoldShapes()(graph)
    assert graph.operand(graph.node_named("reshape"), 1).array.tolist() == [0, 0, 2, -1]
    assert largest_error(before, graph) == 0


def test_two_unknown_axes_elsewhere_are_retained(build) -> None:
    b = build("N", "T", 6)
    g = b.graph
    shape = g.op("Shape", b.x, name="shape")
    axes = [g.op("Gather", shape, b.constant(np.array([i])), name=f"axis{i}") for i in (1, 0)]
    graph = b.finish(g.op("Reshape", b.x, g.op("Concat", *axes, b.constant(np.array([6])), axis=0), name="reshape"))
    assert FoldShapes()(graph).rewrites == 0


def test_allowzero_is_retained(build) -> None:
    b = build("N", 6, 4)
    reshaped = shuffled(b)
    b.graph.set_attribute(b.graph.producer(reshaped), "allowzero", 1)
    graph = b.finish(reshaped)
    FoldShapes()(graph)
    assert graph.operand(graph.node_named("reshape"), 1).array is None


@pytest.mark.parametrize("index, folds", [(0, False), (1, True)])
def test_a_shape_that_is_an_output_is_retained(index: int, folds: bool, build) -> None:
    b = build("N", 6)
    picked = b.graph.op("Gather", b.graph.op("Shape", b.x, name="s"), b.constant(np.array([index])), name="picked")
    inner = b.graph.op("Add", picked, b.constant(np.array([1])), name="inner")
    graph = b.finish(b.graph.op("Mul", inner, inner, name="y"))
    FoldShapes()(graph)
    assert graph.producer(graph.value("y")) is not None
    assert (graph.value("inner").array is not None) is folds
