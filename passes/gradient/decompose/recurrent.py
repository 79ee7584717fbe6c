"""LSTM, GRU and RNN: one step after the other."""

from __future__ import annotations

import numpy as np

from onnxslim.errors import GradientError
from onnxslim.ir.graph import Value
from passes.gradient.decompose.table import Outputs, Table
from passes.gradient.tape import Tape

__all__ = ["RULES"]

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
        every.append(t.op("Concat", *(t.reshape(y, [1, 1, *_y_shape(t)]) for y in outputs), axis=0))
        last.append(t.reshape(h, [1, *_y_shape(t)]))
        if c is not None:
            cells.append(t.reshape(c, [1, *_y_shape(t)]))
    joined = [parts[0] if directions == 1 else t.op("Concat", *parts, axis=axis)
              for parts, axis in ((every, 1), (last, 0), (cells, 0)) if parts]  # fmt: skip
    return joined


def _y_shape(t: Tape) -> tuple[int, int]:
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


RULES: Table = {
    ("", "GRU"): _recurrent,
    ("", "LSTM"): _recurrent,
    ("", "RNN"): _recurrent,
}
