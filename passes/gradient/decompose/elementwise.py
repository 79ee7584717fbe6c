"""Activations, as the simpler functions that they consist of."""

from __future__ import annotations

import math

from onnxslim.ir.graph import Value
from passes.gradient.decompose.table import Outputs, Table
from passes.gradient.tape import Tape

__all__ = ["RULES"]


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


RULES: Table = {
    ("", "Celu"): _celu,
    ("", "Gelu"): _gelu,
    ("", "Mish"): _mish,
    ("", "Selu"): _selu,
    ("", "Shrink"): _shrink,
    ("", "Softsign"): _softsign,
    ("", "ThresholdedRelu"): _thresholded_relu,
    ("com.microsoft", "BiasGelu"): _bias_gelu,
    ("com.microsoft", "FastGelu"): _fast_gelu,
    ("com.microsoft", "Gelu"): _gelu,
    ("com.microsoft", "QuickGelu"): _quick_gelu,
}
