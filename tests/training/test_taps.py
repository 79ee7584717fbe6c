"""Losses read any values of student and teacher, in any layout, and may own parameters: trained, kept, not shipped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.data import Augment, Loader
from onnxslim.errors import OptionError
from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.onnx_io import write
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.session import Session
from onnxslim.stages.base import prepared
from onnxslim.training.loop import Interrupted, Trainer
from onnxslim.training.optimizers import Sgd
from onnxslim.training.ports import Kind, Port
from onnxslim.training.state import State
from onnxslim.training.step import LAYOUTS, Step, StepOptions, build_step
from onnxslim.training.teacher_cache import TeacherCache
from passes.distill import CrossEntropy, Loss, OnnxLoss, Tap, Taps

OWN = Port(Kind.LOSS_PARAMETER, "likeness", "projection")
STUDENTS, TEACHERS = "conv1.relu", "conv1.relu"


@dataclass(frozen=True)
class Likeness:
    """Mean of (P·s − t)² of two feature maps."""

    weight: float = 1.0
    student: str = STUDENTS
    teacher: str = TEACHERS
    name: ClassVar[str] = "likeness"

    @property
    def reads(self) -> tuple[Tap, ...]:
        return Tap("student", self.student), Tap("teacher", self.teacher)

    def build(self, graph: Graph, taps: Taps) -> Value:
        mine, theirs = (taps.need(tap, self.name) for tap in self.reads)
        shape = (theirs.static_shape[1], mine.static_shape[1], 1, 1)
        moved = graph.op("Conv", mine, taps.parameter(graph, "projection", shape), name="moved")
        graph.set_type(moved, DType.FLOAT, theirs.shape)
        apart = graph.op("Sub", moved, theirs, name="apart")
        return graph.op("ReduceMean", graph.op("Mul", apart, apart, name="square"), name="mean", keepdims=0)


def wide() -> Graph:
    return prepared(small_cnn((6, 8), classes=6, seed=2))


def options(*losses: Loss, **changes: Any) -> StepOptions:
    return StepOptions((CrossEntropy(), *(losses or (Likeness(),))), **changes)


def random_feeds(step: Step) -> dict[Port, Array]:
    rng = np.random.default_rng(3)
    return {p: rng.integers(0, 6, v.static_shape) if p.kind is Kind.LABEL
            else rng.normal(size=v.static_shape).astype(np.float32)
            for p in step.data for v in [step.value(p)]}  # fmt: skip


@pytest.mark.parametrize("quantize", [False, True], ids=["float", "qat"])
def test_taps_hold_in_every_layout(quantize: bool, student: Callable[[bool], Graph]) -> None:
    """The loss, and what is watched, is what the model computes, in its own shape; the projection's gradient, too."""
    graph = student(quantize)
    found: dict[str, dict[Port, Array]] = {}
    for layout in LAYOUTS:
        step = build_step(graph, 16, options(layout=layout, watch=(STUDENTS, "pool")), wide())
        state = State.of(graph, Sgd(), step).arrays
        found[layout] = step.found(Session(step.graph, fuse_qdq=False).run(step.fed(random_feeds(step), state)))
    plain = found["plain"]
    watched = {port: array.shape for port, array in plain.items() if port.kind is Kind.TAP}
    assert watched == {Port(Kind.TAP, STUDENTS): (16, 4, 8, 8), Port(Kind.TAP, "pool"): (16, 8, 1, 1)}
    for layout in ("lanes", "blocked"):
        for port in (*watched, Port(Kind.TERM, "likeness"), OWN.gradient):
            expected, got = plain[port].reshape(-1), found[layout][port].reshape(-1)
            # float32 sums in another order; of quantised values a few are rounded to the next step
            assert np.linalg.norm(got - expected) <= (2e-2 if quantize else 1e-4) * np.linalg.norm(expected), port


def test_the_loss_is_what_it_says(student: Callable[[bool], Graph]) -> None:
    """Against numpy: from what is watched of the student, and the teacher run alone."""
    graph, teacher = student(False), wide()
    step = build_step(graph, 8, options(watch=(STUDENTS,)), teacher)
    feeds, state = random_feeds(step), State.of(graph, Sgd(), step).arrays
    found = step.found(Session(step.graph).run(step.fed(feeds, state)))
    teacher.add_output(teacher.value(TEACHERS))
    theirs = Session(teacher).run({"image": feeds[Port(Kind.DATA, "image")]})[TEACHERS]
    moved = np.einsum("oi,nihw->nohw", state[OWN][:, :, 0, 0], found[Port(Kind.TAP, STUDENTS)])
    assert found[Port(Kind.TERM, "likeness")] == pytest.approx(((moved - theirs) ** 2).mean(), rel=1e-4)
    assert step.initial[OWN].std() == pytest.approx(0.5, rel=0.3)  # 1 / √fan-in of 4 channels
    for seed, equal in ((0, True), (1, False)):
        again = build_step(graph, 8, options(seed=seed), wide()).initial[OWN]
        assert np.array_equal(again, step.initial[OWN]) == equal


def test_what_a_loss_owns_is_trained_kept_resumed_and_not_shipped(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    made = trainer(options=options(), teacher=wide(), epochs=3, folder=tmp_path / "whole")
    whole = made.run()
    names = [value.name for value in made.student.values()]
    assert [value.name for value in whole.graph.values()] == names
    start = next(made.all_steps("plain")).initial[OWN]
    assert np.abs(whole.state.arrays[OWN] - start).max() > 1e-3
    assert np.abs(whole.state.arrays[OWN.moment("momentum")]).max() > 0

    def stop(label: str, done: int, total: int) -> None:
        if done == 9:
            os.kill(os.getpid(), signal.SIGINT)

    broken = replace(made, folder=tmp_path / "broken", progress=stop)
    with pytest.raises(Interrupted):
        broken.run()
    resumed = replace(made, folder=tmp_path / "broken").run(resume=True)
    assert set(resumed.state.arrays) == set(whole.state.arrays)
    for port, array in whole.state.arrays.items():
        assert resumed.state.arrays[port].tobytes() == array.tobytes(), port


def test_cached_taps_are_the_merged_teachers(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    made = trainer(options=options(), teacher=wide(), epochs=2)
    loader = Loader(made.loader.dataset, "image", made.loader.preprocess, Augment(1), 16, 5, views=2)
    merged = replace(made, loader=loader).run()
    cache = TeacherCache(wide(), loader, tmp_path, [TEACHERS])
    cache.prepare()
    cached = replace(made, loader=loader, cache=cache).run()
    for port, array in merged.state.arrays.items():
        bound = 1e-4 * np.abs(array).max() + 1e-6  # the teacher alone is optimised in another way
        np.testing.assert_allclose(cached.state.arrays[port], array, rtol=0, atol=bound, err_msg=str(port))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (Likeness(student="conv9"), "The loss 'likeness' reads the value 'conv9' of the student, which has none"),
        (Likeness(teacher="conv9"), "The loss 'likeness' reads the value 'conv9' of the teacher, which has none"),
    ],
)
def test_a_value_that_is_not_there_is_named(
    loss: Likeness, what: str, cached: bool, student: Callable[[bool], Graph]
) -> None:
    with pytest.raises(OptionError, match=what):
        build_step(student(False), 4, options(loss, teacher_as_input=cached), wide())


def test_a_teacher_that_is_not_there_is_named(student: Callable[[bool], Graph]) -> None:
    with pytest.raises(OptionError, match="The loss 'likeness' needs a teacher, but there is none"):
        build_step(student(False), 4, options())


def test_a_loss_of_the_users_own_reads_inside_of_the_models(tmp_path: Path, student: Callable[[bool], Graph]) -> None:
    mine = Graph("mine")
    inputs = [mine.add_input(n, DType.FLOAT, (8, 8, 1, 1)) for n in ("student:pool", "teacher:pool")]
    mine.add_output(mine.op("ReduceMean", mine.op("Abs", mine.op("Sub", *inputs, name="d")), name="m", keepdims=0))
    infer_shapes(mine)
    write(mine, tmp_path / "mine.onnx")
    graph, loss = student(False), OnnxLoss(str(tmp_path / "mine.onnx"))
    assert loss.reads == (Tap("student", "pool"), Tap("teacher", "pool"))
    step = build_step(graph, 8, options(loss, watch=("pool",)), wide())
    feeds = random_feeds(step)
    found = step.found(Session(step.graph).run(step.fed(feeds, State.of(graph, Sgd(), step).arrays)))
    teacher = wide()
    teacher.add_output(teacher.value("pool"))
    theirs = Session(teacher).run({"image": feeds[Port(Kind.DATA, "image")]})["pool"]
    expected = np.abs(found[Port(Kind.TAP, "pool")] - theirs).mean()
    assert found[Port(Kind.TERM, "onnx")] == pytest.approx(expected, rel=1e-4)


def test_two_losses_of_one_kind_have_a_term_each(student: Callable[[bool], Graph]) -> None:
    losses = (Likeness(), Likeness(0.5, student="conv1", teacher="conv1"))
    step = build_step(student(False), 8, StepOptions(losses, labelled=False), wide())
    terms = [port for port in step.outputs if port.kind is Kind.TERM]
    assert terms == [Port(Kind.TERM, "likeness"), Port(Kind.TERM, "likeness_2")]
    assert set(step.initial) == {OWN, Port(Kind.LOSS_PARAMETER, "likeness_2", "projection")}


@dataclass(frozen=True)
class Between:
    """The mean of the student's output times one teacher's, times the other's, times the mean of an image."""

    weight: float = 1.0
    name: ClassVar[str] = "between"
    reads: ClassVar[tuple[Tap, ...]] = (Tap("large"), Tap("small", "logits"), Tap("data", "image"))

    def build(self, graph: Graph, taps: Taps) -> Value:
        *theirs, image = (taps.need(tap, self.name) for tap in self.reads)
        bright = graph.op("ReduceMean", image, name="bright", keepdims=0)
        product = graph.op("Mul", taps.student, graph.op("Mul", *theirs, name="both"), name="all")
        return graph.op("Mul", graph.op("ReduceMean", product, name="product", keepdims=0), bright, name="dimmed")


def test_several_teachers_and_the_data(student: Callable[[bool], Graph]) -> None:
    graph, teachers = student(False), {"large": wide(), "small": prepared(small_cnn((2,), classes=6, seed=5))}
    step = build_step(graph, 8, StepOptions((Between(),), labelled=False, watch=("logits",)), teachers)
    feeds = random_feeds(step)
    found = step.found(Session(step.graph).run(step.fed(feeds, State.of(graph, Sgd(), step).arrays)))
    images = feeds[Port(Kind.DATA, "image")]
    theirs = [Session(one).run({"image": images})["logits"] for one in teachers.values()]
    expected = (found[Port(Kind.TAP, "logits")] * theirs[0] * theirs[1]).mean() * images.mean()
    assert found[Port(Kind.TERM, "between")] == pytest.approx(expected, rel=1e-3)
    with pytest.raises(OptionError, match="The loss 'between' needs the teacher 'small', but there is none"):
        build_step(graph, 8, StepOptions((Between(),), labelled=False), {"large": wide()})
