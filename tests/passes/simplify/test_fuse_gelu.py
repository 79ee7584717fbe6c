"""FuseGelu: its spellings, and what must stay."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from onnxslim.ir.graph import DType, Graph, Value
from passes.simplify import FuseGelu, simplify

SLOPE = math.sqrt(2 / math.pi)


class Words:
    """Ops with numbers: w("Add", x, 3.0)."""

    def __init__(self, b) -> None:
        self.b = b

    def __call__(self, op: str, *operands: Value | float) -> Value:
        values = [v if isinstance(v, Value) else self.b.constant(np.float32(v)) for v in operands]
        y = self.b.graph.op(op, *values)
        self.b.graph.set_type(y, DType.FLOAT, self.b.x.shape)
        return y


def erf(w: Words, x: Value) -> Value:
    return w("Add", w("Erf", w("Div", x, math.sqrt(2))), 1.0)


def cubic(w: Words, x: Value) -> Value:
    return w("Add", x, w("Mul", w("Pow", x, 3.0), 0.044715))


def tanh(w: Words, inner: Value) -> Value:
    return w("Add", 1.0, w("Tanh", inner))


SPELLINGS: dict[str, Callable[[Words, Value], Value]] = {
    "erf, half last": lambda w, x: w("Mul", w("Mul", x, erf(w, x)), 0.5),
    "erf, half of x": lambda w, x: w("Mul", w("Mul", 0.5, x), erf(w, x)),
    "erf, half of the gate": lambda w, x: w("Mul", x, w("Mul", erf(w, x), 0.5)),
    "erf, factor": lambda w, x: w("Mul", w("Div", x, 2.0), w("Add", w("Erf", w("Mul", x, math.sqrt(0.5))), 1.0)),
    "erf, half inside": lambda w, x: w("Mul", x, w("Add", w("Mul", w("Erf", w("Div", x, math.sqrt(2))), 0.5), 0.5)),
    "tanh, power": lambda w, x: w("Mul", w("Mul", x, 0.5), tanh(w, w("Mul", cubic(w, x), SLOPE))),
    "tanh, products": lambda w, x: w(
        "Mul",
        0.5,
        w("Mul", x, tanh(w, w("Mul", SLOPE, w("Add", x, w("Mul", w("Mul", w("Mul", x, x), x), 0.044715))))),
    ),
    "tanh, factored": lambda w, x: w(
        "Mul",
        w("Mul", x, 0.5),
        tanh(w, w("Mul", w("Mul", x, SLOPE), w("Add", 1.0, w("Mul", w("Mul", x, 0.044715), x)))),
    ),
}


def built(build, spelling: Callable[[Words, Value], Value], opset: int = 20) -> Graph:
    b = build("N", 3, 40, opset=opset)
    return b.finish(spelling(Words(b), b.x))


@pytest.mark.parametrize("name", SPELLINGS)
def test_fires(name: str, build, ops, largest_error) -> None:
    graph = built(build, SPELLINGS[name])
    before = graph.copy()
    assert FuseGelu()(graph).rewrites == 1
    assert ops(graph) == ["Gelu"]
    assert graph.nodes()[0].attr("approximate") == ("none" if name.startswith("erf") else "tanh")
    assert largest_error(before, graph) <= 1e-5


@pytest.mark.parametrize("name", ["erf, half last", "tanh, power"])
def test_an_opset_without_the_op_is_left(name: str, build, ops) -> None:
    graph = built(build, SPELLINGS[name], opset=19)
    before = ops(graph)
    simplify(19)(graph)
    assert ops(graph) == before


@pytest.mark.parametrize(
    "spelling",
    [
        lambda w, x: w("Mul", w("Mul", x, erf(w, x)), 0.25),
        lambda w, x: w("Mul", w("Mul", x, erf(w, w("Abs", x))), 0.5),
        lambda w, x: w("Mul", w("Mul", x, w("Add", w("Erf", x), 1.0)), 0.5),
        lambda w, x: w("Mul", w("Mul", x, 0.5), tanh(w, w("Mul", w("Add", x, w("Pow", x, 2.0)), SLOPE))),
    ],
    ids=["another factor", "another x", "without the root", "a square"],
)
def test_retained(spelling: Callable[[Words, Value], Value], build, ops) -> None:
    graph = built(build, spelling)
    before = ops(graph)
    assert FuseGelu()(graph).rewrites == 0
    assert ops(graph) == before


def test_a_step_that_is_read_elsewhere_is_refused(build) -> None:
    b = build("N", 8, opset=20)
    w = Words(b)
    gate = erf(w, b.x)
    outcome = FuseGelu()(b.finish(w("Mul", w("Mul", b.x, gate), 0.5), gate))
    assert outcome.rewrites == 0
    assert "read elsewhere" in outcome.refused[0].why
