"""Reductions and softmax: the gradient of a sum is spread, that of a maximum goes to the winners."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxslim.errors import GradientError
from onnxslim.ir.graph import Value
from onnxslim.ir.ops import axes_of, axis_of
from passes.gradient.tape import Rule, Tape

__all__ = ["RULES"]

Gradients = Sequence[Value | None]
_MOST_FACTORS = 512


def _axes(t: Tape) -> tuple[int, ...]:
    axes = axes_of(t.graph, t.node, len(t.shape()))
    if axes is None:
        raise GradientError(f"{t.node}: the axes must be constant")
    return axes


def _kept(t: Tape, value: Value) -> Value:
    """A reduced value in the input's rank, so that it broadcasts."""
    axes, shape = _axes(t), t.shape()
    return t.reshape(value, [1 if a in axes else d for a, d in enumerate(shape)])


def _spread(t: Tape, factor: float = 1.0) -> Value:
    return t.op("Expand", t.scale(_kept(t, t.dy), factor), t.ints(*t.shape()))


def _count(t: Tape) -> int:
    return math.prod(t.shape()[a] for a in _axes(t))


def _extremum(t: Tape) -> Gradients:
    """To the winners, ties sharing."""
    hits = t.as_float(t.op("Equal", t.x(), _kept(t, t.y())))
    share = t.div(_kept(t, t.dy), t.sum(hits, _axes(t), keepdims=True))
    return [t.mul(share, hits)]


def _log_sum_exp(t: Tape) -> Gradients:
    """dx = dy · exp(x − y)."""
    return [t.mul(_kept(t, t.dy), t.op("Exp", t.sub(t.x(), _kept(t, t.y()))))]


def _product(t: Tape) -> Gradients:
    """dx = dy · the product of all others, computed as such: y / x would fail at 0."""
    axes, shape = _axes(t), t.shape()
    count = _count(t)
    if count > _MOST_FACTORS:
        raise GradientError(f"{t.node}: a product of {count} numbers; the gradient rule takes {_MOST_FACTORS} at most")
    order = [a for a in range(len(shape)) if a not in axes] + list(axes)
    rows = t.reshape(t.op("Transpose", t.x(), perm=order), [-1, 1, count])
    others = t.op("Where", t.const(np.eye(count, dtype=bool), bool), t.const(1), rows)
    each = t.op("ReduceProd", others, t.ints(2), keepdims=0) if t.graph.opset >= 18 else t.op(
        "ReduceProd", others, axes=[2], keepdims=0)  # fmt: skip
    back = t.op("Transpose", t.reshape(each, [shape[a] for a in order]), perm=[int(a) for a in np.argsort(order)])
    return [t.mul(_kept(t, t.dy), back)]


def _l2(t: Tape) -> Gradients:
    """dx = dy · x / y, and 0 where all of x is."""
    norm = t.op("Max", t.y(), t.const(np.finfo(np.float32).tiny))
    return [t.mul(t.x(), _kept(t, t.div(t.dy, norm)))]


def _global_average(t: Tape) -> Gradients:
    """dy / (H·W) everywhere."""
    shape = t.shape()
    return [t.op("Expand", t.scale(t.dy, 1 / math.prod(shape[2:])), t.ints(*shape))]


def _softmax(t: Tape) -> Gradients:
    """dx = y · (dy − Σ dy·y)."""
    axis = axis_of(t.node, len(t.shape()), -1)
    weighted = t.mul(t.dy, t.y())
    return [t.sub(weighted, t.mul(t.y(), t.sum(weighted, [axis], keepdims=True)))]


def _log_softmax(t: Tape) -> Gradients:
    """dx = dy − exp(y) · Σ dy."""
    axis = axis_of(t.node, len(t.shape()), -1)
    return [t.sub(t.dy, t.mul(t.op("Exp", t.y()), t.sum(t.dy, [axis], keepdims=True)))]


RULES: dict[str, Rule] = {
    "GlobalAveragePool": _global_average,
    "LogSoftmax": _log_softmax,
    "ReduceL1": lambda t: [t.mul(t.op("Sign", t.x()), _kept(t, t.dy))],
    "ReduceL2": _l2,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _extremum,
    "ReduceMean": lambda t: [_spread(t, 1 / _count(t))],
    "ReduceMin": _extremum,
    "ReduceProd": _product,
    "ReduceSum": lambda t: [_spread(t)],
    "ReduceSumSquare": lambda t: [t.mul(t.scale(t.x(), 2), _kept(t, t.dy))],
    "Softmax": _softmax,
}
