from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.data import ArrayDataset, Augment, Loader, Preprocess
from onnxslim.errors import CheckpointError, DataError, OptionError, TrainingError
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.session import Session
from onnxslim.stages.base import prepared
from onnxslim.training.loop import Interrupted
from onnxslim.training.nan_hunt import nonfinite_state
from onnxslim.training.optimizers import AdamW, Sgd
from onnxslim.training.pace import Pace
from onnxslim.training.ports import Kind
from onnxslim.training.schedules import Constant
from onnxslim.training.state import State
from onnxslim.training.step import LAYOUTS, Layout, StepOptions
from onnxslim.training.teacher_cache import TeacherCache
from passes.distill import CrossEntropy, SoftLabel

DISTILLED = StepOptions((CrossEntropy(0.5), SoftLabel(0.5)))


def weights(graph: Graph) -> dict[str, Array]:
    return {v.name: v.array for v in graph.initializers() if v.array is not None and v.dtype.is_float}


def assert_same(a: Graph, b: Graph) -> None:
    mine, theirs = weights(a), weights(b)
    assert list(mine) == list(theirs)
    for name, array in mine.items():
        assert array.tobytes() == theirs[name].tobytes(), name


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """However a training ends, what it started has ended, while its exception is still held, too."""
    yield
    assert not [t.name for t in threading.enumerate() if t.name.startswith(("worker", "loader", "decode"))]


needs_builder = pytest.mark.skipif(not capabilities().has_gradient_builder, reason="ONNX Runtime's builder is not here")


@pytest.mark.parametrize("quantize", [False, True], ids=["float", "qat"])
@pytest.mark.parametrize("gradient", ["own", pytest.param("ort", marks=needs_builder)])
def test_it_learns(trainer: Callable, quantize: bool, gradient: str) -> None:
    made = trainer(quantize=quantize)
    result = replace(
        made, options=replace(made.options, gradient=gradient), epochs=25, optimizer=Sgd(learning_rate=0.4)
    ).run()
    first, last = result.history[0], result.history[-1]
    assert last["loss"] < 0.7 * first["loss"]
    assert last["train_top1"] > 0.6  # crops move the bright row, so some images cannot be told apart


@needs_builder
def test_both_gradients_train_the_same(trainer: Callable) -> None:
    """A step of our gradient and one of ONNX Runtime's builder end in the same weights, to rounding."""
    made = trainer(epochs=1)
    own = made.run().graph
    ort = replace(made, options=replace(made.options, gradient="ort")).run().graph
    for name, array in weights(own).items():
        np.testing.assert_allclose(weights(ort)[name], array, rtol=0, atol=2e-3 * np.abs(array).max() + 1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_equal_runs_are_equal_bit_by_bit(trainer: Callable, optimizer: str) -> None:
    changes: dict[str, Any] = {} if optimizer == "sgd" else {"optimizer": AdamW(learning_rate=0.01)}
    assert_same(trainer(**changes).run().graph, trainer(**changes).run().graph)


def test_batch_norm_is_merged_over_workers(trainer: Callable) -> None:
    """The statistics of the first step are those of its whole batch, though each worker saw a part: here in
    the first layer, which sees the same data however the batch is split."""
    made = trainer(quantize=False, epochs=1, optimizer=Sgd(learning_rate=1e-12))
    one, two = (replace(made, workers=n).run().graph for n in (1, 2))
    name = next(n for n in weights(one) if n.endswith("mean"))
    np.testing.assert_allclose(weights(one)[name], weights(two)[name], rtol=1e-4, atol=1e-6)


class StopAt:
    """A progress callback that asks for Ctrl-C at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, label: str, done: int, total: int) -> None:
        if done == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", [1, 6, 8, 12, 23])
@pytest.mark.parametrize("freeze_from", [None, 2])
def test_interrupted_and_resumed_it_ends_bit_identical(
    trainer: Callable, tmp_path: Path, step: int, freeze_from: int | None
) -> None:
    whole = trainer(tmp_path / "whole", freeze_from=freeze_from).run()
    broken = trainer(tmp_path / "broken", freeze_from=freeze_from)
    with pytest.raises(Interrupted, match="the checkpoint is written"):
        replace(broken, progress=StopAt(step)).run()
    resumed = broken.run(resume=True)
    assert_same(whole.graph, resumed.graph)
    drop = ("seconds", "images_per_second", "data_wait")
    kept = [[{k: v for k, v in r.items() if k not in drop} for r in x.history] for x in (whole, resumed)]
    assert kept[0] == kept[1]


def test_a_second_interrupt_stops_at_once(trainer: Callable) -> None:
    def twice(label: str, done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        trainer(progress=twice).run()
    assert not isinstance(caught.value, Interrupted)


class Scores:
    """A validation that gives what it is told to, and keeps what it was asked about."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.seen = list(scores), list[Graph]()

    def __call__(self, graph: Graph) -> float:
        self.seen.append(graph)
        return self.scores[len(self.seen) - 1]


@pytest.mark.parametrize("kept", [True, False], ids=["checkpoints", "in memory"])
def test_the_best_on_val_is_returned(trainer: Callable, tmp_path: Path, kept: bool) -> None:
    validate = Scores(0.0, 0.1, 0.9, 0.3, 0.2)
    result = trainer(tmp_path if kept else None, validate=validate).run()
    assert_same(result.best, validate.seen[2])
    assert_same(result.graph, validate.seen[4])
    assert [record["val"] for record in result.history] == [0.1, 0.9, 0.3, 0.2]
    assert (result.state.best, result.state.best_epoch, result.state.before) == (0.9, 2, 0.0)


def test_the_state_before_training_is_one_of_the_candidates(trainer: Callable, tmp_path: Path) -> None:
    made = trainer(tmp_path, validate=Scores(0.9, 0.1, 0.2, 0.9, 0.3))
    result = made.run()
    assert_same(result.best, made.student)
    assert (result.state.best, result.state.best_epoch, result.state.before) == (0.9, 0, 0.9)
    again = replace(made, validate=lambda _: pytest.fail("measured again")).run(resume=True)
    assert_same(again.best, made.student)


def test_the_best_of_an_earlier_training_is_no_candidate(trainer: Callable, tmp_path: Path) -> None:
    trainer(tmp_path, validate=Scores(0.5, 0.9), epochs=1).run()
    assert trainer(tmp_path, epochs=1).run().state.best is None
    validate = Scores(0.1, 0.3)
    result = trainer(tmp_path, validate=validate, epochs=1, optimizer=Sgd(learning_rate=0.2)).run()
    assert_same(result.best, validate.seen[1])


def test_resumed_without_its_best_it_is_refused(trainer: Callable, tmp_path: Path) -> None:
    made = trainer(tmp_path, validate=Scores(0.0, 0.9, 0.5), epochs=2)
    made.run()
    shutil.rmtree(tmp_path / "train-best-0001")
    with pytest.raises(CheckpointError, match="train-best-0001"):
        replace(made, epochs=3).run(resume=True)


def test_an_epoch_that_was_interrupted_counts_all_of_its_time(
    trainer: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on by a second a look: the epoch's steps take as long, in one process or in two."""
    ticks = itertools.count()
    monkeypatch.setattr("onnxslim.training.pace.time.perf_counter", lambda: float(next(ticks)))
    made = trainer(tmp_path, epochs=1)
    with pytest.raises(Interrupted):
        replace(made, progress=StopAt(4)).run()
    ticks = itertools.count(1000)  # a day later
    resumed = made.run(resume=True)
    (record,) = resumed.history
    assert resumed.seconds_before > 0
    assert resumed.seconds_before < record["seconds"] < 100
    assert record["images_per_second"] == pytest.approx(96 / record["seconds"], abs=0.05)


def test_every_epoch_is_said(trainer: Callable, tmp_path: Path) -> None:
    lines: list[str] = []
    made = trainer(tmp_path, epochs=2, validate=Scores(0.0, 0.5, 0.4), say=lines.append)
    made.run()
    number = r"[\d.e+-]+"
    expected = [
        "train: measuring the model before training",
        "train: building the training step",
        rf"train: epoch 1 of 2: loss {number}, train top-1 {number} %, val 0.5 \(the best yet\), learning rate "
        rf"{number}, [\d,]+ images/s, about \d+ s left",
        rf"train: epoch 2 of 2: loss {number}, train top-1 {number} %, val 0.4, learning rate {number}, "
        r"[\d,]+ images/s",
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected):
        assert re.fullmatch(pattern, line), line
    lines.clear()
    replace(made, epochs=3, validate=Scores(0.1)).run(resume=True)
    assert lines[0] == "train: going on with epoch 3"


def test_what_is_left_is_reckoned_from_what_was_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("onnxslim.training.pace.time.perf_counter", lambda: now)
    pace = Pace()
    pace.start(900)
    now = 10.0
    assert pace.left(910, 1000) == 90.0
    pace.start(910)  # the next epoch's
    now = 40.0  # a validation lay between
    assert pace.left(920, 1000) == 160.0


def test_frozen_statistics_stay(trainer: Callable) -> None:
    made = trainer(quantize=False, epochs=2, freeze_from=0)
    before, after = weights(made.student), weights(made.run().graph)
    running = [name for name in before if "mean" in name.rsplit(".", 1)[-1] or "var" in name.rsplit(".", 1)[-1]]
    assert running
    for name in running:
        np.testing.assert_array_equal(before[name], after[name])
    assert any(not np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("soft", [False, True], ids=["logits", "softmax"])
def test_a_teacher_in_the_graph_is_as_good_as_its_cached_outputs(trainer: Callable, tmp_path: Path, soft: bool) -> None:
    teacher = prepared(small_cnn((8,), classes=6, seed=2))
    if soft:
        output = teacher.outputs[0]
        teacher.remove_output(output)
        teacher.add_output(teacher.op("Softmax", output, name="soft", axis=1))
        infer_shapes(teacher)
    made = trainer(options=DISTILLED, teacher=teacher, epochs=2)
    loader = Loader(made.loader.dataset, "image", made.loader.preprocess, made.loader.augment, 16, 5, views=2)
    merged = replace(made, loader=loader).run()
    cache = TeacherCache(teacher, loader, tmp_path)
    cache.prepare()
    cached = replace(made, loader=loader, cache=cache).run()
    for name, array in weights(merged.graph).items():
        np.testing.assert_allclose(weights(cached.graph)[name], array, rtol=0, atol=1e-4 * np.abs(array).max() + 1e-6)


def test_a_teachers_outputs_are_kept_view_by_view(trainer: Callable, tmp_path: Path) -> None:
    teacher = prepared(small_cnn((8,), classes=6, seed=2))
    made = trainer()
    loaders = {
        k: Loader(made.loader.dataset, "image", made.loader.preprocess, Augment(1), 16, 5, views=k) for k in (2, 3)
    }
    samples = len(made.loader.dataset)

    def interrupt(_: str, done: int, total: int) -> None:
        assert total == 3 * samples
        if done > samples:
            raise KeyboardInterrupt

    cache = TeacherCache(teacher, loaders[3], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.prepare(interrupt)
    assert [path.name for path in cache.folder.iterdir()] == ["view-0.safetensors"]
    totals: list[int] = []
    cache.prepare(lambda _, done, total: totals.append(total))
    assert set(totals) == {2 * samples}  # the first view was there
    fewer = TeacherCache(teacher, loaders[2], tmp_path)
    fewer.prepare(lambda *_: pytest.fail("ran again"))
    images = np.arange(samples)
    session = Session(teacher)
    for view in range(3):
        feeds = loaders[3].make(images, view, np.full(samples, view)).feeds
        expected = next(iter(session.run(feeds).values()))
        views = np.full(samples, view)
        np.testing.assert_allclose(cache.outputs(images, views), expected, rtol=0, atol=1e-5)
        if view < 2:
            np.testing.assert_array_equal(fewer.outputs(images, views), cache.outputs(images, views))
    damaged = cache.folder / "view-1.safetensors"
    whole = damaged.read_bytes()
    changed = bytearray(whole)
    changed[-2] ^= 1
    for content in (whole[:-5], bytes(changed), b"", (cache.folder / "view-2.safetensors").read_bytes()[::-1]):
        damaged.write_bytes(content)
        with pytest.warns(UserWarning, match=r"view-1\.safetensors .*: the teacher runs again for it"):
            cache.prepare()
        assert damaged.read_bytes() == whole


def test_unlabelled_data_are_enough_for_distillation(trainer: Callable) -> None:
    teacher = prepared(small_cnn((8,), classes=6, seed=2))
    made = trainer()
    images = made.loader.dataset.read(np.arange(96))["image"]
    bare = Loader(ArrayDataset({"image": images}), "image", Preprocess((100.0,), (50.0,)), None, 16, 5)
    options = StepOptions((SoftLabel(),), labelled=False)
    history = replace(made, loader=bare, options=options, teacher=teacher, epochs=8).run().history
    assert history[-1]["loss"] < history[0]["loss"]
    assert "train_top1" not in history[0]
    with pytest.raises(DataError, match="the training data have none"):
        replace(made, loader=bare).run()


def test_a_teacher_of_other_classes_is_refused(trainer: Callable) -> None:
    with pytest.raises(OptionError, match="the same classes"):
        trainer(options=DISTILLED, teacher=prepared(small_cnn((8,), classes=7))).run()


def test_a_label_out_of_range_names_the_sample(trainer: Callable) -> None:
    made = trainer()
    labels = np.zeros(32, np.int64)
    labels[20] = 6
    loader = Loader(
        ArrayDataset({"image": np.zeros((32, 8, 8, 1), np.uint8), "label": labels}), "image", Preprocess(), None, 16, 0
    )
    with pytest.raises(DataError, match=r"Sample 20 has the label 6, .*6 classes \(expected 0 … 5\)"):
        replace(made, loader=loader).run()


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(trainer: Callable, tmp_path: Path) -> None:
    made = trainer(tmp_path, quantize=False)
    trained = replace(made, epochs=1).run()
    broken = replace(made, optimizer=Sgd(learning_rate=1e6), schedule=Constant(), epochs=3)
    with pytest.raises(TrainingError, match=r"not finite in epoch 2, step \d.*began with.*the last good checkpoint is"):
        broken.run(resume=True)
    again = replace(made, epochs=1).run(resume=True)
    assert_same(trained.graph, again.graph)


def test_a_loss_that_is_not_finite_is_traced_to_where_it_began(trainer: Callable) -> None:
    made = trainer(quantize=False)
    student = made.student.copy()
    logits = student.outputs[0]
    factor = student.add_constant("factor_of_ten", np.float32(1e30))
    large = student.op("Mul", logits, factor, name="large")
    overflown = student.op("Mul", large, factor, name="overflown")
    undefined = student.op("Sub", overflown, overflown, name="undefined")
    student.remove_output(logits)
    for value in (large, overflown, undefined):
        student.set_type(value, logits.dtype, logits.shape)
    student.add_output(undefined)
    with pytest.raises(
        TrainingError, match=r"It began with 'overflown', the output of node 'overflown' \(Mul\), is inf"
    ):
        replace(made, student=student).run()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_nan_is_traced_to_the_models_own_value_in_every_layout(trainer: Callable, layout: Layout) -> None:
    """Between two convolutions, where a layout has no such value: what the model calls it is named, and its node."""
    made = trainer(quantize=False, workers=1)
    student = made.student.copy()
    first = student.value("conv1.relu")
    uses = student.uses(first)
    large = student.op("Mul", first, student.add_constant("size", np.float32(1e30)), name="large")
    overflown = student.op("Mul", large, large, name="overflown")
    for value in (large, overflown):
        student.set_type(value, first.dtype, first.shape)
    student.replace_uses(first, overflown, only=uses)
    with pytest.raises(
        TrainingError, match=r"It began with 'overflown', the output of node 'overflown' \(Mul\), is inf"
    ):
        replace(made, student=student, options=replace(made.options, layout=layout)).run()


class RateAt:
    """A schedule that is infinite in the last step of an epoch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def rate(self, largest: float, step: int, steps_per_epoch: int, epochs: int) -> float:
        return float("inf") if step % steps_per_epoch == self.step else 1e-3


def test_weights_that_end_in_nan_are_found_in_training(trainer: Callable, tmp_path: Path) -> None:
    """The loss of the last step was finite: nothing but the weights tells. No checkpoint of them is written."""
    made = trainer(tmp_path, quantize=False, schedule=RateAt(5))
    with pytest.raises(TrainingError, match=r"The parameter '.+' is (NaN|infinity) in .+ elements, since this step: "
                                            r"after epoch 1, step 6\. Training stopped"):  # fmt: skip
        made.run()
    assert not list(tmp_path.glob("train-0001*"))


def test_an_interrupted_training_keeps_no_nan(trainer: Callable, tmp_path: Path) -> None:
    made = trainer(tmp_path, quantize=False, schedule=RateAt(2), progress=StopAt(3))
    with pytest.raises(TrainingError, match=r"after epoch 1, step 3"):
        made.run()


def test_which_of_the_state_is_not_finite_and_since_when(trainer: Callable) -> None:
    """A running variance that overflowed leaves no trace in the loss."""
    arrays = State.of(trainer(quantize=False).student, Sgd()).arrays
    assert nonfinite_state(arrays, arrays) is None
    port = next(port for port in arrays if port.kind is Kind.STATISTIC)
    broken = arrays | {port: np.full_like(arrays[port], np.inf)}
    size = arrays[port].size
    what = f"The statistic '{port.owner}' is infinity in {size} of {size} elements"
    assert nonfinite_state(broken, arrays) == f"{what}, since this step"
    assert nonfinite_state(broken, broken) == f"{what}, since an earlier step"
    moment = next(port for port in arrays if port.kind is Kind.MOMENT)
    found = nonfinite_state(arrays | {moment: np.full_like(arrays[moment], np.nan)}, arrays)
    assert found is not None
    assert found.startswith(f"The moment 'momentum' of parameter '{moment.belongs_to.owner}' is NaN")


def test_a_checkpoint_of_another_run_is_refused(trainer: Callable, tmp_path: Path) -> None:
    trainer(tmp_path, epochs=1).run()
    with pytest.raises(TrainingError, match="'workers' was 2, now it is 1"):
        trainer(tmp_path, workers=1).run(resume=True)
    with pytest.raises(TrainingError, match="another model or optimiser"):
        trainer(tmp_path, optimizer=AdamW()).run(resume=True)


def test_progress_has_one_label(trainer: Callable) -> None:
    """A bar whose label changed with each step would be a new bar each time."""
    seen = []
    trainer(epochs=1, progress=lambda *call: seen.append(call)).run()
    assert seen == [("train", step, 6) for step in range(1, 7)]
