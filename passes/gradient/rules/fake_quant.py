"""Fake-quant: the straight-through estimator (Bengio et al. 2013)."""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.graph import Value
from onnxslim.quant_math import qrange
from passes.gradient.rules.elementwise import inside
from passes.gradient.tape import Tape

__all__ = ["fake_quant"]


def fake_quant(t: Tape) -> Sequence[Value | None]:
    """dx = dy where rounding x stays on the grid, 0 where x is clipped; scales are constants.

    On the grid: qmin − ½ ≤ x/s + z ≤ qmax + ½. An input that is a ReLU's output and cannot fall
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
    lo = t.mul(t.sub(t.const(qmin - 0.5), zero_point), scale)
    hi = t.mul(t.sub(t.const(qmax + 0.5), zero_point), scale)
    rectified = producer is not None and producer.op == "Relu"  # zero is on every grid
    mask = inside(t, t.x(), None if rectified else lo, hi)
    return [t.dy if mask is None else t.mul(t.dy, mask), None, None, None]
