"""`evaluate_many`: many variants of a model evaluated in parallel, each content once, resumable.

Sensitivity, mixed precision and search all come down to this.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from onnxslim.data.progress import ProgressCallback
from onnxslim.errors import DataError
from onnxslim.evaluation.models import digest_of
from onnxslim.files import read_json, write_atomic
from onnxslim.ir.graph import Graph

__all__ = ["Point", "Result", "Variant", "evaluate_many"]

K = TypeVar("K", bound=Hashable)

Variant: TypeAlias = "Graph | Callable[[], Graph]"
"""A model, or a function that makes it (called on the worker, so that variants need not all exist at once)."""

Result: TypeAlias = "float | int | str | bool | list[Result] | dict[str, Result] | None"
"""What an evaluation gives: anything that JSON holds."""

_VERSION = 1


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
    store: Path | None = None,
    workers: int = 1,
    context: str = "",
    progress: ProgressCallback | None = None,
    finished: Callable[[K, Point], None] | None = None,
) -> dict[K, Point]:
    """evaluate(graph) for every variant, in the order of `variants`, `workers` at a time.

    evaluate: runs on one core each, from several threads at once.
    store: a JSON file, written atomically after every point and read first; points are found again
    by the digest of the graph's content, whatever their key. context: what else a result depends on
    (digest of the data, settings); results under another context are kept and not used.
    finished: called with each point as it comes, one at a time, for a caller with a file of its own.

    The first error of a variant, and Ctrl-C, are raised once running variants have ended: what they found is stored,
    and given to `finished`, like all before.
    Raises DataError where the store is no store of this kind or a result is nothing JSON holds.
    """
    if workers < 1:
        raise DataError(f"workers is at least 1: got {workers}")
    desk = _Desk[K](evaluate, _Store(store, context), finished)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="variant")
    try:
        jobs = {key: pool.submit(desk.work, key, variant) for key, variant in variants.items()}
        if progress is not None and jobs:
            progress("evaluating variants", 0, len(jobs))
        for done, job in enumerate(as_completed(jobs.values()), 1):
            if job.exception() is not None:
                break
            if progress is not None:
                progress("evaluating variants", done, len(jobs))
    finally:
        desk.close()
        pool.shutdown(wait=True, cancel_futures=True)
    if desk.errors:
        raise desk.errors[0]
    return {key: job.result() for key, job in jobs.items()}


class _Desk(Generic[K]):
    """Where workers take a variant to a result. Nothing is begun after the first error."""

    def __init__(
        self, evaluate: Callable[[Graph], Result], store: _Store, finished: Callable[[K, Point], None] | None
    ) -> None:
        self._evaluate, self._store, self._finished = evaluate, store, finished
        self._running: dict[str, Future[Point]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self.errors: list[BaseException] = []

    def close(self) -> None:
        self._closed = True

    def work(self, key: K, variant: Variant) -> Point:
        if self._closed:
            raise CancelledError
        try:
            point = self._point(variant)
            if self._finished is not None:
                with self._lock:
                    self._finished(key, point)
            return point
        except BaseException as error:
            self.errors.append(error)
            self._closed = True
            raise

    def _point(self, variant: Variant) -> Point:
        graph = variant if isinstance(variant, Graph) else variant()
        digest = digest_of(graph)
        with self._lock:
            known = self._store.get(digest)
            if known is not None:
                return known
            mine = digest not in self._running
            future = self._running.setdefault(digest, Future())
        if not mine:
            return replace(future.result(), cached=True)
        try:
            start = time.perf_counter()
            point = Point(digest, self._evaluate(graph), time.perf_counter() - start, False)
            with self._lock:
                self._store.add(point)
        except BaseException as error:
            future.set_exception(error)
            raise
        future.set_result(point)
        return point


class _Store:
    """Results by context and digest, mirrored in a JSON file."""

    def __init__(self, path: Path | None, context: str) -> None:
        self._path = path
        self._all: dict[str, dict[str, dict[str, Result]]] = {}
        if path is not None and path.exists():
            self._all = _read(path)
        self._points = self._all.setdefault(context, {})

    def get(self, digest: str) -> Point | None:
        entry = self._points.get(digest)
        if entry is None:
            return None
        seconds = entry["seconds"]
        return Point(digest, entry["result"], seconds if isinstance(seconds, float) else 0.0, True)

    def add(self, point: Point) -> None:
        self._points[point.digest] = {"result": point.result, "seconds": round(point.seconds, 3)}
        try:
            text = json.dumps({"version": _VERSION, "contexts": self._all}, indent=1, sort_keys=True)
        except (TypeError, ValueError) as error:
            del self._points[point.digest]
            kind = type(point.result).__name__
            raise DataError(f"A result must be what JSON holds, got {kind}: {error}") from error
        if self._path is not None:
            write_atomic(self._path, text.encode())


def _read(path: Path) -> dict[str, dict[str, dict[str, Result]]]:
    try:
        content = read_json(path)
        if content["version"] != _VERSION:
            raise DataError(f"{path}: results of version {content['version']}, expected {_VERSION}: move the file away")
        contexts = content["contexts"]
        for points in contexts.values():
            for entry in points.values():
                entry["result"], entry["seconds"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is not a file of evaluation results ({error}): move it away to start anew") from error
    found: dict[str, dict[str, dict[str, Result]]] = contexts
    return found
