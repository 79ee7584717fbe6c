"""Losses as small specifications that build themselves into a graph.

A loss reads taps of the combined graph — the outputs of student and teacher, any other value of theirs, the labels —
and yields a float32 scalar, the mean over the batch. All are made of ops with gradient rules.

Ours are defined on logits: of a model that ends in a softmax they take what the softmax reads (`logits_of`). A loss of
the user's own, an ONNX file, gets the outputs as the models give them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
from pydantic import Field

from onnxslim.errors import OptionError, UnsupportedError
from onnxslim.ir.graph import DType, Graph, Value
from onnxslim.ir.onnx_io import read
from onnxslim.options import LARGEST, InputPath, declared
from passes.distill.logits import logits_of, require_logits
from passes.distill.taps import LABEL, STUDENT, TEACHER, Loss, Tap, Taps, Weight

__all__ = ["CrossEntropy", "MeanSquare", "OnnxLoss", "SoftLabel", "attach_losses"]


_SOURCES = ("student", "teacher", "data", "label")
Temperature: TypeAlias = Annotated[float, Field(gt=0, le=LARGEST)]


@declared
class CrossEntropy:
    """Softmax cross-entropy with int64 labels [N] for logits [N, C]; `label_smoothing` ε gives the targets
    (1 − ε)·onehot + ε/C (Szegedy et al. 2016)."""

    weight: Weight = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="Of the targets.")] = 0.0
    name: ClassVar[str] = "cross_entropy"
    reads: ClassVar[tuple[Tap, ...]] = (LABEL,)

    def build(self, graph: Graph, taps: Taps) -> Value:
        logits, label = require_logits(graph, taps.student, self.name), taps.need(LABEL, self.name)
        samples, classes = _logits_shape(logits, self.name)
        column = graph.op("Unsqueeze", label, _ints(graph, 1), name=f"{self.name}/column")
        numbers = graph.add_constant(f"{self.name}/classes", np.arange(classes, dtype=np.int64))
        hit = graph.op("Equal", column, numbers, name=f"{self.name}/hit")
        target = graph.op("Cast", hit, name=f"{self.name}/onehot", to=int(DType.FLOAT))
        if self.label_smoothing:
            keep = graph.add_constant(f"{self.name}/keep", np.float32(1 - self.label_smoothing))
            share = graph.add_constant(f"{self.name}/share", np.float32(self.label_smoothing / classes))
            target = graph.op(
                "Add", graph.op("Mul", target, keep, name=f"{self.name}/kept"), share, name=f"{self.name}/smooth"
            )
        return _cross_entropy(graph, target, logits, samples, self.name)


@declared
class MeanSquare:
    """Mean of (student − target)², the target being the teacher's output (`against="teacher"`) or float labels.

    Against a teacher, logits are compared, whether student or teacher end in a softmax or not (Ba and Caruana 2014);
    any other output as it is. Float labels are compared with the output as it is.
    """

    weight: Weight = 1.0
    against: Annotated[Literal["teacher", "label"], Field(exclude=True)] = "teacher"
    name: ClassVar[str] = "mean_square"

    @property
    def reads(self) -> tuple[Tap, ...]:
        return (Tap(self.against),)

    def build(self, graph: Graph, taps: Taps) -> Value:
        target = taps.need(Tap(self.against), self.name)
        if not target.dtype.is_float:
            raise UnsupportedError(
                f"The loss '{self.name}' compares numbers, but the labels are {target.dtype.name.lower()} classes"
            )
        student = taps.student
        if self.against == "teacher":
            student, target = logits_of(graph, student), logits_of(graph, target)
        apart = graph.op("Sub", student, target, name=f"{self.name}/apart")
        return graph.op(
            "ReduceMean", graph.op("Mul", apart, apart, name=f"{self.name}/square"), name=self.name, keepdims=0
        )


@declared
class SoftLabel:
    """The teacher's class probabilities as targets; p = softmax(teacher / T_t), q = softmax(student / T_s).

    "kl": KL(p ‖ q)·T_s·T_t, so that the gradient's size does not depend on the temperature (Hinton et
    al. 2015). "cross_entropy": −Σ p·log q, PaddleSlim's form.
    """

    weight: Weight = 0.7
    student_temperature: Annotated[Temperature, Field(description="That the student's logits are divided by.")] = 4.0
    teacher_temperature: Annotated[Temperature, Field(description="That the teacher's logits are divided by.")] = 4.0
    mode: Annotated[
        Literal["kl", "cross_entropy"],
        Field(description="KL divergence times both temperatures, or the plain cross-entropy form of PaddleSlim."),
    ] = "kl"
    name: ClassVar[str] = "soft_label"
    reads: ClassVar[tuple[Tap, ...]] = (TEACHER,)

    def build(self, graph: Graph, taps: Taps) -> Value:
        teacher = require_logits(graph, taps.need(TEACHER, self.name), self.name)
        student = require_logits(graph, taps.student, self.name)
        samples, _ = _logits_shape(student, self.name)
        if teacher.shape != student.shape:
            raise UnsupportedError(
                f"The loss '{self.name}' compares the student's output '{student.name}' of shape {student.shape} "
                f"with the teacher's '{teacher.name}' of shape {teacher.shape}: they must be equal"
            )
        cool = _scaled(graph, student, 1 / self.student_temperature, f"{self.name}/student")
        warm = _scaled(graph, teacher, 1 / self.teacher_temperature, f"{self.name}/teacher")
        target = graph.op("Softmax", warm, name=f"{self.name}/target", axis=1)
        cross = _cross_entropy(graph, target, cool, samples, self.name)
        if self.mode == "cross_entropy":
            return cross
        log_target = graph.op("LogSoftmax", warm, name=f"{self.name}/log_target", axis=1)
        product = graph.op("Mul", target, log_target, name=f"{self.name}/product")
        entropy = _scaled(graph, _total(graph, product, f"{self.name}/sum"), 1 / samples, f"{self.name}/entropy")
        divergence = graph.op("Add", cross, entropy, name=f"{self.name}/divergence")
        return _scaled(graph, divergence, self.student_temperature * self.teacher_temperature, f"{self.name}/kl")


@declared
class OnnxLoss:
    """The user's loss: an ONNX file whose first output is a float32 scalar, and whose inputs are named `student` and
    maybe `teacher`, `label`, or `student:NAME`, `teacher:NAME` and `data:NAME` for other values. It must use the
    working opset, 18. It reads the outputs as the models give them: probabilities, where a model ends in a softmax."""

    path: Annotated[
        str,
        InputPath(),
        Field(description="An ONNX file with the inputs student, label (and teacher) and a scalar output."),
    ]
    weight: Weight = 1.0
    name: ClassVar[str] = "onnx"

    @property
    def reads(self) -> tuple[Tap, ...]:
        return tuple(tap for tap in self._inputs(read(Path(self.path))).values() if tap != STUDENT)

    def _inputs(self, loss: Graph) -> dict[str, Tap]:
        """By the name of each, what it gets."""
        names = [v.name for v in loss.inputs if v.array is None]
        found = {name: Tap(*name.split(":", 1)) for name in names}
        odd = [tap for tap in found.values() if tap.source not in _SOURCES or (tap.name and tap.source == "label")]
        if odd or not any(tap.source == "student" for tap in found.values()):
            raise OptionError(
                "",
                f"The loss {self.path} has the inputs {names}; expected `student`, and maybe `teacher` and `label`, or "
                "`student:NAME` and `teacher:NAME` for values inside of the models, `data:NAME` for an input",
            )
        return found

    def build(self, graph: Graph, taps: Taps) -> Value:
        loss = read(Path(self.path))
        feeds = {name: taps.need(tap, self.path) for name, tap in self._inputs(loss).items()}
        scalar = graph.merge(loss, "loss/", feeds)[loss.outputs[0].name]
        return scalar if scalar.shape == () else graph.op("ReduceSum", scalar, name=f"{self.name}/scalar", keepdims=0)


def attach_losses(graph: Graph, losses: Sequence[Loss], taps: Taps) -> tuple[Value, dict[str, Value]]:
    """Adds the weighted sum of the losses; returns it, and each unweighted term by the loss's name; of a second loss of
    one name, with a number.

    A loss of weight 0 is left out, not multiplied: 0 · infinity is NaN. OptionError where none is left.
    """
    active = [loss for loss in losses if loss.weight > 0]
    if not active:
        raise OptionError("", "Every loss has the weight 0 or is missing: there is nothing to train towards")
    terms: dict[str, Value] = {}
    weighted = []
    for number, loss in enumerate(active):
        before = sum(other.name == loss.name for other in active[:number])
        name = f"{loss.name}_{before + 1}" if before else loss.name
        term = loss.build(graph, replace(taps, loss=name))
        if graph.is_input(term) or term.array is not None or term in terms.values():
            term = graph.op("Identity", term, name=f"{loss.name}/term")
        graph.set_type(term, DType.FLOAT, ())
        terms[name] = term
        weight = graph.add_constant(f"{loss.name}/weight", np.float32(loss.weight))
        weighted.append(graph.op("Mul", term, weight, name=f"{loss.name}/weighted"))
    total = graph.op("Sum", *weighted, name="loss")
    graph.set_type(total, DType.FLOAT, ())
    return total, terms


def _logits_shape(logits: Value, loss: str) -> tuple[int, int]:
    shape = logits.static_shape
    if len(shape) != 2:
        raise UnsupportedError(
            f"The loss '{loss}' needs logits [batch, classes], but '{logits.name}' has the shape {shape}"
        )
    return shape[0], shape[1]


def _cross_entropy(graph: Graph, target: Value, logits: Value, samples: int, name: str) -> Value:
    """−Σ target · log softmax(logits) / samples."""
    log_p = graph.op("LogSoftmax", logits, name=f"{name}/log_p", axis=1)
    product = graph.op("Mul", target, log_p, name=f"{name}/weighted")
    return _scaled(graph, _total(graph, product, f"{name}/total"), -1 / samples, f"{name}/mean")


def _total(graph: Graph, value: Value, name: str) -> Value:
    return graph.op("ReduceSum", value, name=name, keepdims=0)


def _scaled(graph: Graph, value: Value, factor: float, name: str) -> Value:
    return graph.op("Mul", value, graph.add_constant(f"{name}/factor", np.float32(factor)), name=name)


def _ints(graph: Graph, *numbers: int) -> Value:
    return graph.add_constant("axes", np.array(numbers, np.int64))
