"""FuseNormalization: layer norms and RMS norms as they are spelt, and what must stay."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from onnxslim.ir.graph import DType, Graph, Value
from onnxslim.ir.onnx_io import to_proto
from passes.simplify import FuseNormalization, simplify


def number(b, x: float) -> Value:
    return b.constant(np.float32(x))


def mean(b, x: Value, axes: list[int]) -> Value:
    if b.graph.opset >= 18:
        return b.graph.op("ReduceMean", x, b.constant(np.array(axes)), keepdims=1)
    return b.graph.op("ReduceMean", x, axes=axes, keepdims=1)


def normalized(
    b, x: Value, axes: list[int], *, square: str = "Pow", root: str = "Sqrt", twice: bool = False, rms: bool = False
) -> Value:
    g = b.graph
    d = x if rms else g.op("Sub", x, mean(b, x, axes))
    other = g.op("Sub", x, mean(b, x, axes)) if twice else d
    squared = g.op("Pow", other, number(b, 2)) if square == "Pow" else g.op("Mul", other, other)
    variance = g.op("Add", mean(b, squared, axes), number(b, 1e-5))
    if root == "Sqrt":
        return g.op("Div", d, g.op("Sqrt", variance))
    if root == "Pow":
        return g.op("Div", d, g.op("Pow", variance, number(b, 0.5)))
    if root == "Reciprocal":
        return g.op("Mul", g.op("Reciprocal", g.op("Sqrt", variance)), d)
    if root == "one over":
        return g.op("Mul", d, g.op("Div", number(b, 1), g.op("Sqrt", variance)))
    return g.op("Mul", d, g.op("Pow", variance, number(b, -0.5)))


def layer_norm(
    build, axes: list[int], gamma: tuple[int, ...] | None, beta: tuple[int, ...] | None, opset: int = 18, **spelling
) -> Graph:
    b = build("N", 5, 4, 6, opset=opset)
    y = normalized(b, b.x, axes, **spelling)
    if gamma is not None:
        y = b.graph.op("Mul", y, b.weight(*gamma, name="gamma"))
    if beta is not None:
        y = b.graph.op("Add", b.weight(*beta, name="beta"), y)
    b.graph.set_type(y, DType.FLOAT, ["N", 5, 4, 6])
    return b.finish(y)


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("root", ["Sqrt", "Pow", "Reciprocal", "one over", "inverse"])
@pytest.mark.parametrize("twice", [False, True])
def test_spellings(square: str, root: str, twice: bool, build, ops, largest_error) -> None:
    graph = layer_norm(build, [-1], (6,), (6,), square=square, root=root, twice=twice)
    before = graph.copy()
    assert FuseNormalization()(graph).rewrites == 1
    assert ops(graph) == ["LayerNormalization"]
    assert largest_error(before, graph) <= 1e-5


@pytest.mark.parametrize(
    ("axes", "gamma", "beta"),
    [
        ([3], (6,), (6,)),
        ([-1], None, None),
        ([-1], (6,), None),
        ([-1], None, (6,)),
        ([2, 3], (4, 6), (4, 6)),
        ([-2, -1], (6,), (4, 1)),
        ([1, 2, 3], (5, 4, 6), (1, 1, 6)),
        ([-1], (1, 1, 1, 6), (1,)),
    ],
)
@pytest.mark.parametrize("opset", [17, 18])
def test_axes_and_parameters(axes: list[int], gamma, beta, opset: int, build, ops, largest_error) -> None:
    graph = layer_norm(build, axes, gamma, beta, opset)
    before = graph.copy()
    assert FuseNormalization()(graph).rewrites == 1
    assert ops(graph) == ["LayerNormalization"]
    assert largest_error(before, graph) <= 1e-5


def test_an_opset_without_the_op_is_left(build, ops) -> None:
    graph = layer_norm(build, [-1], (6,), (6,), 16)
    before = sorted(ops(graph))
    simplify(16)(graph)
    assert sorted(ops(graph)) == before


def test_axes_that_are_not_the_last_are_refused(build) -> None:
    outcome = FuseNormalization()(layer_norm(build, [1], (5, 1, 1), None))
    assert outcome.rewrites == 0
    assert "not over the last ones" in outcome.refused[0].why


def test_scale_over_other_axes_is_retained(build) -> None:
    graph = layer_norm(build, [-1], (4, 6), None)
    assert FuseNormalization()(graph).rewrites == 1  # the part without γ
    assert [node.op for node in graph.nodes()] == ["LayerNormalization", "Mul"]


def test_a_step_that_is_read_elsewhere_is_refused(build) -> None:
    b = build("N", 6)
    y = normalized(b, b.x, [-1])
    root = b.graph.operand(b.graph.producer(y), 1)
    outcome = FuseNormalization()(b.finish(y, root))
    assert outcome.rewrites == 0
    assert "read elsewhere" in outcome.refused[0].why


def test_a_mean_of_something_else_is_retained(build, ops) -> None:
    b = build("N", 6)
    g = b.graph
    d = g.op("Sub", b.x, mean(b, g.op("Abs", b.x), [-1]))
    y = g.op("Div", d, g.op("Sqrt", g.op("Add", mean(b, g.op("Mul", b.x, b.x), [-1]), number(b, 1e-5))))
    graph = b.finish(y)
    assert FuseNormalization()(graph).rewrites == 0


@pytest.mark.parametrize("root", ["Sqrt", "Reciprocal", "inverse"])
@pytest.mark.parametrize("gamma", [(6,), None])
def test_rms_norm(root: str, gamma: tuple[int, ...] | None, build, ops) -> None:
    graph = layer_norm(build, [-1], gamma, None, 23, rms=True, root=root, square="Mul")
    graph.ir_version = 11
    before = to_proto(graph)
    assert FuseNormalization()(graph).rewrites == 1
    assert ops(graph) == ["RMSNormalization"]
    x = {"x": np.random.default_rng(2).normal(size=(2, 5, 4, 6)).astype(np.float32)}
    expected, found = (ReferenceEvaluator(model).run(None, x)[0] for model in (before, to_proto(graph)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # float32, in numpy


def test_rms_norm_waits_for_opset_23(build) -> None:
    assert FuseNormalization()(layer_norm(build, [-1], (6,), None, 22, rms=True)).rewrites == 0
