"""`Engine`: one training step — a share of the batch to each worker, then one update for all.

Workers only read the state; the update writes the next state into a second set of buffers, and the
two sets change places. So a step either happened as a whole or not at all, nothing is copied, and
the state from before the step is still there when a loss turns out to be NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from onnxslim.ir.graph import Array
from onnxslim.runtime.denormals import flush_denormals
from onnxslim.runtime.installation import load_runtime
from onnxslim.runtime.session import Session
from onnxslim.training.rows import Arena, Rows, plans, rows_of
from onnxslim.training.step import Step
from onnxslim.training.update import UpdatePlan, build_norm, build_update

__all__ = ["Engine", "LocalWorker", "Worker", "shares"]

_PIECE = 1 << 15
"""Numbers of a row that are updated at once: with all that is read and written for them they fit a core's cache."""


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
    """An array that sessions read and write in place."""

    def __init__(self, array: Array) -> None:
        self.array = np.asarray(array, order="C")
        # It shares the array's memory, which must outlive it.
        self.value = load_runtime().OrtValue.ortvalue_from_numpy(self.array, "cpu")


class LocalWorker:
    """A session in this process; its inputs and outputs are bound once."""

    def __init__(self, step: Step, banks: Sequence[Mapping[str, Buffer]], rows: Rows, threads: int = 1) -> None:
        self.step = step
        self.arena = Arena(rows)
        self._session = Session(step.graph, threads=threads, fuse_qdq=False)
        places = self.arena.arrays
        self.results = {
            v.name: Buffer(
                places[v.name].reshape(v.static_shape) if v.name in places else np.zeros(v.static_shape, v.dtype.numpy)
            )
            for v in step.graph.outputs
        }
        self._bindings, self._read = [], []
        for bank in banks:
            binding = self._session.raw.io_binding()
            for name, array in step.fed_from({name: buffer.array for name, buffer in bank.items()}).items():
                self._read.append(Buffer(array))
                binding.bind_ortvalue_input(name, self._read[-1].value)
            for name, buffer in self.results.items():
                binding.bind_ortvalue_output(name, buffer.value)
            self._bindings.append(binding)

    def run(self, feeds: Mapping[str, Array], bank: int) -> None:
        binding = self._bindings[bank]
        kept = [np.asarray(feeds[name], order="C") for name in self.step.data]
        for name, array in zip(self.step.data, kept):
            binding.bind_cpu_input(name, array)
        self._session.raw.run_with_iobinding(binding)


class Engine:
    """Workers, the update, and the state between them.

    steps: one a worker (workers with equal shares may share the same Step); plan: how the state follows; arrays:
    the state by name, copied in. threads: inside each session; workers of one thread are faster than one
    session of several, whose gradient kernels do not scale.

    Parameters move in pieces that stay in a core's cache from the first op to the last, each worker taking its
    part of them; what follows the parameters comes after.
    """

    def __init__(self, steps: Sequence[Step], plan: UpdatePlan, arrays: Mapping[str, Array], threads: int = 1) -> None:
        state_rows, result_rows = rows_of(plan)
        row_plans = plans(plan)
        self._sizes = [step.batch for step in steps]
        moved = {spec.scale for spec in plan.weights}.union(*state_rows.values())
        shared = {name: Buffer(np.array(array)) for name, array in arrays.items() if name not in moved}
        self._arenas = [Arena(state_rows) for _ in (0, 1)]
        self._banks = [{name: _placed(arena, name, arrays[name], shared) for name in arrays} for arena in self._arenas]
        self._bank = 0
        self._locals = [LocalWorker(step, self._banks, result_rows, threads) for step in steps]
        self.workers: list[Worker] = list(self._locals)
        self._scalars = {name: Buffer(np.zeros((), np.float32)) for name in ("lr", "step", "factor", "grad_norm")}
        self._norm: list[_Bound] = []
        if plan.optimizer.clip_norm is not None:
            session = Session(build_norm(list(row_plans.moves), plan), threads=threads, fuse_qdq=False)
            self._norm = [_Bound(session, self._place(bank)) for bank in (0, 1)]
        self._pieces: list[list[_Bound]] = [[], []]
        for name, move in row_plans.moves.items():
            session = Session(build_update(move), threads=threads, fuse_qdq=False)
            size = self._arenas[0].row(name).size
            for start in range(0, size, _PIECE):
                for bank in (0, 1):
                    place = self._place(bank, slice(start, min(start + _PIECE, size)))
                    self._pieces[bank].append(_Bound(session, place))
        self._follows: list[_Bound] = []
        if row_plans.follows.batchnorms or row_plans.follows.observers or row_plans.follows.weights:
            session = Session(build_update(row_plans.follows), threads=threads, fuse_qdq=False)
            self._follows = [_Bound(session, self._place(bank)) for bank in (0, 1)]
        self._pool = ThreadPoolExecutor(len(steps), thread_name_prefix="worker", initializer=flush_denormals)

    def _place(self, bank: int, part: slice = slice(None)) -> Callable[[str], Array]:
        """Where an input or output of an update graph lies: in a row (or a part of it), or under its own name."""
        now, following = self._arenas[bank], self._arenas[1 - bank]
        workers = {f"w{i}": worker.arena for i, worker in enumerate(self._locals)}

        def place(port: str) -> Array:
            if port in self._scalars:
                return self._scalars[port].array
            owner, _, result = port.partition("/")
            if owner in workers and result in workers[owner].names():
                return workers[owner].row(result)[part]
            name = port.removesuffix(".next")
            arena = following if port.endswith(".next") else now
            if name in arena.names():
                return arena.row(name)[part]
            # A weight's scale; and the weight, which has moved already.
            return self._banks[1 - bank][name].array.reshape(-1) if name == port else self._banks[1 - bank][name].array

        return place

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
        self._scalars["lr"].array[...] = rate
        self._scalars["step"].array[...] = step
        workers, pieces = len(self.workers), self._pieces[self._bank]
        if self._norm:
            self._pool.submit(self._norm[self._bank].run).result()
        jobs = [self._pool.submit(_run_all, pieces[i::workers]) for i in range(workers)]
        for job in jobs:
            job.result()
        if self._follows:
            self._pool.submit(self._follows[self._bank].run).result()
        self._bank = 1 - self._bank

    def arrays(self) -> dict[str, Array]:
        """Copies of the present state."""
        return {name: buffer.array.copy() for name, buffer in self._banks[self._bank].items()}

    def before(self) -> dict[str, Array]:
        """Copies of the state before the last `apply`, which is still in the other bank."""
        return {name: buffer.array.copy() for name, buffer in self._banks[1 - self._bank].items()}

    def close(self) -> None:
        """Ends the threads, once what runs has ended. A further call does nothing."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _placed(arena: Arena, name: str, array: Array, shared: Mapping[str, Buffer]) -> Buffer:
    """A state array of one bank: in its row, else shared by both banks, else one of its own."""
    if name in shared:
        return shared[name]
    if name not in arena.arrays:
        return Buffer(np.array(array))
    arena.arrays[name][...] = array
    return Buffer(arena.arrays[name])


class _Bound:
    """A session of the update with a place for each input and output."""

    def __init__(self, session: Session, place: Callable[[str], Array]) -> None:
        self._session, self._kept = session, []
        self._binding = session.raw.io_binding()
        for ports, bind in (
            (session.inputs, self._binding.bind_ortvalue_input),
            (session.outputs, self._binding.bind_ortvalue_output),
        ):
            for port in ports:
                array = place(port.name)
                is_scalar = port.shape in (None, ()) and array.size == 1  # of which ONNX Runtime tells no shape
                buffer = Buffer(array.reshape(()) if is_scalar else array)
                self._kept.append(buffer)
                bind(port.name, buffer.value)

    def run(self) -> None:
        self._session.raw.run_with_iobinding(self._binding)


def _run_all(pieces: Sequence[_Bound]) -> None:
    for piece in pieces:
        piece.run()
