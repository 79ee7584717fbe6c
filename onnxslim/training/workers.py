"""`Engine`: one training step — a share of the batch to each worker, then one update for all.

Workers only read the state; the update writes the next state into a second set of buffers, and the
two sets change places. So a step either happened as a whole or not at all, nothing is copied, and
the state from before the step is still there when a loss turns out to be NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from onnxslim.errors import CrashError, TrainingError
from onnxslim.ir.graph import Array
from onnxslim.runtime.denormals import flush_denormals
from onnxslim.runtime.session import Session
from onnxslim.training.ports import Kind, Port, named
from onnxslim.training.rows import Arena, plans
from onnxslim.training.step import Step
from onnxslim.training.update import UpdateGraph, UpdatePlan, build_norm, build_update, moves_of
from onnxslim.training.worker import Buffer, LocalWorker, Memory, Worker

__all__ = ["Engine", "shares"]

_PIECE = 1 << 15
"""Numbers of a row that are updated at once: with all that is read and written for them they fit a core's cache."""

_METRICS = (Kind.LOSS, Kind.TERM, Kind.CORRECT)
_SCALARS = (Kind.RATE, Kind.STEP, Kind.FACTOR, Kind.NORM)


def shares(batch: int, workers: int) -> list[int]:
    """Samples of each worker: as equal as can be, the first ones one more; none is empty."""
    workers = min(workers, batch)
    return [batch // workers + (i < batch % workers) for i in range(workers)]


class Engine:
    """Workers, the update, and the state between them.

    steps: one a worker (workers with equal shares may share the same Step); plan: how the state follows; arrays:
    the state, copied in. threads: inside each session; workers of one thread are faster than one session of several,
    whose gradient kernels do not scale. workers: one a step; default: in this process. They are closed with the engine.

    Parameters move in pieces that stay in a core's cache from the first op to the last, each worker taking its
    part of them; what follows the parameters comes after.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        plan: UpdatePlan,
        arrays: Mapping[Port, Array],
        threads: int = 1,
        workers: Sequence[Worker] | None = None,
    ) -> None:
        rows = plans(plan)
        self._sizes = [step.batch for step in steps]
        moved = {port for rule in plan.rules for port in moves_of(rule, plan.optimizer)}
        shared = {port: Buffer(np.array(array)) for port, array in arrays.items() if port not in moved}
        self._arenas = [Arena(rows.state) for _ in (0, 1)]
        self._banks = [{port: _placed(arena, port, arrays[port], shared) for port in arrays} for arena in self._arenas]
        self._bank = 0
        self._results = [Arena(rows.results) for _ in steps]
        self._steps, self._workers = steps, workers or [LocalWorker(threads) for _ in steps]
        self._memories = [self._memory(step, arena) for step, arena in zip(steps, self._results)]
        self._scalars = {Port(kind): Buffer(np.zeros((), np.float32)) for kind in _SCALARS}
        self._norm: list[_Bound] = []
        if plan.optimizer.clip_norm is not None:
            learns = [port for part in (*rows.moves.values(), rows.follows) for port in part.learns]
            self._norm = self._bound(build_norm(learns, plan), threads)
        self._pieces: list[list[_Bound]] = [[], []]
        for row, move in rows.moves.items():
            update, size = build_update(move), self._arenas[0].rows[row].size
            session = Session(update.graph, threads=threads, fuse_qdq=False)
            for start in range(0, size, _PIECE):
                for bank in (0, 1):
                    place = self._place(bank, slice(start, min(start + _PIECE, size)))
                    self._pieces[bank].append(_Bound(session, update.ports, place))
        self._follows = self._bound(build_update(rows.follows), threads) if rows.follows.rules else []
        self._pool = ThreadPoolExecutor(len(steps), thread_name_prefix="worker", initializer=flush_denormals)
        try:
            for worker, step, memory in zip(self._workers, steps, self._memories, strict=True):
                worker.start(step, memory)
        except BaseException:
            self.close()
            raise

    def _memory(self, step: Step, arena: Arena) -> Memory:
        """What a worker and this engine have in common."""
        results = {}
        for port, value in step.outputs.items():
            shape = value.static_shape
            is_placed = port in arena.arrays
            results[port] = arena.arrays[port].reshape(shape) if is_placed else np.zeros(shape, value.dtype.numpy)
        banks = [{port: buffer.array for port, buffer in bank.items()} for bank in self._banks]
        return Memory(banks, results)

    def _bound(self, update: UpdateGraph, threads: int) -> list[_Bound]:
        """An update graph for either bank."""
        session = Session(update.graph, threads=threads, fuse_qdq=False)
        return [_Bound(session, update.ports, self._place(bank)) for bank in (0, 1)]

    def _place(self, bank: int, part: slice = slice(None)) -> Callable[[Port], Array]:
        """Where an input or output of an update graph lies: in a row (or a part of it), or by itself."""
        now, following = (self._arenas[bank], self._banks[bank]), (self._arenas[1 - bank], self._banks[1 - bank])

        def place(port: Port) -> Array:
            if port in self._scalars:
                return self._scalars[port].array
            if port.worker is not None:
                rows, result = self._results[port.worker].rows, port.by(None)
                return rows[result][part] if result in rows else self._memories[port.worker].results[result]
            arena, bank_ = following if port.kind is Kind.NEXT else now
            port = port.belongs_to if port.kind is Kind.NEXT else port
            return arena.rows[port][part] if port in arena.rows else bank_[port].array

        return place

    def compute(self, feeds: Mapping[Port, Array]) -> dict[str, float]:
        """Forward and backward on a batch: the loss and its terms, averaged by share; `correct` is summed."""
        jobs, start = [], 0
        for number, size in enumerate(self._sizes):
            part = {port: array[start : start + size] for port, array in feeds.items()}
            jobs.append(self._pool.submit(self._run, number, part))
            start += size
        wait(jobs)  # whichever fails, no other is left writing
        for job in jobs:
            job.result()
        metrics: dict[str, float] = {}
        for memory, size in zip(self._memories, self._sizes):
            for port, array in memory.results.items():
                if port.kind in _METRICS:
                    value, name = float(array), metric_name(port)
                    value = value if port.kind is Kind.CORRECT else value * size / sum(self._sizes)
                    metrics[name] = metrics.get(name, 0.0) + value
        return metrics

    def _run(self, number: int, feeds: Mapping[Port, Array]) -> None:
        """A worker's share. One that dies is started anew and does it again, once: the state is still there."""
        worker = self._workers[number]
        try:
            worker.run(feeds, self._bank)
        except CrashError as error:
            warnings.warn(f"Worker {number} died in a training step, which it does again: {error}", stacklevel=2)
            try:
                worker.start(self._steps[number], self._memories[number])
                worker.run(feeds, self._bank)
            except CrashError as again:
                raise TrainingError(
                    f"Worker {number} died twice in the same training step; the state is the one before it: {again}"
                ) from again

    def apply(self, rate: float, step: int) -> None:
        """The update, from the gradients of the last `compute`; `step` is 1 for the first."""
        self._scalars[Port(Kind.RATE)].array[...] = rate
        self._scalars[Port(Kind.STEP)].array[...] = step
        workers, pieces = len(self._workers), self._pieces[self._bank]
        if self._norm:
            self._pool.submit(self._norm[self._bank].run).result()
        jobs = [self._pool.submit(_run_all, pieces[i::workers]) for i in range(workers)]
        for job in jobs:
            job.result()
        if self._follows:
            self._pool.submit(self._follows[self._bank].run).result()
        self._bank = 1 - self._bank

    def arrays(self) -> dict[Port, Array]:
        """Copies of the present state."""
        return {port: buffer.array.copy() for port, buffer in self._banks[self._bank].items()}

    def before(self) -> dict[Port, Array]:
        """Copies of the state before the last `apply`, which is still in the other bank."""
        return {port: buffer.array.copy() for port, buffer in self._banks[1 - self._bank].items()}

    def close(self) -> None:
        """Ends the threads and the workers, once what runs has ended. A further call does nothing."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.close()


def metric_name(port: Port) -> str:
    """What logs and checkpoints call a scalar result of a step: loss, loss.cross_entropy, correct."""
    parts = (("loss" if port.kind is Kind.TERM else port.kind.value), port.owner, port.part)
    return ".".join(str(part) for part in parts if part)


def _placed(arena: Arena, port: Port, array: Array, shared: Mapping[Port, Buffer]) -> Buffer:
    """A state array of one bank: in its row, else shared by both banks, else one of its own."""
    if port in shared:
        return shared[port]
    if port not in arena.arrays:
        return Buffer(np.array(array))
    arena.arrays[port][...] = array
    return Buffer(arena.arrays[port])


class _Bound:
    """A session of the update with a place for each input and output, as the update sees it: one axis, or a scalar."""

    def __init__(self, session: Session, ports: Mapping[Port, str], place: Callable[[Port], Array]) -> None:
        self._session, self._kept = session, []
        self._binding, by_name = session.raw.io_binding(), named(ports)
        for found, bind in (
            (session.inputs, self._binding.bind_ortvalue_input),
            (session.outputs, self._binding.bind_ortvalue_output),
        ):
            for port in found:
                array = place(by_name[port.name])
                is_scalar = port.shape in (None, ()) and array.size == 1  # of which ONNX Runtime tells no shape
                buffer = Buffer(array.reshape(() if is_scalar else -1))
                self._kept.append(buffer)
                bind(port.name, buffer.value)

    def run(self) -> None:
        self._session.raw.run_with_iobinding(self._binding)


def _run_all(pieces: Sequence[_Bound]) -> None:
    for piece in pieces:
        piece.run()
