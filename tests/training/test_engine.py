"""The engine's update, in rows and pieces, against one op an array."""

from __future__ import annotations

from collections.abc import Callable
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
from onnxslim.training.ports import Kind, Port
from onnxslim.training.rules import FollowBatchnorm, FollowMaximum
from onnxslim.training.state import State
from onnxslim.training.step import Step, StepOptions, build_step
from onnxslim.training.update import UpdateGraph, UpdatePlan, build_update
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
    plan = UpdatePlan(steps[0].updates, tuple(size / 7 for size in sizes), optimizer)
    state = State.of(graph, optimizer).arrays
    engine = Engine(steps, plan, state)
    sessions = [Session(step.graph, fuse_qdq=False) for step in steps]
    update = build_update(plan)
    rng = np.random.default_rng(0)
    image = graph.inputs[0]
    for number in range(1, 4):
        feeds = {
            Port(Kind.DATA, image.name): rng.normal(size=(7, *image.shape[1:])).astype(np.float32),
            Port(Kind.LABEL): rng.integers(0, 6, 7),
        }
        engine.compute(feeds)
        engine.apply(0.1, number)
        state = state | _moved(update, sessions, steps, feeds, state, number)
    found = engine.arrays()
    engine.close()
    assert set(found) == set(state)
    for port, array in state.items():
        np.testing.assert_allclose(found[port], array, rtol=1e-4, atol=1e-6, err_msg=str(port))


def a_batch(graph: Graph) -> dict[Port, Array]:
    """Four images of ones, of the first class."""
    image = graph.inputs[0]
    images = np.ones((4, *image.shape[1:]), np.float32)
    return {Port(Kind.DATA, image.name): images, Port(Kind.LABEL): np.zeros(4, np.int64)}


def test_names_that_rows_and_workers_might_have(student: Callable[[bool], Graph]) -> None:
    """A model may call its arrays what it likes."""
    graph = student(True)
    updates = build_step(graph, 4, StepOptions((CrossEntropy(),))).updates
    quantized = [rule for rule in updates if isinstance(rule, FollowMaximum)]
    for rule, name in zip(quantized, ("mean", "w0/kernel", "decayed")):
        graph.rename(graph.value(str(rule.weight.owner)), name)
    step = build_step(graph, 4, StepOptions((CrossEntropy(),)))
    before = State.of(graph, Sgd()).arrays
    engine = Engine([step], UpdatePlan(step.updates, (1.0,), Sgd()), before)
    engine.compute(a_batch(graph))
    engine.apply(0.1, 1)
    after = engine.arrays()
    engine.close()
    quantized = [rule for rule in step.updates if isinstance(rule, FollowMaximum)]
    assert {"mean", "w0/kernel", "decayed"} <= {rule.weight.owner for rule in quantized}
    for rule in quantized:
        assert not np.array_equal(after[rule.weight], before[rule.weight])
        np.testing.assert_array_equal(after[rule.scale], weight_scale(after[rule.weight], rule.axis, rule.bits))


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
    before = State.of(graph, Sgd()).arrays
    rules = [rule for rule in step.updates if isinstance(rule, FollowBatchnorm)]
    assert len(rules) == len(norms)
    rng = np.random.default_rng(0)
    feeds = a_batch(graph)
    feeds = {p: rng.normal(size=a.shape).astype(np.float32) if p.kind is Kind.DATA else a for p, a in feeds.items()}
    batch = step.found(Session(step.graph).run(step.fed(feeds, before)))
    engine = Engine([step], UpdatePlan(step.updates, (1.0,), Sgd()), before)
    engine.compute(feeds)
    engine.apply(0.0, 1)
    after = engine.arrays()
    engine.close()
    for rule, momentum in zip(rules, (0.5, 0.875)):
        assert rule.momentum == momentum
        for port in (rule.mean, rule.var):
            expected = before[port] * momentum + batch[port.batch] * (1 - momentum)
            np.testing.assert_allclose(after[port], expected, rtol=1e-5, atol=1e-6)


def _moved(
    update: UpdateGraph,
    sessions: list[Session],
    steps: list[Step],
    feeds: dict[Port, Array],
    state: dict[Port, Array],
    number: int,
) -> dict[Port, Array]:
    """The next state by the update of single arrays."""
    given: dict[Port, Any] = {Port(Kind.RATE): 0.1, Port(Kind.STEP): number, **state}
    start = 0
    for worker, (session, step) in enumerate(zip(sessions, steps)):
        part = {port: array[start : start + step.batch] for port, array in feeds.items()}
        start += step.batch
        results = step.found(session.run(step.fed(part, state)))
        given |= {port.by(worker): array for port, array in results.items()}
    values = {port: update.graph.value(name) for port, name in update.ports.items()}
    fed = {v.name: np.asarray(given[p], np.float32).reshape(v.static_shape) for p, v in values.items()
           if update.graph.is_input(v)}  # fmt: skip
    found = Session(update.graph).run(fed)
    return {port.belongs_to: found[value.name].reshape(state[port.belongs_to].shape)
            for port, value in values.items() if port.kind is Kind.NEXT}  # fmt: skip


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
