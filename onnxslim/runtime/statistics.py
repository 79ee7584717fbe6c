"""`gather`: statistics of chosen values over calibration batches, for all passes in one streamed run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from onnxslim.errors import DataError
from onnxslim.graph import Array, DType, Graph, Value
from onnxslim.rewrite import StatisticRequest
from onnxslim.runtime.session import Session

__all__ = ["gather"]


def gather(
    graph: Graph,
    requests: Sequence[StatisticRequest],
    batches: Iterable[Mapping[str, Array]],
    progress: Callable[[str, int, int], None] | None = None,
    *,
    threads: int = 2,
    total: int = 0,
) -> dict[StatisticRequest, Array]:
    """The statistics by request; see StatisticRequest for their shapes (float32).

    Each is reduced inside the graph, batch by batch, and accumulated in float64: memory does not
    grow with the data. `batches` are feeds by input name; `total` is how many, for the progress.
    Raises DataError where there is no batch, or a request names no value.
    """
    watched = graph.copy()
    for value in watched.outputs:
        watched.remove_output(value)
    plans = [_Plan.of(watched, request) for request in dict.fromkeys(requests)]
    if not plans:
        return {}
    session = Session(watched, threads=threads, fuse_qdq=False)
    count = 0
    for feeds in batches:
        found = session.run(feeds)
        for plan in plans:
            plan.add(found)
        count += 1
        if progress is not None:
            progress("calibrating", count, max(total, count))
    if not count:
        raise DataError("Calibration needs at least one batch of data, got none")
    return {plan.request: plan.result() for plan in plans}


class _Plan:
    """One request: the outputs it adds to the graph, and how batches of them add up."""

    def __init__(self, request: StatisticRequest, outputs: Sequence[str]) -> None:
        self.request, self.outputs = request, outputs
        self._low, self._high = np.inf, -np.inf
        self._count, self._sum, self._square = 0.0, np.zeros(0), np.zeros(0)

    @classmethod
    def of(cls, graph: Graph, request: StatisticRequest) -> _Plan:
        value = graph.find(request.value)
        if value is None:
            raise DataError(f"A statistic of '{request.value}' was asked for, but the graph has no such value")
        if request.kind == "range":
            parts = [graph.op(op, value, name=f"statistic/{value.name}/{op}", keepdims=0) for op in ("ReduceMin", "ReduceMax")]
        elif request.kind == "channel_moments":
            parts = _moments(graph, value)
        else:
            raise DataError(f"Unknown statistic '{request.kind}'; known: range, channel_moments")
        for part in parts:
            graph.add_output(part)
        return cls(request, [part.name for part in parts])

    def add(self, found: Mapping[str, Array]) -> None:
        first, *rest = (found[name] for name in self.outputs)
        if self.request.kind == "range":
            self._low, self._high = min(self._low, float(first)), max(self._high, float(rest[0]))
            return
        # Chan et al. 1979: moments of the parts, merged; differences of large sums would lose them.
        mean, var, size = first.astype(np.float64), rest[0].astype(np.float64), float(rest[1])
        if not self._count:
            self._sum, self._square, self._count = mean, var * size, size
            return
        total = self._count + size
        shift = mean - self._sum
        self._sum = self._sum + shift * size / total
        self._square = self._square + var * size + shift**2 * self._count * size / total
        self._count = total

    def result(self) -> Array:
        if self.request.kind == "range":
            return np.array([self._low, self._high], np.float32)
        return np.stack([self._sum, self._square / self._count]).astype(np.float32)


def _moments(graph: Graph, value: Value) -> list[Value]:
    """Mean and biased variance over all axes but 1, and how many elements each is of."""
    if value.shape is None or len(value.shape) < 2:
        raise DataError(f"'{value.name}' has the shape {value.shape}, but channel moments need a channel axis")
    axes = graph.add_constant("statistic/axes", np.array([0, *range(2, len(value.shape))], np.int64))
    base = f"statistic/{value.name}"
    kept = graph.op("ReduceMean", value, axes, name=f"{base}/mean", keepdims=1)
    centred = graph.op("Sub", value, kept, name=f"{base}/centred")
    var = graph.op("ReduceMean", graph.op("Mul", centred, centred, name=f"{base}/square"), axes, name=f"{base}/var", keepdims=0)
    flat = graph.op("Reshape", kept, graph.add_constant("statistic/flat", np.array([-1], np.int64)), name=f"{base}/flat")
    size = graph.op("Size", value, name=f"{base}/size")
    channels = graph.op("Size", flat, name=f"{base}/channels")
    count = graph.op("Div", size, channels, name=f"{base}/count")
    graph.set_type(count, DType.INT64, ())
    return [flat, var, count]
