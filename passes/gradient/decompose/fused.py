"""ONNX Runtime's fused ops, as what they were fused from."""

from __future__ import annotations

import math

import numpy as np

from onnxslim.errors import GradientError
from onnxslim.ir.graph import Value
from onnxslim.ir.ops import attention_widths, fused_order
from passes.gradient.decompose.table import Outputs, Table
from passes.gradient.tape import Tape

__all__ = ["RULES"]

_AHEAD = -1e9  # a score that softmax makes 0 of


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
    """α·A'·B', where ' takes the axes in another order if asked."""
    orders = [fused_order(t.node, slot, len(t.shape(slot))) for slot in range(2)]
    sides = [
        t.x(slot) if order == sorted(order) else t.op("Transpose", t.x(slot), perm=order)
        for slot, order in enumerate(orders)
    ]
    return [t.scale(t.op("MatMul", *sides), float(t.node.attr("alpha", 1.0)))]


def _attention(t: Tape) -> Outputs:
    """Self-attention of [B, S, I] with merged weights [I, Q + K + V] and bias, softmax(QKᵀ/√D)·V a head, where no place
    looks ahead if it is unidirectional; no mask, no past."""
    if any(t.has(slot) for slot in range(3, len(t.inputs))):
        raise GradientError(f"{t.node}: Attention has a gradient rule without mask and past only")
    (batch, length, _), heads = t.shape(), int(t.node.attr("num_heads"))
    widths = attention_widths(t.node, t.shape(1)[1])
    merged = t.op("MatMul", t.x(), t.x(1))
    merged = t.add(merged, t.x(2)) if t.has(2) else merged
    split = t.node_of("Split", [merged, t.ints(*widths)], ["q", "k", "v"], axis=2)
    parts = [
        t.op("Transpose", t.reshape(t.graph.result(split, i), [batch, length, heads, w // heads]), perm=[0, 2, 1, 3])
        for i, w in enumerate(widths)
    ]
    scale = float(t.node.attr("scale", 0.0)) or 1 / math.sqrt(widths[0] // heads)
    scores = t.scale(t.op("MatMul", parts[0], t.op("Transpose", parts[1], perm=[0, 1, 3, 2])), scale)
    if t.node.attr("unidirectional", 0):
        scores = t.add(scores, t.const(np.triu(np.full((length, length), _AHEAD), 1)))
    context = t.op("MatMul", t.op("Softmax", scores, axis=-1), parts[2])
    return [t.reshape(t.op("Transpose", context, perm=[0, 2, 1, 3]), [batch, length, widths[2]])]


RULES: Table = {
    ("com.microsoft", "Attention"): _attention,
    ("com.microsoft", "FusedConv"): _fused_conv,
    ("com.microsoft", "FusedGemm"): _fused_gemm,
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
}
