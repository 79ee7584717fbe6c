"""FuseHardSwish: every way in which exporters spell it, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxslim.ir.graph import DType, Graph, Value
from onnxslim.ir.text import to_text
from passes.simplify import EliminateDead, FuseHardSwish, simplify

Spelling = Callable[["Words", Value], Value]


class Words:
    """Ops with numbers: w.op("Add", x, 3.0)."""

    def __init__(self, b) -> None:
        self.b = b

    def op(self, op: str, *operands: Value | float, **attributes: object) -> Value:
        values = [v if isinstance(v, Value) else self.b.constant(np.float32(v)) for v in operands]
        y = self.b.graph.op(op, *values, **attributes)
        self.b.graph.set_type(y, DType.FLOAT, self.b.x.shape)
        return y


def relu6(w: Words, x: Value, low: float = 0.0, high: float = 6.0) -> Value:
    return w.op("Clip", w.op("Add", x, 3.0), low, high)


HARD_SIGMOIDS: dict[str, Spelling] = {
    "div": lambda w, x: w.op("Div", relu6(w, x), 6.0),
    "mul": lambda w, x: w.op("Mul", 1 / 6, relu6(w, x)),
    "number first": lambda w, x: w.op("Mul", w.op("Clip", w.op("Add", 3.0, x), 0.0, 6.0), 1 / 6),
    "line, then cut": lambda w, x: w.op("Clip", w.op("Add", w.op("Mul", x, 1 / 6), 0.5), 0.0, 1.0),
    "quotient, then cut": lambda w, x: w.op("Clip", w.op("Div", w.op("Add", x, 3.0), 6.0), 0.0, 1.0),
    "relu and min": lambda w, x: w.op("Div", w.op("Min", w.op("Relu", w.op("Add", x, 3.0)), 6.0), 6.0),
    "min and max": lambda w, x: w.op("Div", w.op("Max", w.op("Min", w.op("Add", x, 3.0), 6.0), 0.0), 6.0),
    "difference": lambda w, x: w.op("Div", w.op("Clip", w.op("Sub", x, -3.0), 0.0, 6.0), 6.0),
}


def gated(gate: Spelling) -> Spelling:
    return lambda w, x: w.op("Mul", x, gate(w, x))


SWISHES: dict[str, Spelling] = {
    **{name: gated(gate) for name, gate in HARD_SIGMOIDS.items()},
    "gate first": lambda w, x: w.op("Mul", w.op("Div", relu6(w, x), 6.0), x),
    "sixth last": lambda w, x: w.op("Div", w.op("Mul", x, relu6(w, x)), 6.0),
    "sixth last, as a factor": lambda w, x: w.op("Mul", w.op("Mul", relu6(w, x), x), 1 / 6),
    "sixth of x": lambda w, x: w.op("Mul", w.op("Mul", x, 1 / 6), relu6(w, x)),
    "node": lambda w, x: w.op("Mul", x, w.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)),
}


def built(build, spelling: Spelling, opset: int = 18, taps: bool = False) -> Graph:
    b = build("N", 3, 40, opset=opset)
    y = spelling(Words(b), b.x)
    inner = b.graph.operand(b.graph.producer(y), 0) if taps else None
    inner = b.graph.operand(b.graph.producer(y), 1) if inner is b.x else inner
    return b.finish(y, *([] if inner is None else [inner]))


@pytest.mark.parametrize("name", SWISHES)
def test_hard_swish(name: str, build, ops, largest_error) -> None:
    graph = built(build, SWISHES[name])
    before = graph.copy()
    assert FuseHardSwish()(graph).rewrites == 1
    assert ops(graph) == ["HardSwish"]
    assert largest_error(before, graph) <= 1e-5


@pytest.mark.parametrize("name", HARD_SIGMOIDS)
def test_hard_sigmoid(name: str, build, ops, largest_error) -> None:
    graph = built(build, HARD_SIGMOIDS[name])
    before = graph.copy()
    assert FuseHardSwish()(graph).rewrites == 1
    assert ops(graph) == ["HardSigmoid"]
    assert largest_error(before, graph) <= 1e-5


def test_golden(build) -> None:
    graph = built(build, SWISHES["sixth last"])
    FuseHardSwish()(graph)
    EliminateDead()(graph)
    assert to_text(graph).splitlines() == [
        "graph small opset ai.onnx 18",
        "in   x: FLOAT[N, 3, 40]",
        "node Div: FLOAT[N, 3, 40] = HardSwish(x)",
        "out  Div: FLOAT[N, 3, 40]",
    ]


@pytest.mark.parametrize("name", SWISHES)
def test_before_opset_14_there_is_only_hard_sigmoid(name: str, build, ops, largest_error) -> None:
    graph = built(build, SWISHES[name], opset=13)
    before = graph.copy()
    assert simplify(13)(graph).by_pass.get("fuse_hard_swish", 0) == (0 if name == "node" else 1)
    assert sorted(ops(graph)) == ["HardSigmoid", "Mul"]
    assert largest_error(before, graph) <= 1e-5


def test_limits_as_attributes_of_opset_10(build, ops, largest_error) -> None:
    def spelling(w: Words, x: Value) -> Value:
        return w.op("Mul", x, w.op("Div", w.op("Clip", w.op("Add", x, 3.0), min=0.0, max=6.0), 6.0))

    graph = built(build, spelling, opset=10)
    before = graph.copy()
    FuseHardSwish()(graph)
    assert sorted(ops(graph)) == ["HardSigmoid", "Mul"]
    assert largest_error(before, graph) <= 1e-5


@pytest.mark.parametrize(
    "spelling",
    [
        lambda w, x: w.op("Mul", x, w.op("Div", relu6(w, x, high=5.0), 6.0)),
        lambda w, x: w.op("Mul", x, w.op("Div", relu6(w, x, low=-1.0), 6.0)),
        lambda w, x: w.op("Mul", w.op("Abs", x), w.op("Clip", w.op("Add", x, 3.0), 0.0, 6.0)),
        lambda w, x: w.op("Clip", x, 0.0, 1.0),
        lambda w, x: w.op("Clip", w.op("Div", w.op("Sub", x, 1e4), 3.0), 0.0, 1.0),
        lambda w, x: w.op("Div", 6.0, w.op("Clip", w.op("Add", x, 3.5), 1.0, 6.0)),
    ],
    ids=["another limit", "negative", "another x", "clip alone", "far from zero", "number over it"],
)
def test_retained(spelling: Spelling, build, ops) -> None:
    graph = built(build, spelling)
    before = ops(graph)
    assert FuseHardSwish()(graph).rewrites == 0
    assert ops(graph) == before


def test_another_slope_is_a_hard_sigmoid_of_its_own(build, ops, largest_error) -> None:
    graph = built(build, lambda w, x: w.op("Mul", x, w.op("Div", w.op("Clip", w.op("Add", x, 2.0), 0.0, 4.0), 4.0)))
    before = graph.copy()
    assert FuseHardSwish()(graph).rewrites == 1
    assert ops(graph) == ["HardSigmoid", "Mul"]
    assert graph.nodes()[0].attr("alpha") == pytest.approx(0.25)
    assert largest_error(before, graph) <= 1e-5


def test_a_step_that_is_read_elsewhere_is_refused(build) -> None:
    outcome = FuseHardSwish()(built(build, HARD_SIGMOIDS["div"], taps=True))
    assert outcome.rewrites == 0
    outcome = FuseHardSwish()(built(build, SWISHES["node"], taps=True))
    assert outcome.rewrites == 0
    assert "read elsewhere" in outcome.refused[0].why


def test_a_number_that_raises_the_rank_is_retained(build) -> None:
    b = build(40)
    numbers = [b.constant(np.full((1, 1), v, np.float32)) for v in (3, 6)]
    gate = b.graph.op("Add", b.x, numbers[0])
    gate = b.graph.op("Div", b.graph.op("Clip", gate, *(b.constant(np.float32(v)) for v in (0, 6))), numbers[1])
    graph = b.finish(b.graph.op("Mul", b.x, gate))
    shape = graph.outputs[0].shape
    FuseHardSwish()(graph)
    assert "HardSwish" not in [node.op for node in graph.nodes()]
    assert graph.outputs[0].shape == shape == (1, 40)


def test_half_precision_is_retained(build) -> None:
    graph = built(build, SWISHES["div"])
    for value in graph.values():
        if value.array is not None:
            graph.set_array(value, value.array.astype(np.float16))
        else:
            graph.set_type(value, DType.FLOAT16)
    assert FuseHardSwish().run(graph, None).rewrites == 0  # type: ignore[arg-type]
