"""`evaluate_many`: many variants of a model evaluated in parallel, each content once, resumable.

Sensitivity, mixed precision and search all come down to this.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from onnxslim.data.progress import ProgressCallback
from onnxslim.errors import CrashError, DataError
from onnxslim.evaluation.models import digest_of
from onnxslim.evaluation.store import Result, Store
from onnxslim.evaluation.task import Task
from onnxslim.ir.graph import Graph

__all__ = ["Point", "Variant", "evaluate_many"]

K = TypeVar("K", bound=Hashable)

Variant: TypeAlias = "Graph | Callable[[], Graph]"
"""A model, or a function that makes it (called when its turn comes, so that variants need not all exist at once)."""


@dataclass(frozen=True)
class Point:
    """The result of one variant. cached: known before, from the store or an equal variant."""

    digest: str
    result: Result
    seconds: float
    cached: bool


def evaluate_many(
    variants: Mapping[K, Variant],
    evaluate: Callable[[Graph], Result],
    *,
    executor: Executor | None = None,
    workers: int = 1,
    store: Path | None = None,
    context: str = "",
    progress: ProgressCallback | None = None,
    finished: Callable[[K, Point], None] | None = None,
) -> dict[K, Point]:
    """evaluate(graph) for every variant, in the order of `variants`, `workers` at a time.

    evaluate: runs on one core each, several at once. Its results are what JSON holds, and come as JSON gives them back.
    executor: where it runs; default: on threads of this process. One of processes or of other machines is sent each
    model as bytes, and takes a function of a module, or a `functools.partial` of one with plain arguments (see `Task`);
    processes are spawned (`multiprocessing.get_context("spawn")`), since ONNX Runtime does not survive a fork.
    workers: how many variants are made, and wait for the executor, at once.
    store: a file to which a line is added with every point (see `Store`), read first; points are found again by the
    digest of the graph's content, whatever their key. context: what else a result depends on (digest of the data,
    settings); results under another context are kept and not used.
    finished: called with each point as it comes, one at a time, for a caller with a store of its own.

    The first error of a variant, and Ctrl-C, are raised once running variants have ended: what they found is stored,
    and given to `finished`, like all before.
    Raises DataError where the store is none, a result is nothing JSON holds, `evaluate` cannot be sent or processes are
    forked, CrashError where a process of the executor died.
    """
    if workers < 1:
        raise DataError(f"workers is at least 1: got {workers}")
    if isinstance(executor, ProcessPoolExecutor) and _forks(executor):
        raise DataError(
            "The executor forks its processes, which ONNX Runtime does not survive: make it with "
            "ProcessPoolExecutor(…, mp_context=multiprocessing.get_context('spawn'))"
        )
    evaluation = _Evaluation[K](evaluate, executor, Store(store, context), finished)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="variant")
    try:
        jobs = {key: pool.submit(evaluation.run, key, variant) for key, variant in variants.items()}
        if progress is not None and jobs:
            progress("evaluating variants", 0, len(jobs))
        for done, job in enumerate(as_completed(jobs.values()), 1):
            if job.exception() is not None:
                break
            if progress is not None:
                progress("evaluating variants", done, len(jobs))
    finally:
        evaluation.close()
        pool.shutdown(wait=True, cancel_futures=True)
    if evaluation.errors:
        raise evaluation.errors[0]
    return {key: job.result() for key, job in jobs.items()}


def _forks(executor: ProcessPoolExecutor) -> bool:
    context = getattr(executor, "_mp_context", None)  # there is no public word for it
    return context is not None and context.get_start_method() == "fork"


class _Evaluation(Generic[K]):
    """Takes variants to points, from several threads at once. Nothing is begun after the first error."""

    def __init__(
        self,
        evaluate: Callable[[Graph], Result],
        executor: Executor | None,
        store: Store,
        finished: Callable[[K, Point], None] | None,
    ) -> None:
        self._evaluate, self._executor, self._store, self._finished = evaluate, executor, store, finished
        self._running: dict[str, Future[Point]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self.errors: list[BaseException] = []

    def close(self) -> None:
        self._closed = True

    def run(self, key: K, variant: Variant) -> Point:
        if self._closed:
            raise CancelledError
        try:
            point = self._point(key, variant)
            if self._finished is not None:
                with self._lock:
                    self._finished(key, point)
            return point
        except BaseException as error:
            self.errors.append(error)
            self._closed = True
            raise

    def _point(self, key: K, variant: Variant) -> Point:
        graph = variant if isinstance(variant, Graph) else variant()
        digest = digest_of(graph)
        with self._lock:
            known = self._store.entries.get(digest)
            if known is not None:
                return Point(digest, known.result, known.seconds, True)
            mine = digest not in self._running
            future = self._running.setdefault(digest, Future())
        if not mine:
            return replace(future.result(), cached=True)
        try:
            found = json.loads(self._done(key, Task(graph, self._evaluate)))
            point = Point(digest, found["result"], found["seconds"], False)
            with self._lock:
                self._store.add(digest, point.result, point.seconds)
        except BaseException as error:
            future.set_exception(error)
            raise
        future.set_result(point)
        return point

    def _done(self, key: K, task: Task) -> bytes:
        """What the task gives, here or where the executor runs it."""
        if self._executor is None:
            return task()
        try:
            return self._executor.submit(task).result()
        except BrokenExecutor as error:
            raise CrashError(
                f"A process of the executor died while variant {key!r} was evaluated: {error}. A store keeps what was "
                "found before: evaluate again, on a new executor, to go on"
            ) from error
