"""`Worker`: runs a step's graph on its share of each batch; `LocalWorker`: one in this process.

The engine owns all memory that the two have in common, and knows nothing else of a worker: one in this process reads
and writes it in place, one elsewhere (`training/remote.py`) copies what it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxslim.ir.graph import Array
from onnxslim.runtime.installation import load_runtime
from onnxslim.runtime.session import Session
from onnxslim.training.ports import Port
from onnxslim.training.step import Step

__all__ = ["Buffer", "LocalWorker", "Memory", "Worker"]


@dataclass(frozen=True)
class Memory:
    """What an engine and a worker have in common.

    banks: the state twice, of which a step reads one. What no step changes is the same array in both; it never
    changes. results: where the step's outputs go, each in the shape that it has there.
    """

    banks: Sequence[Mapping[Port, Array]]
    results: Mapping[Port, Array]


class Worker(Protocol):
    """What an engine asks of a worker, one call at a time, from any thread."""

    def start(self, step: Step, memory: Memory) -> None:
        """Prepares for running a step. A further call begins anew, also after a death."""
        ...

    def run(self, feeds: Mapping[Port, Array], bank: int) -> None:
        """Runs the step on its share of a batch and that bank's state; afterwards the results are in the memory.

        Raises CrashError where the worker died. The banks are then as they were.
        """
        ...

    def close(self) -> None:
        """Lets go of what it holds. A further call does nothing."""
        ...


class Buffer:
    """An array that sessions read and write in place."""

    def __init__(self, array: Array) -> None:
        self.array = np.asarray(array, order="C")
        # It shares the array's memory, which must outlive it.
        self.value = load_runtime().OrtValue.ortvalue_from_numpy(self.array, "cpu")


class LocalWorker:
    """A session in this process; inputs and outputs are bound to the memory once. threads: inside an op."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._session: Session | None = None
        self._step: Step | None = None
        self._bindings: list[Any] = []
        self._kept: list[Buffer] = []

    def start(self, step: Step, memory: Memory) -> None:
        self._step, self._session = step, Session(step.graph, threads=self._threads, fuse_qdq=False)
        results = {step.ports[port]: Buffer(array) for port, array in memory.results.items()}
        self._bindings, self._kept = [], list(results.values())
        for bank in memory.banks:
            binding = self._session.raw.io_binding()
            for name, array in step.fed_from(bank).items():
                self._kept.append(Buffer(array))
                binding.bind_ortvalue_input(name, self._kept[-1].value)
            for name, buffer in results.items():
                binding.bind_ortvalue_output(name, buffer.value)
            self._bindings.append(binding)

    def run(self, feeds: Mapping[Port, Array], bank: int) -> None:
        assert self._step is not None
        assert self._session is not None
        ports, binding = self._step.ports, self._bindings[bank]
        kept = [(ports[port], np.asarray(feeds[port], order="C")) for port in self._step.data]
        for name, array in kept:
            binding.bind_cpu_input(name, array)
        self._session.raw.run_with_iobinding(binding)

    def close(self) -> None:
        return
