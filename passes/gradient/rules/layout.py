"""Laid-out ops: their ways back are ops of their domain too, so that the expansion sees them whole."""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.ir.dialect import BLOCKED, LANES
from onnxslim.ir.graph import Value
from passes.gradient.tape import Rule, Tape

__all__ = ["RULES"]

Gradients = Sequence[Value | None]


def _laid(t: Tape, op: str, *inputs: Value, shape: Sequence[int]) -> Value:
    made = t.op(op, *inputs, domain=t.node.domain, **t.node.attributes)
    t.graph.set_type(made, inputs[0].dtype, shape)
    return made


def _conv(t: Tape) -> Gradients:
    """Y = X ∗ W."""
    x, w = t.x(0), t.x(1)
    dx = _laid(t, "ConvInputGrad", t.dy, w, shape=t.shape(0)) if t.wants(0) else None
    dw = _laid(t, "ConvWeightGrad", x, t.dy, w, shape=t.shape(1)) if t.wants(1) else None
    return [dx, dw]


def _max_pool(t: Tape) -> Gradients:
    """To the first winner of each window."""
    return [_laid(t, "MaxPoolGrad", t.x(), t.y(), t.dy, shape=t.shape())]


RULES: dict[tuple[str, str], Rule] = {
    (BLOCKED, "Conv"): _conv,
    (LANES, "Conv"): _conv,
    (LANES, "MaxPool"): _max_pool,
}
