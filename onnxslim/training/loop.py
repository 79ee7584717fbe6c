"""`Trainer`: the training loop, from top to bottom."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from onnxslim.data import Batch, Loader, ProgressCallback
from onnxslim.errors import DataError, TrainingError
from onnxslim.graph import Array, Graph
from onnxslim.training.checkpoints import Checkpoints
from onnxslim.training.nan_hunt import first_nonfinite
from onnxslim.training.optimizers import Optimizer
from onnxslim.training.parameters import mark_parameters
from onnxslim.training.schedules import Schedule
from onnxslim.training.state import State
from onnxslim.training.step import Step, StepOptions, build_step
from onnxslim.training.teacher_cache import TeacherCache
from onnxslim.training.update import UpdatePlan
from onnxslim.training.workers import Engine, shares

__all__ = ["Interrupted", "Trainer", "TrainingResult"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after the running step was finished and its checkpoint written."""


@dataclass(frozen=True)
class TrainingResult:
    """The trained graph (the last epoch's), the best on validation, one record an epoch, and the state at the end."""

    graph: Graph
    best: Graph
    history: tuple[dict[str, Any], ...]
    state: State


@dataclass
class Trainer:
    """Trains `student` in place of its parameters; the graph itself is not changed.

    validate: the metric (larger is better) of an evaluation-mode graph; freeze_from: the first epoch
    in which batch norm uses its running statistics. folder: for checkpoints; None keeps none.
    start: the state to go on from, such as one that was cut with its model; default: the student's own.
    Equal seeds, data and workers give equal weights, however often a run is interrupted and resumed.
    """

    student: Graph
    loader: Loader
    options: StepOptions
    optimizer: Optimizer
    schedule: Schedule
    epochs: int
    workers: int = 1
    teacher: Graph | None = None
    cache: TeacherCache | None = None
    freeze_from: int | None = None
    folder: Path | None = None
    label: str = "train"
    keep: int = 2
    validate: Callable[[Graph], float] | None = None
    progress: ProgressCallback | None = None
    log: Callable[..., None] | None = None
    start: State | None = None
    _stop: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.student = self.student.copy()
        mark_parameters(self.student)

    def run(self, resume: bool = False) -> TrainingResult:
        """Trains from the start, or from the newest checkpoint; returns what came out.

        Raises TrainingError naming where NaN or infinity began, DataError for labels out of range,
        Interrupted after Ctrl-C.
        """
        run = {"batch": self.loader.batch, "seed": self.loader.seed, "workers": self.workers}
        checkpoints = Checkpoints(self.folder, self.label, self.keep, run) if self.folder is not None else None
        state = State.of(self.student, self.optimizer)
        if self.start is not None:
            self.start.check_like(state, "The state to start from")
            state = self.start
        found = checkpoints.latest(state) if checkpoints is not None and resume else None
        state = found or state
        engine, frozen = None, None
        with self._interruptible():
            for epoch in range(state.epoch, self.epochs):
                if engine is None or frozen != self._is_frozen(epoch):
                    if engine is not None:
                        state = replace(state, arrays=engine.arrays())
                        engine.close()
                    frozen = self._is_frozen(epoch)
                    engine, steps = self._engine(state, frozen)
                state = self._epoch(engine, steps, state, epoch, checkpoints)
        if engine is not None:
            engine.close()
        best = checkpoints.best(state) if checkpoints is not None else None
        return TrainingResult(self._written(state), self._written(best or state), tuple(state.history), state)

    def _is_frozen(self, epoch: int) -> bool:
        return self.freeze_from is not None and epoch >= self.freeze_from

    def _engine(self, state: State, frozen: bool) -> tuple[Engine, list[Step]]:
        options = replace(self.options, frozen_batchnorm=frozen, teacher_as_input=self.cache is not None)
        sizes = shares(self.loader.batch, self.workers)
        built = {size: build_step(self.student, size, options, self.teacher) for size in dict.fromkeys(sizes)}
        steps = [built[size] for size in sizes]
        trained = steps[0].trained
        plan = UpdatePlan(
            parameters=trained.parameters,
            batchnorms=trained.batchnorms,
            observers=trained.observers,
            weights=trained.weights,
            shares=tuple(size / self.loader.batch for size in sizes),
            optimizer=self.optimizer,
        )
        return Engine(steps, plan, state.arrays), steps

    def _epoch(
        self, engine: Engine, steps: list[Step], state: State, epoch: int, checkpoints: Checkpoints | None
    ) -> State:
        total, totals = self.loader.steps_per_epoch, dict(state.sums)
        began, waited = time.perf_counter(), self.loader.waited_s
        done = state.step_in_epoch
        batches = self.loader.epoch(epoch, done)
        try:
            for batch in batches:
                feeds = self._feeds(batch)
                rate = self.schedule.rate(epoch * total + done, total, self.epochs)
                metrics = engine.compute(feeds)
                if not math.isfinite(metrics["loss"]):
                    raise TrainingError(self._nan(engine, steps, feeds, epoch, done, checkpoints))
                engine.apply(rate, epoch * total + done + 1)
                done += 1
                for name, value in metrics.items():
                    totals[name] = totals.get(name, 0.0) + value
                if self.progress is not None:
                    self.progress(self.label, epoch * total + done, self.epochs * total)
                if self._stop and done < total:
                    self._keep(engine, state, epoch, done, totals, checkpoints)
        finally:
            batches.close()
        seconds, waited = time.perf_counter() - began, self.loader.waited_s - waited
        arrays = engine.arrays()
        trained = replace(state, arrays=arrays, epoch=epoch + 1, step_in_epoch=0, step=(epoch + 1) * total, sums={})
        metric = self.validate(self._written(trained)) if self.validate is not None else None
        record = self._record(epoch, totals, total, rate, metric, seconds, waited)
        is_best = metric is not None and (state.best is None or metric > state.best)
        trained = replace(trained, history=[*state.history, record], best=metric if is_best else state.best)
        if checkpoints is not None:
            checkpoints.save(trained, is_best=is_best)
        if self.log is not None:
            self.log(stage=self.label, **record)
        if self._stop:
            raise Interrupted(self._farewell(checkpoints, epoch + 1, 0))
        return trained

    def _record(
        self,
        epoch: int,
        totals: dict[str, float],
        steps: int,
        rate: float,
        metric: float | None,
        seconds: float,
        waited: float,
    ) -> dict[str, Any]:
        record: dict[str, Any] = {"epoch": epoch + 1, "lr": rate}
        for name, value in totals.items():
            if name == "correct":
                record["train_top1"] = value / (steps * self.loader.batch)
            else:
                record[name] = value / steps
        if metric is not None:
            record["val"] = metric
        record["seconds"] = round(seconds, 2)
        record["images_per_second"] = round(steps * self.loader.batch / max(seconds, 1e-9), 1)
        record["data_wait"] = round(waited / max(seconds, 1e-9), 5)
        return record

    def _feeds(self, batch: Batch) -> dict[str, Array]:
        feeds = dict(batch.feeds)
        logits = self.student.outputs[0]
        if self.options.labelled:
            if batch.labels is None:
                raise DataError("The loss needs labels, but the training data have none: use distillation alone")
            classes = logits.shape[-1] if logits.shape else None
            last = classes - 1 if isinstance(classes, int) else np.iinfo(np.int64).max
            wrong = np.flatnonzero((batch.labels < 0) | (batch.labels > last))
            if wrong.size:
                raise DataError(
                    f"Sample {int(batch.indices[wrong[0]])} has the label {int(batch.labels[wrong[0]])}, "
                    f"but output '{logits.name}' has {classes} classes (expected 0 … {last})"
                )
            feeds["label"] = batch.labels
        if self.cache is not None:
            assert batch.view is not None
            feeds[f"teacher.{logits.name}"] = self.cache.outputs(batch.indices, batch.view)
        return feeds

    def _nan(
        self,
        engine: Engine,
        steps: list[Step],
        feeds: dict[str, Array],
        epoch: int,
        done: int,
        checkpoints: Checkpoints | None,
    ) -> str:
        """The message of a loss that is not finite; the state from before the step is still the engine's."""
        start, where, state = 0, "", engine.arrays()
        for step in steps:
            part = {name: array[start : start + step.batch] for name, array in feeds.items()}
            where = first_nonfinite(step, part, state)
            start += step.batch
            if not where.startswith("no single"):
                break
        kept = checkpoints.newest_name() if checkpoints is not None else None
        advice = f"the last good checkpoint is {kept}" if kept else "no checkpoint was written before it"
        return (
            f"The loss is not finite in epoch {epoch + 1}, step {done + 1}. It began with {where}. "
            f"Training stopped; {advice}. A smaller learning_rate or a clip_norm usually helps"
        )

    def _keep(
        self,
        engine: Engine,
        state: State,
        epoch: int,
        done: int,
        sums: dict[str, float],
        checkpoints: Checkpoints | None,
    ) -> None:
        """Saves the state in mid-epoch and stops."""
        if checkpoints is not None:
            step = epoch * self.loader.steps_per_epoch + done
            checkpoints.save(
                replace(state, arrays=engine.arrays(), epoch=epoch, step_in_epoch=done, step=step, sums=sums)
            )
        raise Interrupted(self._farewell(checkpoints, epoch, done))

    def _farewell(self, checkpoints: Checkpoints | None, epoch: int, done: int) -> str:
        what = f"Stopped in epoch {epoch + 1} after {done} steps" if done else f"Stopped after epoch {epoch}"
        return f"{what}; the checkpoint is written" if checkpoints is not None else what

    def _written(self, state: State) -> Graph:
        graph = self.student.copy()
        state.write_to(graph)
        return graph

    @contextmanager
    def _interruptible(self) -> Generator[None, None, None]:
        """The first Ctrl-C or SIGTERM lets the running step finish; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
