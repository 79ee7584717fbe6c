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
from onnxslim.training.state import State
from onnxslim.training.step import Step, StepOptions, build_step
from onnxslim.training.update import UpdatePlan
from onnxslim.training.workers import Engine
from passes.distill import PREFIX, CrossEntropy, MeanSquare

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


def random_feeds(step: Step, rng: np.random.Generator) -> dict[str, Array]:
    feeds: dict[str, Array] = {}
    for name in step.data:
        value = step.graph.value(name)
        shape = value.static_shape
        feeds[name] = rng.integers(0, 10, shape) if name == "label" else rng.normal(size=shape).astype(np.float32)
    return feeds


def test_it_steps_along_a_right_gradient(model_path: Path) -> None:
    rng = np.random.default_rng(0)
    student = prepared(read(model_path))
    mark_roles(student)
    if "structures" in model_path.parts:
        with_random_weights(student, rng)
    step, optimizer = students_step(student), Sgd(weight_decay=0.0)
    feeds, state = random_feeds(step, rng), State.of(student, optimizer)
    assert any(name == "label" or name.startswith(PREFIX) for name in feeds)

    session = Session(step.graph, fuse_qdq=False)
    arrays = step.fed_from(state.arrays)
    found = session.run({**feeds, **arrays})
    gradients = {n[5:]: g.astype(np.float64).reshape(arrays[n[5:]].shape) for n, g in found.items() if n[:5] == "grad."}
    assert set(gradients) == {spec.name for spec in step.trained.parameters}
    way = {  # each weight by its own size, so that none is moved much and none stays
        n: g / max(float(np.linalg.norm(g)), 1e-30) * np.linalg.norm(arrays[n]) for n, g in gradients.items()
    }
    slope = sum(float((gradients[n] * way[n]).sum()) for n in gradients)
    errors = []
    for change in (3e-3, 1e-3, 1e-2, 3e-4, 1e-4, 3e-5):  # few ReLUs switch, and float32 still sees it
        size = change * float(found["loss"]) / slope
        ends = []
        for sign in (1, -1):
            moved = {n: (arrays[n] + sign * size * way[n]).astype(np.float32) for n in way}
            ends.append(float(session.run({**feeds, **arrays, **moved}, ["loss"])["loss"]))
        errors.append(abs((ends[0] - ends[1]) / (2 * size) / slope - 1))
        if errors[-1] <= 1e-2:
            break
    assert min(errors) <= 1e-2, errors

    trained = step.trained
    plan = UpdatePlan(
        trained.parameters, trained.batchnorms, trained.observers, trained.weights, shares=(1.0,), optimizer=optimizer
    )
    engine = Engine([step], plan, state.arrays)
    before = engine.compute(feeds)["loss"]
    np.testing.assert_allclose(before, found["loss"], rtol=1e-5)
    rate = 3e-5 * before / sum(float((g * g).sum()) for g in gradients.values())
    engine.apply(rate, 1)
    after = engine.compute(feeds)["loss"]
    engine.close()
    np.testing.assert_allclose(before - after, 3e-5 * before * _lookahead(optimizer), rtol=0.5)


def _lookahead(optimizer: Sgd) -> float:
    """Of a first step with momentum m: Nesterov's is 1 + m times the gradient's."""
    return 1 + optimizer.momentum if optimizer.nesterov else 1.0
