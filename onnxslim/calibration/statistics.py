"""What is measured of values: `Range` and `ChannelMoments`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.errors import DataError
from onnxslim.ir.graph import Array, Graph, Value
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.statistics import Statistic

__all__ = ["ChannelMoments", "Extremes", "Moments", "Range"]


@dataclass(frozen=True)
class Extremes:
    """The least and the largest number."""

    low: float
    high: float

    @property
    def finite(self) -> bool:
        return bool(np.isfinite([self.low, self.high]).all())

    def __str__(self) -> str:
        return f"[{self.low:.6g}, {self.high:.6g}]"


@dataclass(frozen=True)
class Range(Statistic[Extremes]):
    """The least and the largest of all elements."""

    what: ClassVar[str] = "range"

    def reduce(self, graph: Graph, value: Value, base: str) -> list[Value]:
        """ONNX Runtime's ReduceMin and ReduceMax may skip a NaN; a mean cannot."""
        return [graph.op(op, value, name=f"{base}/{op}", keepdims=0) for op in ("ReduceMin", "ReduceMax", "ReduceMean")]

    def of(self, batch: Sequence[Array]) -> Extremes:
        low, high, mean = map(float, batch)
        return Extremes(mean, mean) if np.isnan(mean) else Extremes(low, high)

    def add(self, one: Extremes, other: Extremes) -> Extremes:
        return Extremes(float(np.minimum(one.low, other.low)), float(np.maximum(one.high, other.high)))

    def invented(self, graph: Graph) -> Extremes:
        return Extremes(-1.0, 1.0)


@dataclass(frozen=True)
class Moments:
    """Of each channel: how many elements there were, float64 [C] their means, and the sums of their squared
    deviations."""

    count: float
    means: Array
    squares: Array

    @property
    def mean(self) -> Array:
        """float32 [C]."""
        return self.means.astype(np.float32)

    @property
    def variance(self) -> Array:
        """Biased, float32 [C]."""
        return (self.squares / self.count).astype(np.float32)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite([self.mean, self.variance]).all())

    def __str__(self) -> str:
        bad = int((~np.isfinite([self.mean, self.variance])).any(axis=0).sum())
        return f"{bad} of {self.means.size} channels with NaN or infinity"


@dataclass(frozen=True)
class ChannelMoments(Statistic[Moments]):
    """Mean and biased variance of each channel, over all axes but 1. Parts are merged by Chan, Golub and LeVeque
    (1979): a difference of large sums would lose the variance."""

    what: ClassVar[str] = "moments"

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

    def of(self, batch: Sequence[Array]) -> Moments:
        mean, var, size = batch[0].astype(np.float64), batch[1].astype(np.float64), float(batch[2])
        return Moments(size, mean, var * size)

    def add(self, one: Moments, other: Moments) -> Moments:
        total = one.count + other.count
        shift = other.means - one.means
        squares = one.squares + (other.squares + shift**2 * (one.count * other.count / total))
        return Moments(total, one.means + shift * (other.count / total), squares)

    def invented(self, graph: Graph) -> Moments:
        """Mean 0 and variance 1."""
        value = graph.value(self.value)
        if value.shape is None or not isinstance(value.shape[1], int):
            graph = graph.copy()
            infer_shapes(graph)
            value = graph.value(self.value)
        channels = value.shape[1] if value.shape is not None else None
        if not isinstance(channels, int):
            raise DataError(f"'{value.name}' has the shape {value.shape}: how many channels there are is not known")
        return Moments(1.0, np.zeros(channels), np.ones(channels))


def _mean(graph: Graph, value: Value, axes: Sequence[int], name: str, keepdims: int) -> Value:
    if graph.opset < 18:
        return graph.op("ReduceMean", value, name=name, axes=list(axes), keepdims=keepdims)
    given = graph.add_constant("statistic/axes", np.array(axes, np.int64))
    return graph.op("ReduceMean", value, given, name=name, keepdims=keepdims)
