"""Batch normalisation, in training mode (batch statistics) and in evaluation mode (running ones)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxslim.errors import GradientError
from onnxslim.ir.graph import Value
from onnxslim.ir.ops import is_training
from passes.gradient.tape import Rule, Tape

__all__ = ["RULES"]

Gradients = Sequence[Value | None]


def _batch_norm(t: Tape) -> Gradients:
    """y = γ·x̂ + β, x̂ = (x − μ)/σ, σ = √(v + ε).

    dβ = Σdy, dγ = Σ dy·x̂ = (Σ dy·x − μ·dβ)/σ. Evaluation mode: dx = dy·γ/σ. Training mode, with m
    elements a channel (Ioffe & Szegedy 2015): dx = γ/σ·(dy − dβ/m − x̂·dγ/m) = γ·(dy − dβ/m)/σ + b·(x − μ),
    b = −γ·dγ/(m·σ²): a BatchNormalization with dβ/m for its mean and −b·μ for its bias, and b·x added.
    """
    if any(dy is not None for dy in t.dys()[1:]):
        raise GradientError(f"{t.node}: a loss that reads the batch's statistics has no gradient rule")
    training = bool(is_training(t.graph, t.node))
    shape, epsilon = t.shape(), float(t.node.attr("epsilon", 1e-5))
    channels, count = shape[1], math.prod(shape) // shape[1]
    x, gamma = t.x(0), t.x(1)
    mean, var = _batch_statistics(t) if training else (t.x(3), t.x(4))
    zero = t.const(np.zeros(channels))
    if not training and not any(t.wants(slot) for slot in range(1, 5)):
        return [_affine(t, gamma, zero, zero, var, epsilon)]
    squared = t.op("Reciprocal", t.add(var, t.const(epsilon)))  # 1/σ²
    dbeta = _per_channel(t, t.dy, shape)
    dot = t.dots(t.dy, x, math.prod(shape[:2]), math.prod(shape[2:]))
    dot = t.sum(t.reshape(dot, shape[:2]), [0]) if shape[0] > 1 else dot
    dgamma = t.mul(t.sub(dot, t.mul(mean, dbeta)), t.op("Sqrt", squared))
    if not training:
        dx = _affine(t, gamma, zero, zero, var, epsilon) if t.wants(0) else None
        dmean = t.neg(t.mul(t.mul(gamma, t.op("Sqrt", squared)), dbeta))
        return [dx, dgamma, dbeta, dmean, t.scale(t.mul(t.mul(gamma, dgamma), squared), -0.5)]
    dx = None
    if t.wants(0):
        b = t.mul(t.mul(t.scale(gamma, -1 / count), squared), dgamma)
        affine = _affine(t, gamma, t.mul(b, t.neg(mean)), t.scale(dbeta, 1 / count), var, epsilon)
        dx = t.add_scaled(affine, x, b, shape)
    running = [zero if t.wants(slot) else None for slot in (3, 4)]  # which training mode does not read
    return [dx, dgamma, dbeta, *running]


def _affine(t: Tape, gamma: Value, bias: Value, mean: Value, var: Value, epsilon: float) -> Value:
    """γ·(dy − mean)/√(var + ε) + bias, in one pass over memory."""
    return t.op("BatchNormalization", t.dy, gamma, bias, mean, var, epsilon=epsilon)


def _batch_statistics(t: Tape) -> tuple[Value, Value]:
    """The mean and biased variance that were normalised with: with momentum 0 the node's own outputs 1 and 2."""
    if float(t.node.attr("momentum", 0.9)) == 0 and len(t.outputs) > 2 and None not in t.outputs[1:3]:
        return t.y(1), t.y(2)
    shape = t.shape()
    count = math.prod(shape) // shape[1]
    mean = t.scale(_per_channel(t, t.x(), shape), 1 / count)
    centred = t.sub(t.x(), t.reshape(mean, [1, -1] + [1] * (len(shape) - 2)))
    return mean, t.scale(_per_channel(t, t.mul(centred, centred), shape), 1 / count)


def _per_channel(t: Tape, value: Value, shape: Sequence[int]) -> Value:
    """Σ over all axes but 1: the contiguous ones first, which is the fast way round."""
    if len(shape) == 2 or shape[0] == 1:
        return t.sum(value, [a for a in range(len(shape)) if a != 1])
    rows = t.reshape(value, [shape[0], shape[1], math.prod(shape[2:])])
    return t.sum(t.sum(rows, [2]), [0])


RULES: dict[str, Rule] = {"BatchNormalization": _batch_norm}
