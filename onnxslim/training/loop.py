"""`Trainer`: the training loop, from top to bottom."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from onnxslim.data import Batch, Loader, ProgressCallback, Say, time_in_words
from onnxslim.errors import DataError, TrainingError
from onnxslim.ir.graph import Array, Graph
from onnxslim.training.checkpoints import Checkpoints
from onnxslim.training.nan_hunt import first_nonfinite, nonfinite_state, watched
from onnxslim.training.pace import Clock, Pace
from onnxslim.training.parameters import mark_parameters
from onnxslim.training.ports import Kind, Port
from onnxslim.training.schedules import Schedule
from onnxslim.training.state import State
from onnxslim.training.step import Layout, Step, StepOptions, build_step
from onnxslim.training.step_checker import StepChecker
from onnxslim.training.teacher_cache import TeacherCache
from onnxslim.training.update import Optimizer, UpdatePlan
from onnxslim.training.worker import LocalWorker, Worker
from onnxslim.training.workers import Engine, shares

__all__ = ["Interrupted", "Trainer", "TrainingResult"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after the running step was finished and its checkpoint written."""


@dataclass(frozen=True)
class TrainingResult:
    """The trained graph (the last epoch's), the best on validation (the student itself is among them), one record an
    epoch, the state at the end, and how many seconds lay before this process took over."""

    graph: Graph
    best: Graph
    history: tuple[dict[str, Any], ...]
    state: State
    seconds_before: float = 0.0


@dataclass
class Trainer:
    """Trains `student` in place of its parameters; the graph itself is not changed.

    validate: the metric (larger is better) of an evaluation-mode graph; it is also measured before training, which
    need not better it; shown: the metric in words. freeze_from: the first epoch in which batch norm uses its running
    statistics. folder: for checkpoints; None keeps none. say: takes a line an epoch, and what is done before the first.
    checked: whether a step is run before and after each pass that makes it, and the one that changes it named.
    start: the state to go on from, such as one that was cut with its model; default: the student's own. make_worker:
    makes one of `workers`, in this process or elsewhere (`pipe_worker`).
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
    checked: bool = False
    validate: Callable[[Graph], float] | None = None
    progress: ProgressCallback | None = None
    log: Callable[..., None] | None = None
    say: Say | None = None
    shown: Callable[[float], str] = "{:.4g}".format
    start: State | None = None
    make_worker: Callable[[], Worker] = LocalWorker
    _stop: bool = field(default=False, init=False)
    _built: dict[tuple[int, bool, Layout], Step] = field(default_factory=dict, init=False)
    _best: State | None = field(default=None, init=False)
    _pace: Pace = field(default_factory=Pace, init=False)

    def __post_init__(self) -> None:
        self.student = self.student.copy()
        mark_parameters(self.student)
        as_input = self.options.teacher_as_input or self.cache is not None
        self.options = replace(self.options, teacher_as_input=as_input, seed=self.loader.seed)

    def run(self, resume: bool = False) -> TrainingResult:
        """Trains from the start, or from the newest checkpoint; returns what came out.

        Raises TrainingError naming where NaN or infinity began, DataError for labels out of range,
        Interrupted after Ctrl-C.
        """
        self._pace = Pace()
        run = {"batch": self.loader.batch, "seed": self.loader.seed, "workers": self.workers}
        checkpoints = Checkpoints(self.folder, self.label, self.keep, run) if self.folder is not None else None
        state = self.first_state()
        if self.start is not None:
            self.start.check_like(state, "The state to start from")
            state = self.start
        found = checkpoints.latest(state) if checkpoints is not None and resume else None
        state = self._begun(state, checkpoints) if found is None else self._resumed(found, checkpoints)
        with self._interruptible():
            state = self._trained(state, checkpoints)
        best = self._written(self._best or state)
        before = found.seconds if found is not None else 0.0
        return TrainingResult(self._written(state), best, tuple(state.history), state, before)

    def first_state(self) -> State:
        """The student's arrays, and what the losses own: these are as large as what a loss reads, so a step tells."""
        return State.of(self.student, self.optimizer, next(self.all_steps(self.options.layout)))

    def _trained(self, state: State, checkpoints: Checkpoints | None) -> State:
        """The state after the last epoch. However it ends, no thread is left."""
        engine, frozen = None, None
        try:
            for epoch in range(state.epoch, self.epochs):
                if engine is None or frozen != self._is_frozen(epoch):
                    if engine is not None:
                        engine.close()
                    frozen = self._is_frozen(epoch)
                    engine, steps = self._engine(state, frozen)
                state = self._epoch(engine, steps, state, epoch, checkpoints)
        finally:
            if engine is not None:
                engine.close()
        return state

    def _begun(self, state: State, checkpoints: Checkpoints | None) -> State:
        """The state before training, measured, as the first candidate for the best; old checkpoints are forgotten."""
        if checkpoints is not None:
            checkpoints.clear()
        self._best = None
        if self.validate is not None:
            self._tell("measuring the model before training")
            metric = self.validate(self._written(state))
            state = replace(state, best=metric, best_epoch=state.epoch, before=metric)
            if checkpoints is not None:
                checkpoints.save_first(state)
            self._best = state
        self._tell("building the training step")
        return state

    def _resumed(self, state: State, checkpoints: Checkpoints | None) -> State:
        """A state to go on from; CheckpointError where the best that it names is not there."""
        self._best = checkpoints.best(state) if checkpoints is not None else None
        place = f"epoch {state.epoch + 1}" + (f", step {state.step_in_epoch + 1}" if state.step_in_epoch else "")
        self._tell(f"going on with {place}" if state.epoch < self.epochs else "trained already")
        return state

    def _tell(self, line: str) -> None:
        if self.say is not None:
            self.say(f"{self.label}: {line}")

    def _is_frozen(self, epoch: int) -> bool:
        return self.freeze_from is not None and epoch >= self.freeze_from

    def all_steps(self, layout: Layout) -> Iterator[Step]:
        """Every step that this training makes, in a layout: of each phase, for each size of a worker's share."""
        for frozen in [False, True] if self.freeze_from else [self.freeze_from is not None]:
            for size in dict.fromkeys(shares(self.loader.batch, self.workers)):
                yield self._step(size, frozen, layout)

    def _step(self, size: int, frozen: bool, layout: Layout) -> Step:
        """For so many images. frozen: batch norm uses its running statistics. Built once."""
        key = (size, frozen, layout)
        if key not in self._built:
            options = replace(self.options, frozen_batchnorm=frozen, layout=layout)
            arrays = {v.name: v.array for v in self.student.initializers() if v.array is not None}
            checker = StepChecker(arrays) if self.checked else None
            self._built[key] = build_step(self.student, size, options, self.teacher, checker=checker)
        return self._built[key]

    def _engine(self, state: State, frozen: bool) -> tuple[Engine, list[Step]]:
        sizes, layout = shares(self.loader.batch, self.workers), self.options.layout
        steps = [self._step(size, frozen, layout) for size in sizes]
        self._built = {key: step for key, step in self._built.items() if key[2] == layout}
        plan = UpdatePlan(steps[0].updates, tuple(size / self.loader.batch for size in sizes), self.optimizer)
        return Engine(steps, plan, state.arrays, workers=[self.make_worker() for _ in steps]), steps

    def _epoch(
        self, engine: Engine, steps: list[Step], state: State, epoch: int, checkpoints: Checkpoints | None
    ) -> State:
        total, totals = self.loader.steps_per_epoch, dict(state.sums)
        clock = Clock(self.loader, state)
        done = state.step_in_epoch
        self._pace.start(epoch * total + done)
        batches = self.loader.epoch(epoch, done)
        try:
            for batch in batches:
                feeds = self._feeds(batch)
                largest = self.optimizer.learning_rate
                rate = self.schedule.rate(largest, epoch * total + done, total, self.epochs)
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
                    self._keep(engine, clock.noted(replace(state, sums=totals)), epoch, done, checkpoints)
        finally:
            batches.close()
        spent = clock.noted(state).spent
        arrays = self._sound_arrays(engine, epoch, done, checkpoints)
        trained = replace(state, arrays=arrays, epoch=epoch + 1, step_in_epoch=0, step=(epoch + 1) * total, sums={})
        metric = self.validate(self._written(trained)) if self.validate is not None else None
        record = self._record(epoch, totals, total, rate, metric, spent)
        is_best = metric is not None and (state.best is None or metric > state.best)
        trained = replace(clock.noted(trained), history=[*state.history, record], spent={})
        if is_best:
            trained = self._best = replace(trained, best=metric, best_epoch=epoch + 1)
        if checkpoints is not None:
            checkpoints.save(trained, is_best=is_best)
        if self.log is not None:
            self.log(stage=self.label, **record)
        self._tell(self._line(record, is_best, self._pace.left((epoch + 1) * total, self.epochs * total)))
        if self._stop:
            raise Interrupted(self._farewell(checkpoints, epoch + 1, 0))
        return trained

    def _line(self, record: dict[str, Any], is_best: bool, left: float) -> str:
        """An epoch in words."""
        parts = [f"loss {record['loss']:.4g}"]
        if "train_top1" in record:
            parts.append(f"train top-1 {100 * record['train_top1']:.2f} %")
        if "val" in record:
            parts.append(f"val {self.shown(record['val'])}{' (the best yet)' if is_best else ''}")
        parts += [f"learning rate {record['lr']:.3g}", f"{record['images_per_second']:,.0f} images/s"]
        if record["epoch"] < self.epochs:
            parts.append(f"about {time_in_words(left)} left")
        return f"epoch {record['epoch']} of {self.epochs}: {', '.join(parts)}"

    def _record(
        self,
        epoch: int,
        totals: dict[str, float],
        steps: int,
        rate: float,
        metric: float | None,
        spent: dict[str, float],
    ) -> dict[str, Any]:
        record: dict[str, Any] = {"epoch": epoch + 1, "lr": rate}
        for name, value in totals.items():
            if name == "correct":
                record["train_top1"] = value / (steps * self.loader.batch)
            else:
                record[name] = value / steps
        if metric is not None:
            record["val"] = metric
        seconds = max(spent["seconds"], 1e-9)
        record["seconds"] = round(seconds, 2)
        record["images_per_second"] = round(steps * self.loader.batch / seconds, 1)
        record["data_wait"] = round(spent["waited"] / seconds, 5)
        return record

    def _feeds(self, batch: Batch) -> dict[Port, Array]:
        feeds = {Port(Kind.DATA, name): array for name, array in batch.feeds.items()}
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
            feeds[Port(Kind.LABEL)] = batch.labels
        if self.cache is not None:
            assert batch.view is not None
            for tap in self.cache.taps:
                feeds[Port(Kind.TEACHER, "teacher", tap)] = self.cache.outputs(batch.indices, batch.view, tap)
        return feeds

    def _nan(
        self,
        engine: Engine,
        steps: list[Step],
        feeds: dict[Port, Array],
        epoch: int,
        done: int,
        checkpoints: Checkpoints | None,
    ) -> str:
        """The message of a loss that is not finite; the state from before the step is still the engine's. The batch is
        replayed by the same steps, in which the student's values are watched before any layout."""
        start, where, state = 0, None, engine.arrays()
        options = replace(self.options, frozen_batchnorm=self._is_frozen(epoch), watch=watched(self.student))
        for size in (step.batch for step in steps):
            part = {port: array[start : start + size] for port, array in feeds.items()}
            step = build_step(self.student, size, options, self.teacher)
            where = where or first_nonfinite(step, part, state, self.student)
            start += size
        where = where or "no single value (replayed one by one, every value is finite)"
        began = f"The loss is not finite in epoch {epoch + 1}, step {done + 1}. It began with {where}"
        return f"{began}. {self._advice(checkpoints)}"

    def _sound_arrays(
        self, engine: Engine, epoch: int, done: int, checkpoints: Checkpoints | None
    ) -> dict[Port, Array]:
        """The state after `done` steps of an epoch; TrainingError naming what is NaN or infinite in it. The loss does
        not tell of the last step's update, nor ever of running statistics."""
        arrays = engine.arrays()
        found = nonfinite_state(arrays, engine.before())
        if found is not None:
            raise TrainingError(f"{found}: after epoch {epoch + 1}, step {done}. {self._advice(checkpoints)}")
        return arrays

    def _advice(self, checkpoints: Checkpoints | None) -> str:
        kept = checkpoints.newest_name() if checkpoints is not None else None
        advice = f"the last good checkpoint is {kept}" if kept else "no checkpoint was written before it"
        return f"Training stopped; {advice}. A smaller learning_rate or a clip_norm usually helps"

    def _keep(
        self,
        engine: Engine,
        state: State,
        epoch: int,
        done: int,
        checkpoints: Checkpoints | None,
    ) -> None:
        """Saves the state in mid-epoch and stops."""
        if checkpoints is not None:
            step = epoch * self.loader.steps_per_epoch + done
            arrays = self._sound_arrays(engine, epoch, done, checkpoints)
            checkpoints.save(replace(state, arrays=arrays, epoch=epoch, step_in_epoch=done, step=step))
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
