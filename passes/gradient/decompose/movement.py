"""Padding by what the tensor holds, and a cast to another's type."""

from __future__ import annotations

import numpy as np

from onnxslim.errors import GradientError
from passes.gradient.decompose.table import Outputs, Table
from passes.gradient.tape import Tape

__all__ = ["RULES"]


def _pad(t: Tape) -> Outputs:
    """Modes reflect, edge and wrap: rows of a constant index table, axis by axis."""
    pads = t.graph.constant_of(t.graph.input(t.node, 1))
    if pads is None or t.has(3):
        raise GradientError(f"{t.node}: the pads must be constant, and for all axes")
    mode = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[t.node.attr("mode")]
    y, shape = t.x(), t.shape()
    for axis, size in enumerate(shape):
        begin, end = int(pads[axis]), int(pads[len(shape) + axis])
        if min(begin, end) < 0:
            raise GradientError(f"{t.node}: negative pads have no gradient rule; use Slice")
        if begin or end:
            index = np.pad(np.arange(size), (begin, end), mode=mode)  # type: ignore[call-overload]
            y = t.op("Gather", y, t.const(index, np.int64), axis=axis)
    return [y]


def _cast_like(t: Tape) -> Outputs:
    return [t.op("Cast", t.x(), to=int(t.x(1).dtype))]


RULES: Table = {
    ("", "CastLike"): _cast_like,
    ("", "Pad"): _pad,
}
