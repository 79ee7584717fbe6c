"""`Engine`: one training step — a share of the batch to each worker, then one update for all.

Workers only read the state; the update writes the next state into a second set of buffers, and the
two sets change places. So a step either happened as a whole or not at all, nothing is copied, and
the state from before the step is still there when a loss turns out to be NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from onnxslim.graph import Array, Graph
from onnxslim.runtime.capabilities import load_runtime
from onnxslim.runtime.denormals import flush_denormals
from onnxslim.runtime.session import Session
from onnxslim.training.step import Step

__all__ = ["Engine", "LocalWorker", "Worker", "shares"]


def shares(batch: int, workers: int) -> list[int]:
    """Samples of each worker: as equal as can be, the first ones one more; none is empty."""
    workers = min(workers, batch)
    return [batch // workers + (i < batch % workers) for i in range(workers)]


class Worker(Protocol):
    """Runs the step graph on its share of a batch, reading the bank of state buffers it is told."""

    def run(self, feeds: Mapping[str, Array], bank: int) -> None: ...

    @property
    def results(self) -> Mapping[str, Buffer]:
        """The step's outputs by name, in buffers that the next run writes over."""
        ...


class Buffer:
    """An array that sessions read and write in place: in its own shape, and as one row of numbers."""

    def __init__(self, array: Array) -> None:
        self.array = np.asarray(array, order="C")
        make = load_runtime().OrtValue.ortvalue_from_numpy  # shares the array's memory, which must outlive it
        self.shaped = make(self.array, "cpu")
        self.row = make(self.array.reshape(-1), "cpu") if self.array.ndim > 1 else self.shaped


class LocalWorker:
    """A session in this process; its inputs and outputs are bound once."""

    def __init__(self, step: Step, banks: Sequence[Mapping[str, Buffer]], threads: int = 1) -> None:
        self.step = step
        self._session = Session(step.graph, threads=threads, fuse_qdq=False)
        self.results = {v.name: Buffer(np.zeros(v.static_shape, v.dtype.numpy)) for v in step.graph.outputs}
        self._bindings = []
        for bank in banks:
            binding = self._session.raw.io_binding()
            for name in step.state:
                binding.bind_ortvalue_input(name, bank[name].shaped)
            for name, buffer in self.results.items():
                binding.bind_ortvalue_output(name, buffer.shaped)
            self._bindings.append(binding)

    def run(self, feeds: Mapping[str, Array], bank: int) -> None:
        binding = self._bindings[bank]
        kept = [np.asarray(feeds[name], order="C") for name in self.step.data]
        for name, array in zip(self.step.data, kept):
            binding.bind_cpu_input(name, array)
        self._session.raw.run_with_iobinding(binding)


class Engine:
    """Workers, the update, and the state between them.

    steps: one a worker (workers with equal shares may share the same Step); update: its graph
    (`build_update`); arrays: the state by name, copied in. threads: inside each session; workers of
    one thread are faster than one session of several, whose gradient kernels do not scale.
    """

    def __init__(self, steps: Sequence[Step], update: Graph, arrays: Mapping[str, Array], threads: int = 1) -> None:
        self._update = Session(update, threads=threads, fuse_qdq=False)
        self._moved = [p.name.removesuffix(".next") for p in self._update.outputs if p.name.endswith(".next")]
        first = {name: Buffer(array.copy()) for name, array in arrays.items()}
        second = first | {name: Buffer(arrays[name].copy()) for name in self._moved}
        self._banks, self._bank = (first, second), 0
        self.workers: list[Worker] = [LocalWorker(step, self._banks, threads) for step in steps]
        self._sizes = [step.batch for step in steps]
        self._scalars = {
            p.name: Buffer(np.zeros((), np.float32)) for p in self._update.outputs if p.name == "grad_norm"
        }
        self._bindings = [self._bind(bank) for bank in (0, 1)]
        self._pool = ThreadPoolExecutor(len(steps), thread_name_prefix="worker", initializer=flush_denormals)

    def _bind(self, bank: int) -> Any:
        binding = self._update.raw.io_binding()
        for port in self._update.inputs:
            owner, _, output = port.name.partition("/")
            if owner[:1] == "w" and owner[1:].isdigit() and output:
                binding.bind_ortvalue_input(port.name, self.workers[int(owner[1:])].results[output].row)
            elif port.name not in ("lr", "step"):
                binding.bind_ortvalue_input(port.name, self._banks[bank][port.name].row)
        for name in self._moved:
            binding.bind_ortvalue_output(f"{name}.next", self._banks[1 - bank][name].row)
        for name, buffer in self._scalars.items():
            binding.bind_ortvalue_output(name, buffer.shaped)
        return binding

    def compute(self, feeds: Mapping[str, Array]) -> dict[str, float]:
        """Forward and backward on a batch: the scalar outputs, averaged by share; `correct` is summed."""
        jobs, start = [], 0
        for worker, size in zip(self.workers, self._sizes):
            part = {name: array[start : start + size] for name, array in feeds.items()}
            jobs.append(self._pool.submit(worker.run, part, self._bank))
            start += size
        for job in jobs:
            job.result()
        metrics: dict[str, float] = {}
        for worker, size in zip(self.workers, self._sizes):
            for name, buffer in worker.results.items():
                if name == "correct":
                    metrics[name] = metrics.get(name, 0.0) + float(buffer.array)
                elif name == "loss" or name.startswith("loss."):
                    metrics[name] = metrics.get(name, 0.0) + float(buffer.array) * size / sum(self._sizes)
        return metrics

    def apply(self, rate: float, step: int) -> None:
        """The update, from the gradients of the last `compute`; `step` is 1 for the first."""
        binding = self._bindings[self._bank]
        scalars = [np.array(rate, np.float32), np.array(step, np.float32)]
        names = {port.name for port in self._update.inputs}
        for name, array in zip(("lr", "step"), scalars):
            if name in names:
                binding.bind_cpu_input(name, array)
        self._pool.submit(self._update.raw.run_with_iobinding, binding).result()
        self._bank = 1 - self._bank

    def arrays(self) -> dict[str, Array]:
        """Copies of the present state."""
        return {name: buffer.array.copy() for name, buffer in self._banks[self._bank].items()}

    def close(self) -> None:
        self._pool.shutdown(wait=True)
