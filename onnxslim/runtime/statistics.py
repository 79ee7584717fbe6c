"""`gather`: statistics of chosen values over calibration batches, for all passes in one streamed run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from onnxslim.errors import DataError
from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.rewrite import StatisticRequest
from onnxslim.runtime.batches import in_batches_of
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
    grow with the data. `batches` are feeds by input name, of any sizes (a graph that takes one size only gets
    that); `total` is how many, for the
    progress. A NaN anywhere gives a NaN, never a number that hides it. The graph is not changed, and
    must be executable (FakeQuant expanded).

    Raises DataError where there is no batch, or a request is of an unknown kind, of no value of the
    graph, of one that is not float, or (moments) of one without a channel axis.
    """
    watched = graph.copy()
    for value in watched.outputs:
        watched.remove_output(value)
    plans = [_plan(watched, request) for request in dict.fromkeys(requests)]
    if not plans:
        return {}
    session = Session(watched, threads=threads, fuse_qdq=False)
    count = 0
    for feeds in in_batches_of(watched, batches):
        found = session.run(feeds)
        for plan in plans:
            plan.add([found[name] for name in plan.outputs])
        count += 1
        if progress is not None:
            progress("calibrating", count, max(total, count))
    if not count:
        raise DataError("Calibration needs at least one batch of data, got none")
    return {plan.request: plan.result() for plan in plans}


class _Plan(ABC):
    """One request: the outputs it adds to the graph, and how batches of them add up."""

    def __init__(self, graph: Graph, request: StatisticRequest, value: Value) -> None:
        self.request = request
        outputs = self.reduce(graph, value, f"statistic/{value.name}")
        for output in outputs:
            graph.add_output(output)
        self.outputs = [output.name for output in outputs]

    @abstractmethod
    def reduce(self, graph: Graph, value: Value, base: str) -> list[Value]:
        """Adds the reductions to the graph."""

    @abstractmethod
    def add(self, batch: Sequence[Array]) -> None:
        """Takes in what the reductions gave for a batch."""

    @abstractmethod
    def result(self) -> Array: ...


class _Range(_Plan):
    """The least and the largest. ONNX Runtime's ReduceMin and ReduceMax may skip a NaN; a mean cannot."""

    def __init__(self, graph: Graph, request: StatisticRequest, value: Value) -> None:
        super().__init__(graph, request, value)
        self._low, self._high = np.float64(np.inf), np.float64(-np.inf)

    def reduce(self, graph: Graph, value: Value, base: str) -> list[Value]:
        return [graph.op(op, value, name=f"{base}/{op}", keepdims=0) for op in ("ReduceMin", "ReduceMax", "ReduceMean")]

    def add(self, batch: Sequence[Array]) -> None:
        low, high, mean = (np.float64(part) for part in batch)
        poison = np.float64(np.nan) if np.isnan(mean) else np.float64(0)
        self._low, self._high = np.minimum(self._low, low + poison), np.maximum(self._high, high + poison)

    def result(self) -> Array:
        return np.array([self._low, self._high], np.float32)


class _ChannelMoments(_Plan):
    """Mean and biased variance of each channel, parts merged by Chan, Golub and LeVeque (1979): a
    difference of large sums would lose them."""

    def __init__(self, graph: Graph, request: StatisticRequest, value: Value) -> None:
        super().__init__(graph, request, value)
        self._count, self._mean, self._squares = 0.0, np.zeros(0), np.zeros(0)

    def reduce(self, graph: Graph, value: Value, base: str) -> list[Value]:
        """Mean [C], variance [C], and how many elements a channel has."""
        if value.shape is None or len(value.shape) < 2:
            raise DataError(f"'{value.name}' has the shape {value.shape}, but channel moments need a channel axis")
        axes = [0, *range(2, len(value.shape))]
        row = graph.add_constant("statistic/row", np.array([-1], np.int64))
        kept = _mean(graph, value, axes, f"{base}/mean", keepdims=1)
        centred = graph.op("Sub", value, kept, name=f"{base}/centred")
        square = graph.op("Mul", centred, centred, name=f"{base}/square")
        var = _mean(graph, square, axes, f"{base}/var", keepdims=0)
        mean = graph.op("Reshape", kept, row, name=f"{base}/flat")
        sizes = [graph.op("Size", v, name=f"{base}/size") for v in (value, mean)]
        return [mean, var, graph.op("Div", *sizes, name=f"{base}/count")]

    def add(self, batch: Sequence[Array]) -> None:
        mean, var, size = batch[0].astype(np.float64), batch[1].astype(np.float64), float(batch[2])
        if not self._count:
            self._mean, self._squares = np.zeros_like(mean), np.zeros_like(var)
        total = self._count + size
        shift = mean - self._mean
        self._squares += var * size + shift**2 * (self._count * size / total)
        self._mean += shift * (size / total)
        self._count = total

    def result(self) -> Array:
        return np.stack([self._mean, self._squares / self._count]).astype(np.float32)


def _mean(graph: Graph, value: Value, axes: Sequence[int], name: str, keepdims: int) -> Value:
    if graph.opset < 18:
        return graph.op("ReduceMean", value, name=name, axes=list(axes), keepdims=keepdims)
    given = graph.add_constant("statistic/axes", np.array(axes, np.int64))
    return graph.op("ReduceMean", value, given, name=name, keepdims=keepdims)


_KINDS: Mapping[str, type[_Plan]] = {"channel_moments": _ChannelMoments, "range": _Range}


def _plan(graph: Graph, request: StatisticRequest) -> _Plan:
    value, kind = graph.find(request.value), _KINDS.get(request.kind)
    if kind is None:
        raise DataError(f"Unknown statistic '{request.kind}' of '{request.value}'; known: {', '.join(_KINDS)}")
    if value is None:
        raise DataError(f"A statistic of '{request.value}' was asked for, but graph '{graph.name}' has no such value")
    if value.dtype not in (DType.FLOAT, DType.DOUBLE, DType.UNDEFINED):
        raise DataError(f"A statistic of '{value.name}' was asked for, but it is {value.dtype.name}, not a float")
    return kind(graph, request, value)
