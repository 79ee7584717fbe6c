"""`RemoteWorker`: a worker elsewhere that answers messages; `StepServer` is what answers them.

    {"start": options of the session, "state": what no step changes} + the step as ONNX, arrays  →  {}
    {"run": what is fed, and the state as it is now} + arrays                                    →  {"done": …} + arrays

Messages are JSON and bytes (`runtime/messages.py`), so that any transport serves: a pipe to a process (`pipe_worker`),
a socket, an actor of Ray's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np

from onnxslim.ir.graph import Array
from onnxslim.ir.onnx_io import to_bytes
from onnxslim.runtime.denormals import flush_denormals
from onnxslim.runtime.messages import Blobs, Head, arrays_from, arrays_to
from onnxslim.runtime.peer import Peer, answer_messages
from onnxslim.runtime.session import Session
from onnxslim.training.ports import Port
from onnxslim.training.step import Step
from onnxslim.training.worker import Memory

__all__ = ["Ask", "RemoteWorker", "StepServer", "pipe_worker", "serve"]

Ask: TypeAlias = "Callable[[Head, Blobs], tuple[Head, list[bytes]]]"
"""Takes a message to a `StepServer` and brings its answer back. Raises the server's errors as they were raised there,
and CrashError where it died; it is then expected to begin with a new one."""


class RemoteWorker:
    """A worker whose step runs where `ask` leads. threads: inside an op. close: ends what `ask` speaks to."""

    def __init__(self, ask: Ask, close: Callable[[], None] = lambda: None, threads: int = 1) -> None:
        self._ask, self._close, self._threads = ask, close, threads
        self._step: Step | None = None
        self._memory = Memory((), {})
        self._moved: frozenset[str] = frozenset()

    def start(self, step: Step, memory: Memory) -> None:
        now, other = memory.banks
        self._step, self._memory = step, memory
        self._moved = frozenset(step.ports[port] for port in step.state if now[port] is not other[port])
        kept = {name: array for name, array in step.fed_from(now).items() if name not in self._moved}
        names, arrays = arrays_to(kept)
        options = {"name": f"graph '{step.graph.name}'", "threads": self._threads, "fuse_qdq": False}
        self._ask({"start": options, "state": names}, [to_bytes(step.graph, named=True), *arrays])

    def run(self, feeds: Mapping[Port, Array], bank: int) -> None:
        step = self._step
        assert step is not None
        fed = {step.ports[port]: np.asarray(feeds[port], order="C") for port in step.data}
        state = step.fed_from(self._memory.banks[bank])
        names, arrays = arrays_to({**fed, **{name: state[name] for name in state if name in self._moved}})
        answer, found = self._ask({"run": names}, arrays)
        results = arrays_from(answer["done"], found)
        for port, array in self._memory.results.items():
            array[...] = results[step.ports[port]]

    def close(self) -> None:
        self._close()


class StepServer:
    """The other end of a `RemoteWorker`: has the step, and what no step changes of the state."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._state: dict[str, Array] = {}
        self._thread = ThreadPoolExecutor(1, initializer=flush_denormals)  # as an engine's workers run

    def answer(self, head: Head, blobs: list[bytes]) -> tuple[Head, Blobs]:
        """The answer to a message. Raises errors of ours, which the transport is to bring back."""
        if "start" in head:
            self._session = None  # before the next one takes memory
            self._session = Session(blobs[0], **head["start"])
            self._state = arrays_from(head["state"], blobs[1:])
            return {}, []
        assert self._session is not None
        found = self._thread.submit(self._session.run, {**self._state, **arrays_from(head["run"], blobs)})
        names, arrays = arrays_to(found.result())
        return {"done": names}, arrays


def pipe_worker(threads: int = 1) -> RemoteWorker:
    """A worker in a process of its own, to which nothing but bytes go, over a pipe. After a death it begins anew."""
    peer = Peer(serve)
    peer.busy_with = "a training step"
    return RemoteWorker(peer.ask, peer.close, threads)


def serve() -> None:
    """What the process of a `pipe_worker` does."""
    answer_messages(StepServer().answer)
