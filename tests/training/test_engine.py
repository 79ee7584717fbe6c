"""The engine's update, in rows and pieces, against one op an array."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import onnxslim.training.workers as workers
from onnxslim.data import Preprocess
from onnxslim.ir.graph import Array, DType, Graph
from onnxslim.ir.quant_math import weight_scale
from onnxslim.runtime.session import Session
from onnxslim.stages.base import prepared
from onnxslim.stages.quantize import Quantize
from onnxslim.stages.train import mark_roles
from onnxslim.training.loop import Trainer
from onnxslim.training.optimizers import AdamW, Sgd
from onnxslim.training.state import State
from onnxslim.training.step import StepOptions, build_step
from onnxslim.training.update import UpdatePlan, build_update
from onnxslim.training.workers import Engine, shares
from passes.distill import CrossEntropy
from tests.training.conftest import bright_rows


@pytest.mark.parametrize(
    "optimizer", [Sgd(clip_norm=0.1), Sgd(), AdamW(clip_norm=0.1)], ids=["clipped", "sgd", "adamw"]
)
@pytest.mark.parametrize("quantize", [True, False], ids=["qat", "float"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "training"])
def test_rows_move_as_arrays_do(
    optimizer: Any, quantize: bool, frozen: bool, student: Callable[[bool], Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps of two workers of unequal shares; pieces of 48 numbers, so that arrays lie across them."""
    monkeypatch.setattr(workers, "_PIECE", 48)
    graph = student(quantize)
    options = StepOptions((CrossEntropy(),), frozen_batchnorm=frozen)
    sizes = shares(7, 2)
    steps = [build_step(graph, size, options) for size in sizes]
    trained = steps[0].trained
    plan = UpdatePlan(trained.parameters, trained.batchnorms, trained.observers, trained.weights,
                      tuple(size / 7 for size in sizes), optimizer)  # fmt: skip
    state = State.of(graph, optimizer).arrays
    engine = Engine(steps, plan, state)
    sessions = [Session(step.graph, fuse_qdq=False) for step in steps]
    update = Session(build_update(replace(plan)))
    rng = np.random.default_rng(0)
    image = graph.inputs[0]
    for number in range(1, 4):
        feeds = {image.name: rng.normal(size=(7, *image.shape[1:])).astype(np.float32), "label": rng.integers(0, 6, 7)}
        engine.compute(feeds)
        engine.apply(0.1, number)
        state = state | _moved(update, sessions, steps, feeds, state, number)
    found = engine.arrays()
    engine.close()
    assert set(found) == set(state)
    for name, array in state.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


def test_names_that_rows_and_workers_might_have(student: Callable[[bool], Graph]) -> None:
    """A model may call its arrays what it likes."""
    graph = student(True)
    trained = build_step(graph, 4, StepOptions((CrossEntropy(),))).trained
    for spec, name in zip(trained.weights, ("mean", "w0/kernel", "decayed")):
        graph.rename(graph.value(spec.parameter), name)
    step = build_step(graph, 4, StepOptions((CrossEntropy(),)))
    trained, before = step.trained, State.of(graph, Sgd()).arrays
    plan = UpdatePlan(trained.parameters, trained.batchnorms, trained.observers, trained.weights, (1.0,), Sgd())
    engine = Engine([step], plan, before)
    image = graph.inputs[0]
    engine.compute({image.name: np.ones((4, *image.shape[1:]), np.float32), "label": np.zeros(4, np.int64)})
    engine.apply(0.1, 1)
    after = engine.arrays()
    engine.close()
    for spec in trained.weights:
        assert not np.array_equal(after[spec.parameter], before[spec.parameter])
        np.testing.assert_array_equal(after[spec.scale], weight_scale(after[spec.parameter], spec.axis, spec.bits))


def test_each_batch_norm_has_its_own_momentum(student: Callable[[bool], Graph]) -> None:
    """Though all lie in one row; and one whose layer is used twice gets the statistics of both uses together."""
    graph = student(False)
    norms = [node for node in graph.nodes() if node.op == "BatchNormalization"]
    for node, momentum in zip(norms, (0.5, 0.875)):
        graph.set_attribute(node, "momentum", momentum)
    again = graph.add_node(
        "BatchNormalization", graph.node_inputs(norms[0]), ["again"], norms[0].attributes, name="again"
    )
    graph.set_type(graph.result(again), graph.result(norms[0]).dtype, graph.result(norms[0]).shape)
    first = graph.result(norms[0])
    uses = graph.uses(first)
    both = graph.op("Mean", first, graph.result(again), name="both")
    graph.set_type(both, first.dtype, first.shape)
    graph.replace_uses(first, both, only=uses)
    step = build_step(graph, 4, StepOptions((CrossEntropy(),)))
    trained, before = step.trained, State.of(graph, Sgd()).arrays
    assert len(trained.batchnorms) == len(norms)
    plan = UpdatePlan(trained.parameters, trained.batchnorms, trained.observers, trained.weights, (1.0,), Sgd())
    image, rng = graph.inputs[0], np.random.default_rng(0)
    feeds = {image.name: rng.normal(size=(4, *image.shape[1:])).astype(np.float32), "label": np.zeros(4, np.int64)}
    batch = Session(step.graph).run(feeds | step.fed_from(before))
    engine = Engine([step], plan, before)
    engine.compute(feeds)
    engine.apply(0.0, 1)
    after = engine.arrays()
    engine.close()
    for spec, momentum in zip(trained.batchnorms, (0.5, 0.875)):
        assert spec.momentum == momentum
        for name, seen in ((spec.mean, f"batch_mean.{spec.mean}"), (spec.var, f"batch_var.{spec.mean}")):
            expected = before[name] * momentum + batch[seen] * (1 - momentum)
            np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6)


def _moved(
    update: Session, sessions: list[Session], steps: Any, feeds: dict[str, Array], state: dict[str, Array], number: int
) -> dict[str, Array]:
    given: dict[str, Array] = {"lr": np.float32(0.1), "step": np.float32(number)} | dict(state)
    start = 0
    for i, (session, step) in enumerate(zip(sessions, steps)):
        part = {name: array[start : start + step.batch] for name, array in feeds.items()}
        start += step.batch
        given |= {f"w{i}/{name}": array for name, array in session.run(part | step.fed_from(state)).items()}
    arrays = {p.name: np.asarray(given[p.name], np.float32).reshape(tuple(p.shape or ())) for p in update.inputs}
    found = update.run(arrays)
    return {n.removesuffix(".next"): a.reshape(state[n.removesuffix(".next")].shape)
            for n, a in found.items() if n.endswith(".next")}  # fmt: skip


def test_a_network_with_one_quantised_activation_trains(trainer: Callable[..., Trainer]) -> None:
    """Its row of scales has one element, which the update graph takes for a scalar."""
    graph = Graph("one", opset=18)
    x = graph.add_input("image", DType.FLOAT, ("N", 1, 8, 8))
    weight = graph.add_constant("w", np.linspace(-1, 1, 64 * 6, dtype=np.float32).reshape(64, 6))
    graph.add_output(graph.op("MatMul", graph.op("Flatten", x, name="flat"), weight, name="y"))
    quantized = Quantize(target="x64", samples=32).apply(graph, bright_rows(), Preprocess((100.0,), (50.0,))).graph
    assert sum(node.op == "FakeQuant" and node.attr("kind") == "activation" for node in quantized.nodes()) == 1
    student = prepared(quantized)
    mark_roles(student)
    history = trainer(student=student, epochs=1).run().history
    assert np.isfinite(history[0]["loss"])
