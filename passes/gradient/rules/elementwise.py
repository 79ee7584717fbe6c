"""Elementwise ops: dx = dy · f'(x), summed back where an input was broadcast.

Where f' is cheaper from the output, the rule reads the output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxslim.analysis.trainable import FLAT
from onnxslim.errors import GradientError
from onnxslim.ir.graph import DType, Value
from passes.gradient.tape import Rule, Tape

__all__ = ["RULES"]

Gradients = Sequence[Value | None]
_LARGE = 2.0**27  # bounds beyond it would leave float32 when scaled; nothing is clipped there


def _add(t: Tape) -> Gradients:
    """y = a + b."""
    return [t.unbroadcast(t.dy, slot) if t.wants(slot) else None for slot in range(2)]


def _sub(t: Tape) -> Gradients:
    """y = a − b."""
    db = t.neg(t.unbroadcast(t.dy, 1)) if t.wants(1) else None
    return [t.unbroadcast(t.dy, 0) if t.wants(0) else None, db]


def _mul(t: Tape) -> Gradients:
    """y = a · b."""
    return [t.unbroadcast(t.mul(t.dy, t.x(1 - slot)), slot) if t.wants(slot) else None for slot in range(2)]


def _div(t: Tape) -> Gradients:
    """y = a / b: da = dy / b, db = −dy · y / b."""
    over = t.div(t.dy, t.x(1))
    db = t.unbroadcast(t.neg(t.mul(over, t.y())), 1) if t.wants(1) else None
    return [t.unbroadcast(over, 0) if t.wants(0) else None, db]


def _pow(t: Tape) -> Gradients:
    """y = aᵇ: da = dy · b · aᵇ⁻¹, db = dy · y · ln a. A square is spared the powers."""
    a, b = t.x(0), t.x(1)
    power = t.graph.constant_of(b)
    if power is not None and power.size == 1 and power.item() == 2 and not t.wants(1):
        return [t.unbroadcast(t.scale(t.mul(t.dy, a), 2), 0), None]
    if not b.dtype.is_float:
        b = t.op("Cast", b, to=int(a.dtype))
    da = db = None
    if t.wants(0):
        slope = t.mul(b, t.op("Pow", a, t.sub(b, t.const(1))))
        da = t.unbroadcast(t.mul(t.dy, slope), 0)
    if t.wants(1):
        db = t.unbroadcast(t.mul(t.dy, t.mul(t.y(), t.op("Log", a))), 1)
    return [da, db]


def _variadic(t: Tape) -> Gradients:
    """y = Σ xᵢ."""
    return [t.unbroadcast(t.dy, slot) if t.wants(slot) else None for slot in range(len(t.inputs))]


def _mean(t: Tape) -> Gradients:
    """y = Σ xᵢ / n."""
    share = t.scale(t.dy, 1 / len(t.inputs))
    return [t.unbroadcast(share, slot) if t.wants(slot) else None for slot in range(len(t.inputs))]


def _extremum(t: Tape) -> Gradients:
    """y = max(xᵢ) or min(xᵢ): to the winner; winners of a tie share."""
    hits = [t.as_float(t.op("Equal", t.x(slot), t.y())) for slot in range(len(t.inputs))]
    count = t.op("Sum", *hits) if len(hits) > 1 else hits[0]
    share = t.div(t.dy, count)
    return [t.unbroadcast(t.mul(share, hit), slot) if t.wants(slot) else None for slot, hit in enumerate(hits)]


def _where(t: Tape) -> Gradients:
    """y = a where c, else b."""
    zero = t.const(0)
    da = t.unbroadcast(t.op("Where", t.x(0), t.dy, zero), 1) if t.wants(1) else None
    db = t.unbroadcast(t.op("Where", t.x(0), zero, t.dy), 2) if t.wants(2) else None
    return [None, da, db]


def _relu(t: Tape) -> Gradients:
    """dx = dy where y > 0."""
    return [t.mul(t.dy, t.above(t.y()))]


def _leaky_relu(t: Tape) -> Gradients:
    """Slope α below 0, 1 from 0 on."""
    alpha = float(t.node.attr("alpha", 0.01))
    above = t.as_float(t.op("GreaterOrEqual", t.x(), t.const(0)))
    return [t.mul(t.dy, t.add(t.scale(above, 1 - alpha), t.const(alpha)))]


def _clip(t: Tape) -> Gradients:
    """y = min(max(x, lo), hi): dy strictly inside, 0 outside; a bound's own gradient is not needed.

    The mask compares the output with the bounds, so that what sits on a bound gets none. Two bounds are one, of the
    distance from the middle, where float32 holds their distances exactly; what is no further from a bound than the
    distance's last digit counts as on it.
    """
    if t.wants(1) or t.wants(2):
        raise GradientError(f"{t.node}: the bounds of Clip have no gradient rule")
    dx = t.dy
    bounds = [t.graph.input(t.node, slot) for slot in (1, 2)]
    numbers = [t.node.attr(a) if b is None else _number(t, b) for a, b in zip(("min", "max"), bounds)]
    known = [np.float32(n) for n in numbers if n is not None and abs(n) < _LARGE]
    if len(known) == 2:
        low, high = known
        middle, half = (low + high) / 2, (high - low) / 2
        if low - middle == -half and high - middle == half:
            distance = t.op("Abs", t.sub(t.y(), t.const(middle)))
            return [t.mul(dx, t.below(distance, float(half)))]
    for bound, number, sign in zip(bounds, numbers, (1, -1)):
        if number is not None and math.isfinite(number) and abs(number) < _LARGE:
            dx = t.mul(dx, t.above(t.y(), number) if sign > 0 else t.below(t.y(), number))
        elif bound is not None and number is None:
            inside = t.op("Greater" if sign > 0 else "Less", t.y(), bound)
            dx = t.mul(dx, t.as_float(inside))
    return [dx]


def _number(t: Tape, value: Value) -> float | None:
    array = t.graph.constant_of(value)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def _hard_sigmoid(t: Tape) -> Gradients:
    """y = clip(αx + β, 0, 1)."""
    alpha = float(t.node.attr("alpha", 0.2))
    return [t.scale(t.mul(t.mul(t.dy, t.above(t.y())), t.below(t.y(), 1.0)), alpha)]


def _hard_swish(t: Tape) -> Gradients:
    """y = x · clip(x/6 + ½, 0, 1): slope 0 below −3, 1 above 3, x/3 + ½ between."""
    x = t.x()
    middle = t.add(t.scale(x, 1 / 3), t.const(0.5))
    slope = t.op("Where", t.op("Greater", x, t.const(3)), t.const(1), middle)
    return [t.mul(t.dy, t.op("Where", t.op("Less", x, t.const(-3)), t.const(0), slope))]


def _sigmoid(t: Tape) -> Gradients:
    """y' = y (1 − y)."""
    return [t.mul(t.dy, t.mul(t.y(), t.sub(t.const(1), t.y())))]


def _tanh(t: Tape) -> Gradients:
    """y' = 1 − y²."""
    return [t.mul(t.dy, t.sub(t.const(1), t.mul(t.y(), t.y())))]


def _softplus(t: Tape) -> Gradients:
    """y = ln(1 + eˣ): y' = σ(x)."""
    return [t.mul(t.dy, t.op("Sigmoid", t.x()))]


def _erf(t: Tape) -> Gradients:
    """y' = 2/√π · exp(−x²)."""
    slope = t.op("Exp", t.neg(t.mul(t.x(), t.x())))
    return [t.scale(t.mul(t.dy, slope), 2 / math.sqrt(math.pi))]


def _cast(t: Tape) -> Gradients:
    """Between float types; others carry no gradient."""
    if not DType(t.node.attr("to")).is_float or not t.x().dtype.is_float:
        return [None]
    return [t.dy if t.x().dtype == t.y().dtype else t.op("Cast", t.dy, to=int(t.x().dtype))]


def _elu(t: Tape) -> Gradients:
    """y = x above 0, α(eˣ − 1) below: slope 1 or y + α."""
    alpha = float(t.node.attr("alpha", 1.0))
    slope = t.op("Where", t.op("Greater", t.x(), t.const(0)), t.const(1), t.add(t.y(), t.const(alpha)))
    return [t.mul(t.dy, slope)]


def _prelu(t: Tape) -> Gradients:
    """y = x above 0, s·x below."""
    below = t.op("Less", t.x(), t.const(0))
    dx = t.op("Where", below, t.mul(t.dy, t.x(1)), t.dy) if t.wants(0) else None
    ds = t.unbroadcast(t.op("Where", below, t.mul(t.dy, t.x()), t.const(0)), 1) if t.wants(1) else None
    return [dx, ds]


def _over_root(t: Tape, inside: Value) -> Value:
    return t.div(t.dy, t.op("Sqrt", inside))


def _square(t: Tape) -> Value:
    return t.mul(t.x(), t.x())


def _flat(t: Tape) -> Gradients:
    """Constant between its steps: no gradient."""
    return [None]


RULES: dict[str, Rule] = {
    "Abs": lambda t: [t.mul(t.dy, t.op("Sign", t.x()))],
    "Acos": lambda t: [t.neg(_over_root(t, t.sub(t.const(1), _square(t))))],
    "Acosh": lambda t: [_over_root(t, t.sub(_square(t), t.const(1)))],
    "Add": _add,
    "Asin": lambda t: [_over_root(t, t.sub(t.const(1), _square(t)))],
    "Asinh": lambda t: [_over_root(t, t.add(_square(t), t.const(1)))],
    "Atan": lambda t: [t.div(t.dy, t.add(_square(t), t.const(1)))],
    "Atanh": lambda t: [t.div(t.dy, t.sub(t.const(1), _square(t)))],
    "Cast": _cast,
    "Clip": _clip,
    "Cos": lambda t: [t.neg(t.mul(t.dy, t.op("Sin", t.x())))],
    "Cosh": lambda t: [t.mul(t.dy, t.op("Sinh", t.x()))],
    "Div": _div,
    "Elu": _elu,
    "Erf": _erf,
    "Exp": lambda t: [t.mul(t.dy, t.y())],
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": lambda t: [t.dy],
    "LeakyRelu": _leaky_relu,
    "Log": lambda t: [t.div(t.dy, t.x())],
    "Max": _extremum,
    "Mean": _mean,
    "Min": _extremum,
    "Mul": _mul,
    "Neg": lambda t: [t.neg(t.dy)],
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": lambda t: [t.neg(t.mul(t.dy, t.mul(t.y(), t.y())))],
    "Relu": _relu,
    "Sigmoid": _sigmoid,
    "Sin": lambda t: [t.mul(t.dy, t.op("Cos", t.x()))],
    "Sinh": lambda t: [t.mul(t.dy, t.op("Cosh", t.x()))],
    "Softplus": _softplus,
    "Sqrt": lambda t: [t.div(t.scale(t.dy, 0.5), t.y())],
    "Sub": _sub,
    "Sum": _variadic,
    "Tan": lambda t: [t.mul(t.dy, t.add(t.mul(t.y(), t.y()), t.const(1)))],
    "Tanh": _tanh,
    "Where": _where,
    **dict.fromkeys(FLAT, _flat),
}
