"""Reductions, pools by a power mean, and losses."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from onnxslim.errors import GradientError
from onnxslim.ir.graph import Value
from passes.gradient.decompose.table import Outputs, Table
from passes.gradient.tape import Tape

__all__ = ["RULES"]


def _reduce_log_sum(t: Tape) -> Outputs:
    attributes = {k: t.node.attr(k) for k in ("keepdims", "noop_with_empty_axes", "axes") if t.node.attr(k) is not None}
    axes = t.x(1) if t.has(1) else t.ints(*attributes.pop("axes")) if "axes" in attributes else None
    return [t.op("Log", t.op("ReduceSum", t.x(), axes, **attributes))]


def _power_mean(t: Tape, pool: Callable[[Value], Value], count: int, p: float) -> Outputs:
    powers = t.op("Pow", t.op("Abs", t.x()), t.const(p))
    return [t.op("Pow", t.scale(pool(powers), count), t.const(1 / p))]


def _lp_pool(t: Tape) -> Outputs:
    """(Σ |x|^p over the window)^(1/p)."""
    kernel = t.node.attr("kernel_shape")
    if set(t.node.attr("dilations") or [1]) != {1}:
        raise GradientError(f"{t.node}: dilations have no gradient rule")
    keys = ("kernel_shape", "strides", "pads", "auto_pad", "ceil_mode")
    attributes = {k: t.node.attr(k) for k in keys if t.node.attr(k) is not None}

    def pool(powers: Value) -> Value:
        return t.op("AveragePool", powers, count_include_pad=1, **attributes)

    return _power_mean(t, pool, math.prod(kernel), float(t.node.attr("p", 2)))


def _global_lp_pool(t: Tape) -> Outputs:
    axes = range(2, len(t.shape()))
    return _power_mean(
        t, lambda powers: t.op("ReduceSum", powers, t.ints(*axes), keepdims=1), 1, float(t.node.attr("p", 2))
    )


def _nll(t: Tape, scores: Value) -> Value:
    """−w[label]·score[label], reduced; labels `ignore_index` count for nothing."""
    shape, label = t.shape(), t.x(1)
    kind = label.dtype.numpy
    classes = t.const(np.arange(shape[1]).reshape([-1] + [1] * (len(shape) - 2)), kind)
    hit = t.as_float(t.op("Equal", t.op("Unsqueeze", label, t.ints(1)), classes))
    ignored = t.node.attr("ignore_index")
    if ignored is not None:
        kept = t.as_float(t.op("Not", t.op("Equal", label, t.const(ignored, kind))))
        hit = t.mul(hit, t.op("Unsqueeze", kept, t.ints(1)))
    if t.has(2):
        hit = t.mul(hit, t.reshape(t.x(2), [1, -1] + [1] * (len(shape) - 2)))
    each = t.neg(t.sum(t.mul(scores, hit), [1]))
    reduction = t.node.attr("reduction", "mean")
    if reduction == "none":
        return each
    total = t.op("ReduceSum", each, keepdims=0)
    return total if reduction == "sum" else t.div(total, t.op("ReduceSum", hit, keepdims=0))


def _negative_log_likelihood(t: Tape) -> Outputs:
    return [_nll(t, t.x())]


def _softmax_cross_entropy(t: Tape) -> Outputs:
    scores = t.op("LogSoftmax", t.x(), axis=1)
    return [_nll(t, scores), scores]


RULES: Table = {
    ("", "GlobalLpPool"): _global_lp_pool,
    ("", "LpPool"): _lp_pool,
    ("", "NegativeLogLikelihoodLoss"): _negative_log_likelihood,
    ("", "ReduceLogSum"): _reduce_log_sum,
    ("", "SoftmaxCrossEntropyLoss"): _softmax_cross_entropy,
}
