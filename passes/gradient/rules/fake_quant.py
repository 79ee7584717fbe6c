"""Fake-quant: the straight-through estimator (Bengio et al. 2013)."""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.analysis.regions import cuts_at_zero
from onnxslim.ir.dialect import FakeQuant
from onnxslim.ir.graph import DType, Value
from onnxslim.ir.quant_math import qrange
from passes.gradient.tape import Tape

__all__ = ["fake_quant"]


def fake_quant(t: Tape) -> Sequence[Value | None]:
    """dx = dy where rounding x stays on the grid, 0 where x is clipped; scales are constants.

    On the grid: qmin − ½ < x/s + z < qmax + ½, as one bound of the distance from the middle. An input that is a
    ReLU's or ReLU6's output and cannot fall below the grid needs the upper bound only. A weight's scale follows its
    largest value: nothing of it is clipped.
    """
    grid = FakeQuant.of(t.node)
    if grid.is_weight:
        return [t.dy, None, None, None]
    qmin, qmax = qrange(grid.bits, grid.signed, grid.narrow)
    scale, zero_point = t.x(1), t.x(2)
    if scale.shape:
        rank = len(t.shape())
        axis = (grid.axis or 0) % rank
        broadcast = [-1 if a == axis else 1 for a in range(rank)]
        scale, zero_point = t.reshape(scale, broadcast), t.reshape(zero_point, broadcast)
    producer = t.graph.producer(t.x())
    if producer is not None and cuts_at_zero(t.graph, producer):  # zero is on every grid
        return [t.mul(t.dy, t.exceeds(_bound(t, qmax + 0.5, scale, zero_point), t.x())), None, None, None]
    distance = t.op("Abs", t.sub(t.x(), _bound(t, (qmin + qmax) / 2, scale, zero_point)))
    half = t.scale(scale, (qmax - qmin + 1) / 2)
    t.graph.set_type(distance, DType.FLOAT, t.shape())
    t.graph.set_type(half, DType.FLOAT, scale.shape)
    return [t.mul(t.dy, t.exceeds(half, distance)), None, None, None]


def _bound(t: Tape, integer: float, scale: Value, zero_point: Value) -> Value:
    """The number that an integer of the grid stands for."""
    value = t.mul(t.sub(t.const(integer), zero_point), scale)
    t.graph.set_type(value, DType.FLOAT, scale.shape)
    return value
