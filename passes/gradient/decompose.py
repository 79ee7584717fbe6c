"""Ops whose gradient is that of simpler ops: the forward pass is written out, and differentiated as it stands.

    y = Op(x, …)  →  the same y from ops that have gradient rules of their own

Only nodes on a gradient's way are written out, so inference keeps ONNX Runtime's own kernels. Each
function here follows the op's definition in ONNX (or ONNX Runtime's documentation of its own ops),
and returns its outputs in order, None for those nothing differentiates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnxslim.errors import GradientError
from onnxslim.graph import Value
from onnxslim.ops import axis_of
from passes.gradient.tape import Tape

__all__ = ["DECOMPOSITIONS"]

Outputs = Sequence[Value | None]


def _root(t: Tape, x: Value, epsilon: float) -> Value:
    return t.op("Sqrt", t.add(x, t.const(epsilon)))


# ---------------------------------------------------------------------- elementwise


def _gelu_of(t: Tape, x: Value, tanh: bool) -> Value:
    """½·x·(1 + erf(x/√2)), or its tanh form ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    if tanh:
        cube = t.mul(t.mul(x, x), x)
        inner = t.op("Tanh", t.scale(t.add(x, t.scale(cube, 0.044715)), math.sqrt(2 / math.pi)))
    else:
        inner = t.op("Erf", t.scale(x, math.sqrt(0.5)))
    return t.mul(t.scale(x, 0.5), t.add(inner, t.const(1)))


def _gelu(t: Tape) -> Outputs:
    return [_gelu_of(t, t.x(), t.node.attr("approximate", "none") == "tanh")]


def _fast_gelu(t: Tape) -> Outputs:
    return [_gelu_of(t, t.add(t.x(), t.x(1)) if t.has(1) else t.x(), True)]


def _bias_gelu(t: Tape) -> Outputs:
    return [_gelu_of(t, t.add(t.x(), t.x(1)), False)]


def _quick_gelu(t: Tape) -> Outputs:
    """x·σ(αx)."""
    return [t.mul(t.x(), t.op("Sigmoid", t.scale(t.x(), float(t.node.attr("alpha", 1.702)))))]


def _mish(t: Tape) -> Outputs:
    """x·tanh(softplus(x))."""
    return [t.mul(t.x(), t.op("Tanh", t.op("Softplus", t.x())))]


def _celu(t: Tape) -> Outputs:
    """max(0, x) + min(0, α(exp(x/α) − 1))."""
    alpha = float(t.node.attr("alpha", 1.0))
    return [t.scale(t.op("Elu", t.scale(t.x(), 1 / alpha)), alpha)]


def _selu(t: Tape) -> Outputs:
    """γ·elu(x, α)."""
    alpha, gamma = float(t.node.attr("alpha", 1.67326319217681884765625)), float(t.node.attr("gamma", 1.05070102214813))
    return [t.scale(t.op("Elu", t.x(), alpha=alpha), gamma)]


def _softsign(t: Tape) -> Outputs:
    return [t.div(t.x(), t.add(t.op("Abs", t.x()), t.const(1)))]


def _shrink(t: Tape) -> Outputs:
    """x + bias below −λ, x − bias above λ, else 0."""
    bound, bias, x = float(t.node.attr("lambd", 0.5)), float(t.node.attr("bias", 0.0)), t.x()
    above = t.op("Where", t.op("Greater", x, t.const(bound)), t.sub(x, t.const(bias)), t.const(0))
    return [t.op("Where", t.op("Less", x, t.const(-bound)), t.add(x, t.const(bias)), above)]


def _thresholded_relu(t: Tape) -> Outputs:
    alpha = float(t.node.attr("alpha", 1.0))
    return [t.op("Where", t.op("Greater", t.x(), t.const(alpha)), t.x(), t.const(0))]


# ---------------------------------------------------------------------- normalisation


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


# ---------------------------------------------------------------------- reductions, pools, losses


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


# ---------------------------------------------------------------------- recurrent: one step after the other


_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _recurrent(t: Tape) -> Outputs:
    """LSTM, GRU and RNN unrolled over a static length, direction by direction."""
    direction = str(t.node.attr("direction", "forward"))
    directions = 2 if direction == "bidirectional" else 1
    usual = _USUAL[t.node.op] * directions
    if t.node.attr("clip") is not None or t.node.attr("input_forget", 0) or t.node.attr("layout", 0) or t.has(4):
        raise GradientError(f"{t.node}: clip, input_forget, layout and sequence lengths have no gradient rule")
    if (t.node.attr("activations") or usual) != usual:
        raise GradientError(f"{t.node}: activations other than {', '.join(usual)} have no gradient rule")
    every, last, cells = [], [], []
    for d in range(directions):
        backward = direction == "reverse" or d == 1
        outputs, h, c = _unrolled(t, d, backward)
        every.append(t.op("Concat", *(t.reshape(y, [1, 1, *y_shape(t)]) for y in outputs), axis=0))
        last.append(t.reshape(h, [1, *y_shape(t)]))
        if c is not None:
            cells.append(t.reshape(c, [1, *y_shape(t)]))
    joined = [parts[0] if directions == 1 else t.op("Concat", *parts, axis=axis)
              for parts, axis in ((every, 1), (last, 0), (cells, 0)) if parts]  # fmt: skip
    return joined


def y_shape(t: Tape) -> tuple[int, int]:
    """[batch, hidden] of a recurrent node."""
    return t.shape()[1], t.shape(2)[2]


def _of_direction(t: Tape, slot: int, d: int) -> Value:
    return t.op("Gather", t.x(slot), t.const(d, np.int64), axis=0)


def _unrolled(t: Tape, d: int, backward: bool) -> tuple[list[Value], Value, Value | None]:
    """The hidden state of each step in the order of time, and the last hidden and cell state."""
    gates, (length, batch, _), hidden = _GATES[t.node.op], t.shape(), t.shape(2)[2]
    w, r = (t.op("Transpose", _of_direction(t, slot, d), perm=[1, 0]) for slot in (1, 2))
    projected = t.op("MatMul", t.x(), w)
    recurrent_bias: list[Value] | None = None
    if t.has(3):
        first, second = t.split(_of_direction(t, 3, d), 2, gates * hidden, 0)
        projected = t.add(projected, first)
        if t.node.op == "GRU" and t.node.attr("linear_before_reset", 0):
            recurrent_bias = t.split(second, gates, hidden, 0)  # the candidate's is added before the reset
        else:
            projected = t.add(projected, second)
    peepholes = t.split(_of_direction(t, 7, d), 3, hidden, 0) if t.node.op == "LSTM" and t.has(7) else None
    h = _of_direction(t, 5, d) if t.has(5) else t.const(np.zeros((batch, hidden)))
    c: Value | None = None
    if t.node.op == "LSTM":
        c = _of_direction(t, 6, d) if t.has(6) else t.const(np.zeros((batch, hidden)))
    found: dict[int, Value] = {}
    for step in reversed(range(length)) if backward else range(length):
        x = t.op("Gather", projected, t.const(step, np.int64), axis=0)
        if c is not None:
            h, c = _lstm_step(t, x, h, c, r, hidden, peepholes)
        elif t.node.op == "GRU":
            h = _gru_step(t, x, h, r, hidden, recurrent_bias)
        else:
            h = t.op("Tanh", t.add(x, t.op("MatMul", h, r)))
        found[step] = h
    return [found[step] for step in range(length)], h, c


def _lstm_step(
    t: Tape, x: Value, h: Value, c: Value, r: Value, hidden: int, peepholes: list[Value] | None
) -> tuple[Value, Value]:
    """i, o, f = σ(…), c' = f·c + i·tanh(…), h' = o·tanh(c'); peepholes add p·c to i and f, p·c' to o."""
    i, o, f, g = t.split(t.add(x, t.op("MatMul", h, r)), 4, hidden, 1)
    if peepholes is not None:
        i, f = t.add(i, t.mul(peepholes[0], c)), t.add(f, t.mul(peepholes[2], c))
    kept = t.add(t.mul(t.op("Sigmoid", f), c), t.mul(t.op("Sigmoid", i), t.op("Tanh", g)))
    if peepholes is not None:
        o = t.add(o, t.mul(peepholes[1], kept))
    return t.mul(t.op("Sigmoid", o), t.op("Tanh", kept)), kept


def _gru_step(t: Tape, x: Value, h: Value, r: Value, hidden: int, bias: list[Value] | None) -> Value:
    """z, r = σ(…), n = tanh(x + r∘(…)) or tanh(x + (r∘h)·R), h' = (1 − z)·n + z·h."""
    x_z, x_r, x_n = t.split(x, 3, hidden, 1)
    r_z, r_r, r_n = t.split(r, 3, hidden, 1)
    before = bool(t.node.attr("linear_before_reset", 0))

    def product(weights: Value, part: int, state: Value) -> Value:
        made = t.op("MatMul", state, weights)
        return t.add(made, bias[part]) if bias is not None else made

    update = t.op("Sigmoid", t.add(x_z, product(r_z, 0, h)))
    reset = t.op("Sigmoid", t.add(x_r, product(r_r, 1, h)))
    candidate = t.mul(reset, product(r_n, 2, h)) if before else product(r_n, 2, t.mul(reset, h))
    fresh = t.op("Tanh", t.add(x_n, candidate))
    return t.add(t.mul(t.sub(t.const(1), update), fresh), t.mul(update, h))


# ---------------------------------------------------------------------- ONNX Runtime's fused ops


def _activated(t: Tape, y: Value) -> Value:
    name = t.node.attr("activation", "")
    numbers = [float(v) for v in t.node.attr("activation_params") or []]
    if name in ("Relu", "Tanh", "Sigmoid"):
        return t.op(name, y)
    if name == "LeakyRelu":
        return t.op(name, y, alpha=numbers[0] if numbers else float(t.node.attr("activation_alpha", 0.01)))
    if name == "Clip":
        return t.op(name, y, t.const(numbers[0]), t.const(numbers[1]))
    if name == "HardSigmoid":
        return t.op(name, y, alpha=numbers[0], beta=numbers[1])
    if name:
        raise GradientError(f"{t.node}: its activation {name} has no gradient rule")
    return y


def _fused_conv(t: Tape) -> Outputs:
    keys = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    attributes = {k: t.node.attr(k) for k in keys if t.node.attr(k) is not None}
    y = t.op("Conv", t.x(), t.x(1), t.x(2) if t.has(2) else None, **attributes)
    return [_activated(t, t.add(y, t.x(3)) if t.has(3) else y)]


def _fused_gemm(t: Tape) -> Outputs:
    attributes = {k: t.node.attr(k) for k in ("alpha", "beta", "transA", "transB") if t.node.attr(k) is not None}
    return [_activated(t, t.op("Gemm", t.x(), t.x(1), t.x(2) if t.has(2) else None, **attributes))]


def _fused_matmul(t: Tape) -> Outputs:
    """α·A'·B', where ' exchanges the last two axes if asked."""
    if t.node.attr("transBatchA", 0) or t.node.attr("transBatchB", 0):
        raise GradientError(f"{t.node}: transBatchA and transBatchB have no gradient rule")
    sides = []
    for slot, key in ((0, "transA"), (1, "transB")):
        rank = len(t.shape(slot))
        flip = t.node.attr(key, 0) and rank > 1
        sides.append(t.op("Transpose", t.x(slot), perm=[*range(rank - 2), rank - 1, rank - 2]) if flip else t.x(slot))
    return [t.scale(t.op("MatMul", *sides), float(t.node.attr("alpha", 1.0)))]


def _attention(t: Tape) -> Outputs:
    """Self-attention of [B, S, I] with merged weights [I, 3·H·D] and bias, softmax(QKᵀ/√D)·V; no mask, no past."""
    if any(t.has(slot) for slot in range(3, len(t.inputs))) or t.node.attr("unidirectional", 0):
        raise GradientError(f"{t.node}: Attention has a gradient rule without mask, past and unidirectional only")
    (batch, length, _), heads = t.shape(), int(t.node.attr("num_heads"))
    if t.node.attr("qkv_hidden_sizes"):
        raise GradientError(f"{t.node}: qkv_hidden_sizes has no gradient rule")
    width = t.shape(1)[1] // 3
    merged = t.op("MatMul", t.x(), t.x(1))
    merged = t.add(merged, t.x(2)) if t.has(2) else merged
    size = width // heads
    parts = [t.op("Transpose", t.reshape(p, [batch, length, heads, size]), perm=[0, 2, 1, 3])
             for p in t.split(merged, 3, width, 2)]  # fmt: skip
    scale = float(t.node.attr("scale", 0.0)) or 1 / math.sqrt(size)
    scores = t.scale(t.op("MatMul", parts[0], t.op("Transpose", parts[1], perm=[0, 1, 3, 2])), scale)
    context = t.op("MatMul", t.op("Softmax", scores, axis=-1), parts[2])
    return [t.reshape(t.op("Transpose", context, perm=[0, 2, 1, 3]), [batch, length, width])]


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


DECOMPOSITIONS: dict[tuple[str, str], Callable[[Tape], Outputs]] = {
    **{("", op): rule for op, rule in {
        "CastLike": _cast_like,
        "Celu": _celu,
        "GRU": _recurrent,
        "Gelu": _gelu,
        "GlobalLpPool": _global_lp_pool,
        "GroupNormalization": _group_norm,
        "InstanceNormalization": _instance_norm,
        "LRN": _lrn,
        "LSTM": _recurrent,
        "LayerNormalization": _layer_norm,
        "LpNormalization": _lp_normalization,
        "LpPool": _lp_pool,
        "MeanVarianceNormalization": _mean_variance,
        "Mish": _mish,
        "NegativeLogLikelihoodLoss": _negative_log_likelihood,
        "Pad": _pad,
        "RNN": _recurrent,
        "ReduceLogSum": _reduce_log_sum,
        "Selu": _selu,
        "Shrink": _shrink,
        "SimplifiedLayerNormalization": _simplified_layer_norm,
        "SoftmaxCrossEntropyLoss": _softmax_cross_entropy,
        "Softsign": _softsign,
        "ThresholdedRelu": _thresholded_relu,
    }.items()},
    **{("com.microsoft", op): rule for op, rule in {
        "Attention": _attention,
        "BiasGelu": _bias_gelu,
        "FastGelu": _fast_gelu,
        "FusedConv": _fused_conv,
        "FusedGemm": _fused_gemm,
        "FusedMatMul": _fused_matmul,
        "Gelu": _gelu,
        "QuickGelu": _quick_gelu,
        "SkipLayerNormalization": _skip_layer_norm,
        "SkipSimplifiedLayerNormalization": _skip_simplified_layer_norm,
    }.items()},
}  # fmt: skip
