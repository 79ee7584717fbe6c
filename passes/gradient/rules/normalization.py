"""Batch normalisation, in training mode (batch statistics) and in evaluation mode (running ones)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxslim.errors import GradientError
from onnxslim.graph import Value
from passes.gradient.tape import Rule, Tape

__all__ = ["RULES"]

Gradients = Sequence[Value | None]


def _batch_norm(t: Tape) -> Gradients:
    """y = γ·x̂ + β, x̂ = (x − μ)/σ, σ = √(v + ε).

    dβ = Σdy, dγ = Σ dy·x̂ = (Σ dy·x − μ·dβ)/σ. Evaluation mode: dx = dy·γ/σ. Training mode, with m
    elements a channel (Ioffe & Szegedy 2015): dx = γ/σ·(dy − dβ/m − x̂·dγ/m) = a·dy + b·x + c with one
    a, b, c a channel, so dx takes two passes over memory: a BatchNormalization as the affine
    a·dy + c, and b·x added.
    """
    if any(dy is not None for dy in t.dys()[1:]):
        raise GradientError(f"{t.node}: a loss that reads the batch's statistics has no gradient rule")
    training = bool(t.node.attr("training_mode", 0))
    shape = t.shape()
    channels, count = shape[1], math.prod(shape) // shape[1]
    x, gamma = t.x(0), t.x(1)
    mean, var = _batch_statistics(t) if training else (t.x(3), t.x(4))
    inverse = t.op("Reciprocal", t.op("Sqrt", t.add(var, t.const(t.node.attr("epsilon", 1e-5)))))
    dgamma = dbeta = None
    if training or any(t.wants(slot) for slot in range(1, 5)):
        dbeta = _per_channel(t, t.dy, shape)
        dot = _per_channel(t, t.mul(t.dy, x), shape)
        dgamma = t.mul(t.sub(dot, t.mul(mean, dbeta)), inverse)
    dx = None
    if t.wants(0):
        zero, one = t.const(np.zeros(channels)), t.const(np.ones(channels))
        a = t.mul(gamma, inverse)
        if not training or dgamma is None or dbeta is None:
            dx = t.op("BatchNormalization", t.dy, a, zero, zero, one, epsilon=0.0)
        else:
            b = t.neg(t.mul(t.mul(a, inverse), t.scale(dgamma, 1 / count)))
            c = t.neg(t.add(t.mul(a, t.scale(dbeta, 1 / count)), t.mul(b, mean)))
            affine = t.op("BatchNormalization", t.dy, a, c, zero, one, epsilon=0.0)
            dx = t.add(affine, t.mul(x, t.reshape(b, [1, channels] + [1] * (len(shape) - 2))))
    if training or dgamma is None or dbeta is None:
        return [dx, dgamma, dbeta, None, None]
    dmean = t.neg(t.mul(t.mul(gamma, inverse), dbeta))
    dvar = t.scale(t.mul(t.mul(gamma, dgamma), t.mul(inverse, inverse)), -0.5)
    return [dx, dgamma, dbeta, dmean, dvar]


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
    if len(shape) == 2:
        return t.sum(value, [0])
    rows = t.reshape(value, [shape[0], shape[1], math.prod(shape[2:])])
    return t.sum(t.sum(rows, [2]), [0])


RULES: dict[str, Rule] = {"BatchNormalization": _batch_norm}
