"""Every model file trains: it is prepared, its step is built and made, and the loss falls as its gradient says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from onnxslim.ir.graph import Array, Graph, Role
from onnxslim.ir.onnx_io import read
from onnxslim.runtime.session import Session
from onnxslim.stages.base import prepared
from onnxslim.stages.train import mark_roles
from onnxslim.training.optimizers import Sgd
from onnxslim.training.ports import Kind, Port
from onnxslim.training.state import State
from onnxslim.training.step import Step, StepOptions, build_step
from onnxslim.training.update import UpdatePlan
from onnxslim.training.workers import Engine
from passes.distill import CrossEntropy, MeanSquare

BATCH = 3  # of which no exporter knew


def students_step(student: Graph) -> Step:
    """Cross-entropy where classes come out, else the mean square to a target that is fed."""
    (output,) = student.outputs
    if output.shape is not None and len(output.shape) == 2:
        return build_step(student, BATCH, StepOptions((CrossEntropy(),)))
    options = StepOptions((MeanSquare(against="teacher"),), teacher_as_input=True, labelled=False)
    return build_step(student, BATCH, options, student)


def with_random_weights(student: Graph, rng: np.random.Generator) -> None:
    """Of He's scale, so that the signals of a network which nobody trained do not die away."""
    for value in student.initializers():
        shape = value.static_shape
        if value.role is Role.PARAMETER and len(shape) > 1:
            fan_in = math.prod(shape[1:]) if len(shape) > 2 else min(shape)
            student.set_array(value, (rng.normal(size=shape) * (2 / fan_in) ** 0.5).astype(np.float32))


def random_feeds(step: Step, rng: np.random.Generator) -> dict[Port, Array]:
    feeds: dict[Port, Array] = {}
    for port in step.data:
        shape, is_label = step.value(port).static_shape, port.kind is Kind.LABEL
        feeds[port] = rng.integers(0, 10, shape) if is_label else rng.normal(size=shape).astype(np.float32)
    return feeds


def test_it_steps_along_a_right_gradient(model_path: Path) -> None:
    rng = np.random.default_rng(0)
    student = prepared(read(model_path))
    mark_roles(student)
    if "structures" in model_path.parts:
        with_random_weights(student, rng)
    step, optimizer = students_step(student), Sgd(weight_decay=0.0)
    feeds, state = random_feeds(step, rng), State.of(student, optimizer)
    assert any(port.kind in (Kind.LABEL, Kind.TEACHER) for port in feeds)

    session = Session(step.graph, fuse_qdq=False)
    arrays = state.arrays
    found = step.found(session.run(step.fed(feeds, arrays)))
    loss = float(found[Port(Kind.LOSS)])
    gradients = {p.belongs_to: g.astype(np.float64).reshape(arrays[p.belongs_to].shape) for p, g in found.items()
                 if p.kind is Kind.GRADIENT}  # fmt: skip
    assert set(gradients) == {port for rule in step.updates for port in rule.learns}
    way = {  # each weight by its own size, so that none is moved much and none stays
        p: g / max(float(np.linalg.norm(g)), 1e-30) * np.linalg.norm(arrays[p]) for p, g in gradients.items()
    }
    slope = sum(float((gradients[p] * way[p]).sum()) for p in gradients)
    errors = []
    for change in (3e-3, 1e-3, 1e-2, 3e-4, 1e-4, 3e-5):  # few ReLUs switch, and float32 still sees it
        size = change * loss / slope
        ends = []
        for sign in (1, -1):
            moved = {p: (arrays[p] + sign * size * way[p]).astype(np.float32) for p in way}
            name = step.ports[Port(Kind.LOSS)]
            ends.append(float(session.run(step.fed(feeds, arrays | moved), [name])[name]))
        errors.append(abs((ends[0] - ends[1]) / (2 * size) / slope - 1))
        if errors[-1] <= 1e-2:
            break
    assert min(errors) <= 1e-2, errors

    engine = Engine([step], UpdatePlan(step.updates, (1.0,), optimizer), arrays)
    before = engine.compute(feeds)["loss"]
    np.testing.assert_allclose(before, loss, rtol=1e-5)
    rate = 3e-5 * before / sum(float((g * g).sum()) for g in gradients.values())
    engine.apply(rate, 1)
    after = engine.compute(feeds)["loss"]
    engine.close()
    np.testing.assert_allclose(before - after, 3e-5 * before * _lookahead(optimizer), rtol=0.5)


def _lookahead(optimizer: Sgd) -> float:
    """Of a first step with momentum m: Nesterov's is 1 + m times the gradient's."""
    return 1 + optimizer.momentum if optimizer.nesterov else 1.0
