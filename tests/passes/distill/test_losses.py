"""Losses and their gradients against numpy in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.errors import OptionError, UnsupportedError
from onnxslim.ir.graph import Array, DType, Graph
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
)
from passes.gradient import differentiate

SIZES = {"samples": st.integers(1, 5), "classes": st.integers(2, 6), "seed": st.integers(0, 999)}


def evaluated(losses: tuple[Loss, ...], student: Array, teacher: Array, label: Array) -> dict[str, Array]:
    """loss, loss.<name> and the gradient of the loss to the student's output, `grad`."""
    graph = Graph()
    s = graph.add_input("s", DType.FLOAT, student.shape)
    t = graph.add_input("t", DType.FLOAT, teacher.shape)
    y = graph.add_input("y", DType.of(label), label.shape)
    loss, terms = attach_losses(graph, losses, Taps({STUDENT: s, TEACHER: t, LABEL: y}))
    infer_shapes(graph)
    gradient = differentiate(graph, loss, [s])["s"]
    called = {"loss": loss, "grad": gradient, **{f"loss.{name}": term for name, term in terms.items()}}
    for value in called.values():
        graph.add_output(value)
    found = Session(graph).run({"s": student, "t": teacher, "y": label})
    return {name: found[value.name] for name, value in called.items()}


def log_softmax(x: Array) -> Array:
    x = x.astype(np.float64) - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def case(samples: int, classes: int, seed: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    s, t = (rng.normal(0, 3, (samples, classes)).astype(np.float32) for _ in range(2))
    return s, t, rng.integers(0, classes, samples)


@given(**SIZES, smoothing=st.sampled_from([0.0, 0.1, 0.7]))
def test_cross_entropy(samples: int, classes: int, seed: int, smoothing: float) -> None:
    s, t, y = case(samples, classes, seed)
    target = (1 - smoothing) * np.eye(classes)[y] + smoothing / classes
    found = evaluated((CrossEntropy(1.0, smoothing),), s, t, y)
    assert found["loss"] == pytest.approx(-(target * log_softmax(s)).sum() / samples, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(found["grad"], (np.exp(log_softmax(s)) - target) / samples, atol=1e-5)


@given(
    **SIZES,
    cool=st.sampled_from([1.0, 3.0]),
    warm=st.sampled_from([1.0, 4.0]),
    mode=st.sampled_from(["kl", "cross_entropy"]),
)
def test_soft_label(samples: int, classes: int, seed: int, cool: float, warm: float, mode: str) -> None:
    s, t, y = case(samples, classes, seed)
    p, log_q = np.exp(log_softmax(t / warm)), log_softmax(s / cool)
    expected, factor = -(p * log_q).sum() / samples, 1.0
    if mode == "kl":
        factor = cool * warm
        expected = (expected + (p * np.log(p)).sum() / samples) * factor
    found = evaluated((SoftLabel(1.0, cool, warm, mode),), s, t, y)  # type: ignore[arg-type]
    assert found["loss"] == pytest.approx(expected, rel=1e-4, abs=2e-5 * factor)
    np.testing.assert_allclose(found["grad"], factor * (np.exp(log_q) - p) / cool / samples, atol=2e-5 * factor)


@given(**SIZES)
def test_mean_square(samples: int, classes: int, seed: int) -> None:
    s, t, y = case(samples, classes, seed)
    found = evaluated((MeanSquare(1.0, "teacher"),), s, t, y)
    difference = s.astype(np.float64) - t
    assert found["loss"] == pytest.approx((difference**2).mean(), rel=1e-5)
    np.testing.assert_allclose(found["grad"], 2 * difference / difference.size, rtol=1e-4, atol=1e-6)


def test_losses_are_weighted_and_reported_unweighted() -> None:
    s, t, y = case(4, 3, 0)
    found = evaluated((CrossEntropy(0.25), SoftLabel(2.0), MeanSquare(0.0, "teacher")), s, t, y)
    assert "loss.mean_square" not in found
    total = 0.25 * found["loss.cross_entropy"] + 2 * found["loss.soft_label"]
    assert found["loss"] == pytest.approx(total, rel=1e-6)


def test_a_loss_of_the_users_own(tmp_path: Path) -> None:
    graph = Graph("absolute")
    a, b = graph.add_input("student", DType.FLOAT, (4, 3)), graph.add_input("teacher", DType.FLOAT, (4, 3))
    apart = graph.op("Abs", graph.op("Sub", a, b, name="apart"), name="size")
    graph.add_output(graph.op("ReduceMean", apart, name="mine", keepdims=0))
    infer_shapes(graph)
    write(graph, tmp_path / "loss.onnx")
    s, t, y = case(4, 3, 1)
    found = evaluated((OnnxLoss(str(tmp_path / "loss.onnx")),), s, t, y)
    assert found["loss"] == pytest.approx(np.abs(s - t).mean(), rel=1e-5)
    np.testing.assert_allclose(found["grad"], np.sign(s - t) / s.size, rtol=1e-5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    s, t, y = case(4, 3, 0)
    with pytest.raises(OptionError, match="nothing to train towards"):
        evaluated((CrossEntropy(0.0),), s, t, y)
    with pytest.raises(UnsupportedError, match=r"'t' of shape \(4, 2\): they must be equal"):
        evaluated((SoftLabel(),), s, t[:, :2], y)
    with pytest.raises(UnsupportedError, match="logits"):
        evaluated((CrossEntropy(),), s[:, :, None], t, y)
    graph = Graph("other")
    graph.add_output(graph.op("Identity", graph.add_input("wrong", DType.FLOAT, ()), name="out"))
    write(graph, tmp_path / "loss.onnx")
    with pytest.raises(OptionError, match=r"inputs \['wrong'\]; expected `student`"):
        evaluated((OnnxLoss(str(tmp_path / "loss.onnx")),), s, t, y)
