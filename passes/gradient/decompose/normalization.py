"""Norms: a mean and a variance over some axes, written out."""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.errors import GradientError
from onnxslim.ir.graph import Value
from onnxslim.ir.ops import axis_of
from passes.gradient.decompose.table import Outputs, Table
from passes.gradient.tape import Tape

__all__ = ["RULES"]


def _root(t: Tape, x: Value, epsilon: float) -> Value:
    return t.op("Sqrt", t.add(x, t.const(epsilon)))


def _standardised(t: Tape, x: Value, axes: Sequence[int], epsilon: float) -> tuple[Value, Value, Value]:
    """(x − μ)/√(v + ε), μ and 1/√(v + ε), over axes."""
    mean = t.op("ReduceMean", x, t.ints(*axes), keepdims=1)
    centred = t.sub(x, mean)
    variance = t.op("ReduceMean", t.mul(centred, centred), t.ints(*axes), keepdims=1)
    inverse = t.op("Reciprocal", _root(t, variance, epsilon))
    return t.mul(centred, inverse), mean, inverse


def _layer_norm(t: Tape) -> Outputs:
    shape = t.shape()
    axes = range(axis_of(t.node, len(shape), -1), len(shape))
    y, mean, inverse = _standardised(t, t.x(), axes, float(t.node.attr("epsilon", 1e-5)))
    y = t.mul(y, t.x(1))
    return [t.add(y, t.x(2)) if t.has(2) else y, mean, inverse]


def _rms(t: Tape, x: Value, scale: Value) -> Value:
    squares = t.op("ReduceMean", t.mul(x, x), t.ints(-1), keepdims=1)
    return t.mul(t.div(x, _root(t, squares, float(t.node.attr("epsilon", 1e-5)))), scale)


def _simplified_layer_norm(t: Tape) -> Outputs:
    """x/√(mean(x²) + ε)·γ over the last axis (Zhang & Sennrich 2019)."""
    if axis_of(t.node, len(t.shape()), -1) != len(t.shape()) - 1:
        raise GradientError(f"{t.node}: only the last axis has a gradient rule")
    return [_rms(t, t.x(), t.x(1)), None]


def _skip_layer_norm(t: Tape) -> Outputs:
    """LayerNormalization(input + skip + bias)."""
    total = t.add(t.x(), t.x(1))
    if t.has(4):
        total = t.add(total, t.x(4))
    y, mean, inverse = _standardised(t, total, [-1], float(t.node.attr("epsilon", 1e-12)))
    y = t.mul(y, t.x(2))
    return [t.add(y, t.x(3)) if t.has(3) else y, mean, inverse, total]


def _skip_simplified_layer_norm(t: Tape) -> Outputs:
    total = t.add(t.x(), t.x(1))
    if t.has(3):
        total = t.add(total, t.x(3))
    return [_rms(t, total, t.x(2)), None, None, total]


def _channels(t: Tape, value: Value, rank: int) -> Value:
    return t.reshape(value, [1, -1] + [1] * (rank - 2))


def _instance_norm(t: Tape) -> Outputs:
    rank = len(t.shape())
    y, _, _ = _standardised(t, t.x(), range(2, rank), float(t.node.attr("epsilon", 1e-5)))
    return [t.add(t.mul(y, _channels(t, t.x(1), rank)), _channels(t, t.x(2), rank))]


def _group_norm(t: Tape) -> Outputs:
    """Scale and bias a group up to opset 20, a channel from 21 on."""
    shape, groups = t.shape(), int(t.node.attr("num_groups"))
    blocks = t.reshape(t.x(), [shape[0], groups, -1])
    y, _, _ = _standardised(t, blocks, [2], float(t.node.attr("epsilon", 1e-5)))
    if t.shape(1) == (groups,) and groups != shape[1]:
        y = t.add(t.mul(y, t.reshape(t.x(1), [1, groups, 1])), t.reshape(t.x(2), [1, groups, 1]))
        return [t.reshape(y, shape)]
    y, rank = t.reshape(y, shape), len(shape)
    return [t.add(t.mul(y, _channels(t, t.x(1), rank)), _channels(t, t.x(2), rank))]


def _mean_variance(t: Tape) -> Outputs:
    """(x − μ)/(σ + 1e-9)."""
    axes = [int(a) for a in t.node.attr("axes", [0, 2, 3])]
    centred = t.sub(t.x(), t.op("ReduceMean", t.x(), t.ints(*axes), keepdims=1))
    variance = t.op("ReduceMean", t.mul(centred, centred), t.ints(*axes), keepdims=1)
    return [t.div(centred, t.add(t.op("Sqrt", variance), t.const(1e-9)))]


def _lp_normalization(t: Tape) -> Outputs:
    axis = axis_of(t.node, len(t.shape()), -1)
    op = "ReduceL1" if int(t.node.attr("p", 2)) == 1 else "ReduceL2"
    return [t.div(t.x(), t.op(op, t.x(), t.ints(axis), keepdims=1))]


def _lrn(t: Tape) -> Outputs:
    """x / (bias + α/size · Σ x² over `size` neighbouring channels)^β."""
    shape, size = t.shape(), int(t.node.attr("size"))
    alpha, beta, bias = (float(t.node.attr(k, d)) for k, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    pads = [0] * (2 * len(shape))
    pads[1], pads[len(shape) + 1] = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = t.op("Pad", t.mul(t.x(), t.x()), t.ints(*pads))
    parts = [t.op("Slice", squares, t.ints(i), t.ints(i + shape[1]), t.ints(1)) for i in range(size)]
    total = t.op("Sum", *parts) if size > 1 else parts[0]
    return [t.div(t.x(), t.op("Pow", t.add(t.scale(total, alpha / size), t.const(bias)), t.const(beta)))]


RULES: Table = {
    ("", "GroupNormalization"): _group_norm,
    ("", "InstanceNormalization"): _instance_norm,
    ("", "LRN"): _lrn,
    ("", "LayerNormalization"): _layer_norm,
    ("", "LpNormalization"): _lp_normalization,
    ("", "MeanVarianceNormalization"): _mean_variance,
    ("", "SimplifiedLayerNormalization"): _simplified_layer_norm,
    ("com.microsoft", "SkipLayerNormalization"): _skip_layer_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_simplified_layer_norm,
}
