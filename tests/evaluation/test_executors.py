"""The same points on threads, on processes, and where only bytes cross."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.errors import CrashError, DataError
from onnxslim.evaluation import Task, digest_of, evaluate_many
from onnxslim.evaluation.task import run_task
from onnxslim.ir.graph import Graph
from onnxslim.runtime.peer import Peer

ELSEWHERE = '''
import os
import numpy as np
from onnxslim.evaluation.task import run_task
from onnxslim.runtime.peer import answer_messages
from onnxslim.runtime.session import Session

def serve():
    """The other end of `Pipe`: a task in, its result out."""
    answer_messages(lambda head, blobs: ({}, [run_task(blobs[0])]))

def score(graph, seed=0, scale=1.0):
    """What a network makes of noise: every bit of it."""
    if graph.metadata.get("deadly") == "yes":
        os._exit(7)
    x = np.random.default_rng(seed).normal(size=(4, 1, 12, 12)).astype(np.float32)
    (y,) = Session(graph).run({graph.inputs[0].name: x}).values()
    return {"sum": float(y.sum(dtype=np.float64)) * scale, "logits": y.astype(np.float64).tolist()}
'''


class Pipe(Executor):
    """A stand-in for a machine elsewhere: one process, to which nothing but bytes go."""

    def __init__(self, serve: Callable[[], None]) -> None:
        self._peer, self._thread = Peer(serve), ThreadPoolExecutor(1)
        self._peer.busy_with = "a task"

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._thread.submit(lambda: self._peer.ask({}, [fn.to_bytes()])[1][0])

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._thread.shutdown(wait, cancel_futures=cancel_futures)
        self._peer.close()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A module that other processes can import."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("module")
        (folder / "elsewhere_of_executors.py").write_text(ELSEWHERE)
        patch.syspath_prepend(folder)
        import elsewhere_of_executors  # type: ignore[import-not-found]

        yield elsewhere_of_executors


@pytest.fixture
def executor(request: pytest.FixtureRequest, elsewhere: Any) -> Iterator[Executor]:
    if request.param == "threads":
        made: Executor = ThreadPoolExecutor(2)
    elif request.param == "processes":
        made = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    else:
        made = Pipe(elsewhere.serve)
    with made:
        yield made


@pytest.mark.parametrize("executor", ["threads", "processes", "pipe"], indirect=True)
def test_an_executor_gives_the_same_bits(executor: Executor, elsewhere: Any, tmp_path: Path) -> None:
    """Also into one store: what one executor found, another finds again."""
    variants = {seed: small_cnn((3, 5), classes=4, image=(1, 12, 12), seed=seed) for seed in range(3)}
    evaluate = partial(elsewhere.score, seed=5, scale=0.5)
    here = evaluate_many(variants, evaluate)
    store = tmp_path / "points.jsonl"
    there = evaluate_many(dict(list(variants.items())[:2]), evaluate, executor=executor, workers=2, store=store)
    there = evaluate_many(variants, evaluate, executor=executor, workers=2, store=store)
    assert {key: point.result for key, point in there.items()} == {key: point.result for key, point in here.items()}
    assert [point.digest for point in there.values()] == [point.digest for point in here.values()]
    assert [point.cached for point in there.values()] == [True, True, False]
    assert len({json.dumps(point.result) for point in here.values()}) == 3


@pytest.mark.parametrize("executor", ["processes", "pipe"], indirect=True)
def test_a_death_loses_its_variant_and_nothing_else(executor: Executor, elsewhere: Any, tmp_path: Path) -> None:
    variants = {seed: small_cnn((3,), classes=4, image=(1, 12, 12), seed=seed) for seed in range(4)}
    variants[2].metadata["deadly"] = "yes"
    store = tmp_path / "points.jsonl"
    with pytest.raises(CrashError, match=r"died while variant 2 was|ONNX Runtime died with a task \(exit code 7\)"):
        evaluate_many(variants, elsewhere.score, executor=executor, store=store)
    kept = evaluate_many(variants, lambda graph: 0, store=store)
    assert [point.cached for point in kept.values()] == [True, True, False, False]
    assert kept[0].result == elsewhere.score(variants[0])


@pytest.mark.parametrize("executor", ["processes"], indirect=True)
def test_what_cannot_be_sent_is_said(executor: Executor, elsewhere: Any) -> None:
    variants = {"a": small_cnn((3,), classes=4, image=(1, 12, 12))}
    with pytest.raises(DataError, match=r"<lambda> cannot be sent to another process: expected a function of a module"):
        evaluate_many(variants, lambda graph: 0, executor=executor)
    for bad in ((1, 2), np.float32(1), {3: 4}):
        with pytest.raises(DataError, match="arguments of score cannot be sent to another process"):
            evaluate_many(variants, partial(elsewhere.score, seed=bad), executor=executor)
    with pytest.raises(DataError, match=r"Graph\.find cannot be sent"):
        evaluate_many(variants, variants["a"].find, executor=executor)


def test_a_task_crosses_as_bytes(elsewhere: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graph: Graph = small_cnn((3,), classes=4, image=(1, 12, 12))
    there = Task.from_bytes(Task(graph, partial(elsewhere.score, seed=3, scale=2.0)).to_bytes())
    assert digest_of(there.graph) == digest_of(graph)
    assert json.loads(there())["result"] == elsewhere.score(graph, 3, 2.0)
    assert Task.from_bytes(Task(graph, digest_of).to_bytes()).evaluate is digest_of
    sent = Task(graph, elsewhere.score).to_bytes()
    monkeypatch.delattr(elsewhere, "score")
    with pytest.raises(DataError, match="score of module elsewhere_of_executors is not found in the process that is"):
        run_task(sent)


@pytest.mark.skipif("fork" not in get_all_start_methods(), reason="Nothing forks here")
def test_processes_that_fork_are_refused() -> None:
    with (
        ProcessPoolExecutor(1, mp_context=get_context("fork")) as executor,
        pytest.raises(DataError, match=r"forks its processes, which ONNX Runtime does not survive: .*'spawn'"),
    ):
        evaluate_many({"a": small_cnn((3,))}, digest_of, executor=executor)
