"""Workers elsewhere: the same bits as in this process, and a death costs a step that is done again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from onnxslim.errors import CrashError, DataError, TrainingError
from onnxslim.ir.graph import Array, Graph
from onnxslim.runtime import messages
from onnxslim.runtime.messages import Blobs, Head
from onnxslim.runtime.peer import Peer
from onnxslim.training.loop import Trainer
from onnxslim.training.optimizers import Sgd
from onnxslim.training.ports import Kind, Port
from onnxslim.training.remote import RemoteWorker, StepServer, pipe_worker, serve
from onnxslim.training.state import State
from onnxslim.training.step import Step, StepOptions, build_step
from onnxslim.training.update import UpdatePlan
from onnxslim.training.worker import LocalWorker, Memory, Worker
from onnxslim.training.workers import Engine, shares
from passes.distill import CrossEntropy

BATCH = 7
"""Of which one worker takes four images, the other three."""


def engine_of(graph: Graph, workers: Sequence[Worker] | None) -> Engine:
    sizes = shares(BATCH, 2)
    steps = [build_step(graph, size, StepOptions((CrossEntropy(),))) for size in sizes]
    plan = UpdatePlan(steps[0].updates, tuple(size / BATCH for size in sizes), Sgd(clip_norm=1.0))
    return Engine(steps, plan, State.of(graph, plan.optimizer).arrays, workers=workers)


def feeds_of(graph: Graph, number: int) -> dict[Port, Array]:
    rng, image = np.random.default_rng(number), graph.inputs[0]
    images = rng.normal(size=(BATCH, 1, 8, 8)).astype(np.float32)
    return {Port(Kind.DATA, image.name): images, Port(Kind.LABEL): rng.integers(0, 6, BATCH)}


def trained(graph: Graph, workers: Sequence[Worker] | None, steps: int = 3) -> tuple[list[Any], dict[Port, bytes]]:
    """Metrics of each step, and every bit of the state after them."""
    found = []
    with closing(engine_of(graph, workers)) as engine:
        for number in range(1, steps + 1):
            found.append(engine.compute(feeds_of(graph, number)))
            engine.apply(0.1, number)
        return found, {port: array.tobytes() for port, array in engine.arrays().items()}


def answer_connection(connection: Connection) -> None:
    """The other end of a spawned process that takes bytes, and gives bytes."""
    server = StepServer()
    while data := connection.recv_bytes():
        connection.send_bytes(messages.to_bytes(*server.answer(*messages.from_bytes(data))))


def spawned() -> RemoteWorker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=answer_connection, args=(theirs,), daemon=True)
    process.start()

    def ask(head: Head, blobs: Blobs) -> tuple[Head, list[bytes]]:
        ours.send_bytes(messages.to_bytes(head, blobs))
        return messages.from_bytes(ours.recv_bytes())

    def close() -> None:
        ours.send_bytes(b"")
        process.join()
        ours.close()

    return RemoteWorker(ask, close)


class Mortal(RemoteWorker):
    """A server in this process that dies in the runs of those numbers, its step half done."""

    def __init__(self, deaths: set[int]) -> None:
        self.runs, self.starts, self.server = 0, 0, StepServer()

        def ask(head: Head, blobs: Blobs) -> tuple[Head, list[bytes]]:
            self.starts += "start" in head
            self.runs += "run" in head
            answer, found = self.server.answer(head, [bytes(blob) for blob in blobs])
            if "run" in head and self.runs in deaths:
                self.server = StepServer()
                raise CrashError("ONNX Runtime died with a training step (SIGKILL)")
            return answer, [bytes(blob) for blob in found]

        super().__init__(ask)


@pytest.mark.parametrize("quantize", [True, False], ids=["qat", "float"])
def test_workers_elsewhere_give_the_same_bits(quantize: bool, student: Callable[[bool], Graph]) -> None:
    """Processes of the standard library's, and one to which only bytes go over a pipe."""
    graph = student(quantize)
    expected = trained(graph, None)
    assert trained(graph, [spawned() if quantize else LocalWorker(), pipe_worker()]) == expected
    assert len({metrics["loss"] for metrics in expected[0]}) == 3


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
def test_a_killed_process_costs_a_step_that_is_done_again(student: Callable[[bool], Graph]) -> None:
    graph = student(True)
    expected = trained(graph, None)
    peer, found = Peer(serve), []
    worker = RemoteWorker(peer.ask, peer.close)
    with closing(engine_of(graph, [LocalWorker(), worker])) as engine:
        for number in range(1, 4):
            if number == 2:
                assert peer.process is not None
                os.kill(peer.process.pid, signal.SIGSTOP)  # it has got the step, and does not answer
                threading.Timer(0.3, peer.process.kill).start()
                with pytest.warns(
                    UserWarning, match=r"Worker 1 died in a training step, which it does again: .*SIGKILL"
                ):
                    found.append(engine.compute(feeds_of(graph, number)))
            else:
                found.append(engine.compute(feeds_of(graph, number)))
            engine.apply(0.1, number)
        state = {port: array.tobytes() for port, array in engine.arrays().items()}
    assert (found, state) == expected


@pytest.mark.filterwarnings("ignore:Worker 0 died")
def test_deaths_in_the_middle_of_steps_change_no_bit(student: Callable[[bool], Graph]) -> None:
    graph = student(True)
    worker = Mortal({1, 3})
    assert trained(graph, [worker, LocalWorker()]) == trained(graph, None)
    assert (worker.starts, worker.runs) == (3, 5)


@pytest.mark.filterwarnings("ignore:Worker 0 died")
def test_a_step_that_kills_its_worker_twice_is_an_error_and_the_state_is_kept(
    student: Callable[[bool], Graph],
) -> None:
    graph = student(True)
    with closing(engine_of(graph, [Mortal({2, 3}), LocalWorker()])) as engine:
        engine.compute(feeds_of(graph, 1))
        engine.apply(0.1, 1)
        before = {port: array.tobytes() for port, array in engine.arrays().items()}
        with pytest.raises(TrainingError, match="Worker 0 died twice in the same training step; the state is the one"):
            engine.compute(feeds_of(graph, 2))
        assert {port: array.tobytes() for port, array in engine.arrays().items()} == before


class Late:
    """A worker that is late, or fails at once."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.done, self.closed = seconds, False, False

    def start(self, step: Step, memory: Memory) -> None:
        if self.seconds is not None and self.seconds < 0:
            raise DataError("no such step")

    def run(self, feeds: Mapping[Port, Array], bank: int) -> None:
        if self.seconds is None:
            raise DataError("no such feeds")
        time.sleep(self.seconds)
        self.done = True

    def close(self) -> None:
        self.closed = True


def test_no_worker_is_left_writing_where_another_fails(student: Callable[[bool], Graph]) -> None:
    graph, late = student(False), Late(0.3)
    with closing(engine_of(graph, [Late(None), late])) as engine:
        with pytest.raises(DataError, match="no such feeds"):
            engine.compute(feeds_of(graph, 1))
        assert late.done
    assert late.closed


def test_workers_are_closed_where_one_does_not_start(student: Callable[[bool], Graph]) -> None:
    workers = [Late(0.0), Late(-1.0)]
    with pytest.raises(DataError, match="no such step"):
        engine_of(student(False), workers)
    assert all(worker.closed for worker in workers)


def test_denormal_numbers_are_zero_elsewhere_too(student: Callable[[bool], Graph]) -> None:
    """A dead channel's weights: the batch norm behind them makes numbers of them that gradients show."""
    graph = student(False)
    weight = next(graph.operand(node, 1) for node in graph.nodes() if node.op == "Conv")
    assert weight.array is not None
    graph.set_array(weight, np.full_like(weight.array, 1e-40))
    assert trained(graph, [pipe_worker(), LocalWorker()], 1) == trained(graph, None, 1)


def test_errors_elsewhere_are_raised_as_there(student: Callable[[bool], Graph]) -> None:
    graph = student(False)
    with closing(engine_of(graph, [pipe_worker(), LocalWorker()])) as engine:
        feeds = feeds_of(graph, 1)
        wrong = {
            port: array.astype(np.float64) if array.dtype == np.float32 else array for port, array in feeds.items()
        }
        with pytest.raises(DataError, match="expected float32, got float64"):
            engine.compute(wrong)
        assert np.isfinite(engine.compute(feeds)["loss"])


def test_a_whole_training_is_the_same(trainer: Callable[..., Trainer]) -> None:
    """Batch norm is frozen in the last epoch, so that there are two engines, each with workers of its own."""
    here, there = (
        trainer(epochs=2, freeze_from=1, workers=1, make_worker=made).run() for made in (LocalWorker, pipe_worker)
    )
    assert there.history[-1]["loss"] == here.history[-1]["loss"]
    for port, array in here.state.arrays.items():
        np.testing.assert_array_equal(there.state.arrays[port], array, err_msg=str(port))
