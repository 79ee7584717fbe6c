from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim.analysis.shapes import infer_shapes
from onnxslim.builders import small_cnn
from onnxslim.data import ArrayDataset, Augment, Loader, Preprocess
from onnxslim.errors import CheckpointError, DataError, RecipeError, TrainingError
from onnxslim.graph import Array, Graph
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.session import Session
from onnxslim.stages.base import prepared
from onnxslim.training.loop import Interrupted
from onnxslim.training.optimizers import AdamW
from onnxslim.training.schedules import Schedule
from onnxslim.training.step import StepOptions
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


needs_builder = pytest.mark.skipif(not capabilities().has_gradient_builder, reason="ONNX Runtime's builder is not here")


@pytest.mark.parametrize("quantize", [False, True], ids=["float", "qat"])
@pytest.mark.parametrize("gradient", ["own", pytest.param("ort", marks=needs_builder)])
def test_it_learns(trainer: Callable, quantize: bool, gradient: str) -> None:
    made = trainer(quantize=quantize)
    result = replace(made, options=replace(made.options, gradient=gradient), epochs=25, schedule=Schedule(0.4)).run()
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
    changes: dict[str, Any] = {} if optimizer == "sgd" else {"optimizer": AdamW(), "schedule": Schedule(0.01)}
    assert_same(trainer(**changes).run().graph, trainer(**changes).run().graph)


def test_batch_norm_is_merged_over_workers(trainer: Callable) -> None:
    """The statistics of the first step are those of its whole batch, though each worker saw a part: here in
    the first layer, which sees the same data however the batch is split."""
    made = trainer(quantize=False, epochs=1, schedule=Schedule(1e-12))
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
    assert threading.active_count() >= 1


def test_the_best_on_val_is_returned(trainer: Callable, tmp_path: Path) -> None:
    scores = iter([0.1, 0.9, 0.3, 0.2])
    seen = []

    def validate(graph: Graph) -> float:
        seen.append(graph)
        return next(scores)

    result = trainer(tmp_path, validate=validate).run()
    assert_same(result.best, seen[1])
    assert_same(result.graph, seen[3])
    assert [record["val"] for record in result.history] == [0.1, 0.9, 0.3, 0.2]


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
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"view-1\.safetensors cannot be read .*: remove it"):
        cache.prepare()


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
    with pytest.raises(RecipeError, match="the same classes"):
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
    broken = replace(made, schedule=Schedule(1e30, "constant"), epochs=3)
    with pytest.raises(TrainingError, match=r"not finite in epoch 2, step \d.*began with.*the last good checkpoint is"):
        broken.run(resume=True)
    again = replace(made, epochs=1).run(resume=True)
    assert_same(trained.graph, again.graph)


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
