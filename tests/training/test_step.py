"""The step graph as a whole: a list of passes, each verified like any other, and named where it is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.errors import UnsupportedError, VerifyError
from onnxslim.ir import rewrite
from onnxslim.ir.graph import DType, Graph, Role
from onnxslim.ir.rewrite import Outcome, Pass
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.verify import verify
from onnxslim.stages.base import prepared
from onnxslim.training import step as module
from onnxslim.training.parameters import mark_parameters
from onnxslim.training.ports import FED, STATE, Kind, Port
from onnxslim.training.step import LAYOUTS, Layout, Step, StepOptions, build_step, passes_of
from onnxslim.training.step_checker import StepChecker
from onnxslim.training.step_passes import CountCorrect, Differentiate, FeedState, LayOut, Observe
from passes.distill import CrossEntropy, MergeTeacher, SoftLabel
from passes.layout import ShapePorts
from passes.quantize import ExpandFakeQuant
from passes.simplify import EliminateCommon

DISTILLED = (CrossEntropy(), SoftLabel(1.0))
VARIANTS: list[tuple[bool, dict[str, Any], bool]] = [
    *((quantize, {"layout": layout, "frozen_batchnorm": frozen}, False)
      for quantize in (False, True) for layout in LAYOUTS for frozen in (False, True)),
    (False, {"losses": DISTILLED}, True),
    (True, {"losses": DISTILLED, "teacher_as_input": True, "layout": "lanes"}, True),
]  # fmt: skip


def teacher() -> Graph:
    return prepared(small_cnn((8,), classes=6, seed=2))


def made(student: Graph, options: dict[str, Any], teached: bool, checked: bool = False) -> Step:
    arrays = {v.name: v.array for v in student.initializers() if v.array is not None}
    checker = StepChecker(arrays) if checked else None
    found = StepOptions(**{"losses": (CrossEntropy(),), **options})
    return build_step(student, 16, found, teacher() if teached else None, checker)


def is_typed(graph: Graph) -> list[bool]:
    """Of each node: whether the type and the whole shape of all that it reads and makes are known."""
    found = []
    for node in graph.nodes():
        values = [v for v in (*graph.node_inputs(node), *graph.node_outputs(node)) if v is not None]
        sized = [v.shape is not None and all(isinstance(size, int) for size in v.shape) for v in values]
        found.append(all(sized) and all(v.dtype is not DType.UNDEFINED for v in values))
    return found


@pytest.mark.parametrize(("quantize", "options", "teached"), VARIANTS)
def test_every_node_is_verified_with_its_types(
    quantize: bool,
    options: dict[str, Any],
    teached: bool,
    student: Callable[[bool], Graph],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By each pass what it edited, and in the end the whole; there no node is left out because a type is missing."""
    seen: list[tuple[int, int | None]] = []
    each: list[int] = []

    def whole(graph: Graph, since: int | None = None) -> None:
        seen.append((sum(is_typed(graph)), since))
        verify(graph, since)

    def part(graph: Graph, since: int | None = None, *, types: bool = True) -> None:
        each.append(len(graph.nodes()))
        verify(graph, since, types=types)

    monkeypatch.setattr(module, "verify", whole)
    monkeypatch.setattr(rewrite, "verify", part)
    step = made(student(quantize), options, teached)
    assert seen == [(len(step.graph.nodes()), None)]
    assert len(each) >= len(passes_of(16, StepOptions((CrossEntropy(),))))


def test_a_step_reads_as_a_list() -> None:
    names = [one.name for one in passes_of(8, StepOptions((CrossEntropy(),), layout="lanes"), ["teacher"])]
    order = ["set_sizes", "feed_data", "train_batchnorm", "feed_state", "merge_teacher", "attach_losses", "observe",
             "count_correct", "fetch_statistics", "lay_out", "differentiate", "expand_lanes", "expand_blocked",
             "expand_fake_quant", "shape_state", "eliminate_dead"]  # fmt: skip
    assert [name for name in names if name in order] == order


@pytest.mark.parametrize(("quantize", "options", "teached"), VARIANTS)
def test_inputs_and_outputs_are_told_by_ports(
    quantize: bool, options: dict[str, Any], teached: bool, student: Callable[[bool], Graph]
) -> None:
    step = made(student(quantize), options, teached)
    graph = step.graph
    inputs = {name for port, name in step.ports.items() if port.kind in (*FED, *STATE)}
    assert inputs == {v.name for v in graph.inputs}
    assert len(step.ports) == len(graph.inputs) + len(graph.outputs)
    learns = {port for rule in step.updates for port in rule.learns}
    assert {p.belongs_to for p in step.outputs if p.kind is Kind.GRADIENT} == learns
    reads = {port for rule in step.updates for port in rule.reads}
    assert {p for p in step.outputs if p.kind in (Kind.GRADIENT, Kind.BATCH)} == reads
    assert {Port(Kind.LOSS), Port(Kind.CORRECT), Port(Kind.TERM, "cross_entropy")} <= set(step.outputs)


@pytest.mark.parametrize(("quantize", "options", "teached"), VARIANTS[1::4])
def test_a_sound_step_passes_its_check(
    quantize: bool, options: dict[str, Any], teached: bool, student: Callable[[bool], Graph]
) -> None:
    made(student(quantize), options, teached, checked=True)


def half_as_much(graph: Graph, known: set[str], last: bool = True) -> bool:
    """One of these values, the last that is read or the first, is halved, as if by a mistake in a node."""
    for node in reversed(graph.nodes()) if last else graph.nodes():
        value = next((v for v in graph.node_outputs(node) if v is not None and v.dtype is DType.FLOAT), None)
        if value is None or value.name not in known or not graph.uses(value):
            continue
        uses = graph.uses(value)
        half = graph.op("Mul", value, graph.add_constant("half", np.float32(0.5)), name="mistake")
        graph.set_type(half, value.dtype, value.shape)
        graph.replace_uses(value, half, only=uses)
        return True
    return False


@pytest.mark.parametrize("broken", [FeedState, MergeTeacher, Observe, CountCorrect, LayOut, ExpandFakeQuant,
                                    EliminateCommon])  # fmt: skip
def test_a_pass_that_changes_the_numbers_is_named(
    broken: type[Pass], student: Callable[[bool], Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each makes one mistake: the last value that was there before it, and is read, is halved."""
    run = broken.run

    def spoiled(self: Pass, graph: Graph, context: Any) -> Outcome:
        known = {value.name for value in graph.values()}
        outcome = run(self, graph, context)
        assert half_as_much(graph, known)
        return Outcome(outcome.rewrites + 1)

    monkeypatch.setattr(broken, "run", spoiled)
    layout: Layout = "lanes" if broken is LayOut else "plain"
    with pytest.raises(VerifyError, match=f"^After pass '{broken.name}': '{broken.name}' changed '"):
        made(student(True), {"losses": DISTILLED, "layout": layout}, True, checked=True)


def test_wrong_gradients_are_named(student: Callable[[bool], Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward half is new, and there is nothing to compare it with but differences of the loss."""
    edit = Differentiate.edit

    def spoiled(self: Differentiate, graph: Graph, step: Any) -> int:
        count = edit(self, graph, step)
        known = {value.name for value in graph.values() if value.name.startswith("grad/")}
        assert half_as_much(graph, known, last=False)
        return count

    monkeypatch.setattr(Differentiate, "edit", spoiled)
    with pytest.raises(
        VerifyError, match="^After pass 'differentiate': 'differentiate' gives gradients that are off by"
    ):
        made(student(False), {"frozen_batchnorm": True}, False, checked=True)


def test_a_wrong_type_far_from_what_a_pass_edited_is_found(
    student: Callable[[bool], Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a rule had left a value with another type than its node makes, after which no pass comes by."""
    shape_ports = ShapePorts.run

    def spoil(self: ShapePorts, graph: Graph, context: object) -> object:
        outcome = shape_ports(self, graph, context)  # type: ignore[arg-type]
        loss = graph.producer(graph.outputs[0])
        assert loss is not None
        graph.operand(loss, 0).dtype = DType.DOUBLE  # past the journal of edits
        return outcome

    monkeypatch.setattr(ShapePorts, "run", spoil)
    with pytest.raises(VerifyError, match="expected DOUBLE"):
        build_step(student(False), 8, StepOptions((CrossEntropy(),)))


def test_a_parameter_that_holds_the_batch_size_is_named() -> None:
    """Rows that are equal stand for one, where the batch is another: nothing is left to be trained."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (3, 4))
    rows = graph.add_constant("rows", np.full((3, 4), 0.5, np.float32), role=Role.PARAMETER)
    weight = graph.add_constant("w", np.ones((8, 2), np.float32), role=Role.PARAMETER)
    graph.add_output(graph.op("MatMul", graph.op("Concat", x, rows, axis=1), weight, name="y"))
    infer_shapes(graph)
    mark_parameters(graph)
    with pytest.raises(UnsupportedError, match="has the model's batch size in its shape"):
        build_step(graph, 5, StepOptions((CrossEntropy(),)))
