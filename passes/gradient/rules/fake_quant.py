"""Fake-quant: the straight-through estimator (Bengio et al. 2013)."""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.graph import Value
from onnxslim.quant_math import qrange
from passes.gradient.tape import Tape

__all__ = ["fake_quant"]


def fake_quant(t: Tape) -> Sequence[Value | None]:
    """dx = dy where rounding x stays on the grid, 0 where x is clipped; scales are constants.

    On the grid: qmin − ½ < x/s + z < qmax + ½. An input that is a ReLU's output and cannot fall
    below the grid needs the upper bound only.
    """
    qmin, qmax = qrange(int(t.node.attr("bits", 8)), bool(t.node.attr("signed", 1)), bool(t.node.attr("narrow", 0)))
    scale, zero_point = t.x(1), t.x(2)
    if scale.shape:
        rank = len(t.shape())
        axis = int(t.node.attr("axis", 0)) % rank
        broadcast = [-1 if a == axis else 1 for a in range(rank)]
        scale, zero_point = t.reshape(scale, broadcast), t.reshape(zero_point, broadcast)
    producer = t.graph.producer(t.x())
    hi = t.mul(t.sub(t.const(qmax + 0.5), zero_point), scale)
    dx = t.mul(t.dy, t.above(t.sub(hi, t.x())))
    if producer is None or producer.op != "Relu":  # zero is on every grid
        lo = t.mul(t.sub(t.const(qmin - 0.5), zero_point), scale)
        dx = t.mul(dx, t.above(t.sub(t.x(), lo)))
    return [dx, None, None, None]
