"""Losses are defined on logits: a model that ends in a softmax, however it is written, trains like one without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.onnx_io import write
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.session import Session
from passes.distill import (
    LABEL,
    STUDENT,
    TEACHER,
    CrossEntropy,
    Loss,
    MeanSquare,
    OnnxLoss,
    SoftLabel,
    Taps,
    attach_losses,
    logits_of,
    with_logits,
)
from passes.gradient import differentiate

SAMPLES, CLASSES = 4, 5
Ending = Callable[[Graph, Value], Value]


def _axis(graph: Graph, axis: int = 1) -> Value:
    return graph.add_constant("axes", np.array([axis]))


def _identity(graph: Graph, x: Value) -> Value:
    return graph.op("Identity", x)


def _softmax(graph: Graph, x: Value) -> Value:
    return graph.op("Softmax", x, axis=1)


def _last_axis(graph: Graph, x: Value) -> Value:
    return graph.op("Identity", graph.op("Cast", graph.op("Softmax", x), to=int(DType.FLOAT)))


def _reshaped(graph: Graph, x: Value) -> Value:
    """As exporters write a head of 1×1 convolutions: softmax over [N, C, 1, 1], then flattened."""
    wide = graph.op("Unsqueeze", x, graph.add_constant("two", np.array([2, 3])))
    return graph.op("Flatten", graph.op("Softmax", wide, axis=1))


def _written_out(graph: Graph, x: Value) -> Value:
    exponential = graph.op("Exp", x)
    return graph.op("Div", exponential, graph.op("ReduceSum", exponential, _axis(graph), keepdims=1))


def _stable(graph: Graph, x: Value) -> Value:
    exponential = graph.op("Exp", graph.op("Sub", x, graph.op("ReduceMax", x, _axis(graph, -1), keepdims=1)))
    total = graph.op("ReduceSum", exponential, _axis(graph), keepdims=1)
    return graph.op("Mul", graph.op("Reciprocal", total), exponential)


def _exp_of_log(graph: Graph, x: Value) -> Value:
    return graph.op("Exp", graph.op("LogSoftmax", x, axis=1))


def _log_sum_exp(graph: Graph, x: Value) -> Value:
    return graph.op("Exp", graph.op("Sub", x, graph.op("ReduceLogSumExp", x, _axis(graph), keepdims=1)))


def _log_softmax(graph: Graph, x: Value) -> Value:
    return graph.op("LogSoftmax", x, axis=1)


SOFTMAXES = [_softmax, _last_axis, _reshaped, _written_out, _stable, _exp_of_log, _log_sum_exp]


def logits(seed: int) -> Array:
    return np.random.default_rng(seed).normal(0, 3, (SAMPLES, CLASSES)).astype(np.float32)


def trained_on(losses: tuple[Loss, ...], student: Ending, teacher: Ending) -> dict[str, Array]:
    """The loss and its gradient to what the student's ending reads."""
    graph = Graph()
    s, t = (graph.add_input(name, DType.FLOAT, (SAMPLES, CLASSES)) for name in "st")
    y = graph.add_input("y", DType.INT64, (SAMPLES,))
    outputs = student(graph, s), teacher(graph, t)
    infer_shapes(graph)
    student_output, teacher_output = outputs
    taps = Taps({STUDENT: student_output, TEACHER: teacher_output, LABEL: y})
    loss, _ = attach_losses(graph, losses, taps)
    infer_shapes(graph)
    gradient = differentiate(graph, loss, [s])["s"]
    for value in (loss, gradient):
        graph.add_output(value)
    found = Session(graph).run({"s": logits(0), "t": logits(1), "y": np.arange(SAMPLES)})
    return {"loss": found[loss.name], "gradient": found[gradient.name]}


@pytest.mark.parametrize("ending", SOFTMAXES)
@pytest.mark.parametrize("loss", [CrossEntropy(), SoftLabel(), MeanSquare(1.0, "teacher")], ids=lambda loss: loss.name)
def test_a_softmax_behind_student_or_teacher_changes_no_loss(ending: Ending, loss: Loss) -> None:
    expected = trained_on((loss,), _identity, _identity)
    for student, teacher in ((ending, _identity), (_identity, ending), (ending, ending)):
        found = trained_on((loss,), student, teacher)
        for name, array in expected.items():  # the same ops on the same numbers
            np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("loss", [CrossEntropy(), SoftLabel()], ids=lambda loss: loss.name)
def test_a_log_softmax_needs_nothing(loss: Loss) -> None:
    """softmax(log softmax(x) / T) is softmax(x / T): equal to rounding."""
    expected, found = trained_on((loss,), _identity, _identity), trained_on((loss,), _log_softmax, _log_softmax)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)


def test_other_numbers_are_left_as_they_are() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (SAMPLES, CLASSES))
    exponential = graph.op("Exp", x)
    total = graph.op("ReduceSum", graph.op("Exp", graph.op("Neg", x)), _axis(graph), keepdims=1)
    both = graph.op("ReduceSum", exponential, graph.add_constant("both", np.array([0, 1])), keepdims=1)
    outputs = [graph.op("Div", exponential, total), graph.op("Div", exponential, both), graph.op("Relu", x), x]
    infer_shapes(graph)
    for output in outputs:
        assert logits_of(graph, output) is output


@pytest.mark.parametrize("op", ["Sigmoid", "HardSigmoid"])
@pytest.mark.parametrize("loss", [CrossEntropy(), SoftLabel()], ids=lambda loss: loss.name)
def test_a_probability_for_every_class_is_refused(op: str, loss: Loss) -> None:
    with pytest.raises(
        UnsupportedError, match=rf"is a {op}, which gives every class a probability of its own: train with"
    ):
        trained_on((loss,), lambda graph, x: graph.op(op, x), _identity)
    found = trained_on((MeanSquare(1.0, "teacher"),), lambda g, x: g.op(op, x), lambda g, x: g.op(op, x))
    assert np.isfinite(found["loss"])


def test_a_softmax_over_a_part_of_the_classes_is_refused() -> None:
    def pairs(graph: Graph, x: Value) -> Value:
        wide = graph.op("Unsqueeze", graph.op("Concat", x, x, axis=1), graph.add_constant("two", np.array([2])))
        halves = graph.op("Reshape", wide, graph.add_constant("halves", np.array([SAMPLES, CLASSES, 2])))
        return graph.op("Flatten", graph.op("Softmax", halves, axis=2))

    with pytest.raises(UnsupportedError, match=r"over one softmax of all classes, but node .* is over a part of them"):
        trained_on((CrossEntropy(),), pairs, _identity)


def test_a_loss_of_the_users_own_gets_the_outputs(tmp_path: Path) -> None:
    mine = Graph("mine")
    student, teacher = (mine.add_input(name, DType.FLOAT, (SAMPLES, CLASSES)) for name in ("student", "teacher"))
    mine.add_output(mine.op("ReduceMean", mine.op("Mul", student, teacher), name="product", keepdims=0))
    infer_shapes(mine)
    write(mine, tmp_path / "mine.onnx")
    found = trained_on((OnnxLoss(str(tmp_path / "mine.onnx")),), _softmax, _identity)
    probabilities = np.exp(logits(0).astype(np.float64))
    probabilities /= probabilities.sum(1, keepdims=True)
    assert found["loss"] == pytest.approx((probabilities * logits(1)).mean(), rel=1e-5)


def test_a_model_with_its_logits_for_output() -> None:
    plain = small_cnn((4,), classes=3)
    soft = plain.copy()
    output = soft.outputs[0]
    soft.remove_output(output)
    soft.rename(output, "before")
    result = soft.op("Softmax", output, name=plain.outputs[0].name, axis=1)
    soft.set_type(result, output.dtype, output.shape)
    soft.add_output(result)
    assert with_logits(plain) is plain
    images = np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)
    feeds, name = {plain.inputs[0].name: images}, plain.outputs[0].name
    np.testing.assert_array_equal(Session(with_logits(soft)).run(feeds)[name], Session(plain).run(feeds)[name])
