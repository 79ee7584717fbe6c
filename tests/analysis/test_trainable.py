"""What is trained, and why the rest is not: one survey, which `inspect` shows and `train` follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxslim.analysis import trainable
from onnxslim.analysis.inspection import inspect_model
from onnxslim.analysis.trainable import find_trainable
from onnxslim.errors import TrainingError
from onnxslim.ir.graph import DType, Graph, Value
from onnxslim.ir.onnx_io import read
from onnxslim.ir.shapes import infer_shapes
from onnxslim.stages.base import prepared
from onnxslim.training.parameters import mark_parameters
from passes.gradient import differentiable_ops, refusal

Build = Callable[["Net", Value], Value]
RNG = np.random.default_rng(0)


class Net:
    """Words for a graph under way; constants are named by their caller."""

    def __init__(self) -> None:
        self.graph = Graph("net")
        self.graph.opsets["com.microsoft"] = 1

    def c(self, name: str, array: Any) -> Value:
        return self.graph.add_constant(name, np.asarray(array, np.float32))

    def w(self, name: str, *shape: int) -> Value:
        return self.c(name, np.random.default_rng(len(name)).normal(size=shape) * 0.3)

    def ints(self, *numbers: int) -> Value:
        return self.graph.add_constant("ints", np.array(numbers, np.int64))

    def op(self, op: str, *inputs: Value | None, **attributes: Any) -> Value:
        return self.graph.op(op, *inputs, name=op.lower(), **attributes)


def net(build: Build, shape: tuple[Any, ...] = ("n", 4, 6)) -> Graph:
    """x → first layer (MatMul) → what `build` makes."""
    words = Net()
    x = words.graph.add_input("x", DType.FLOAT, shape)
    words.graph.add_output(build(words, words.op("MatMul", x, words.w("first", shape[-1], 6))))
    infer_shapes(words.graph)
    return words.graph


def survey(graph: Graph) -> tuple[dict[str, bool], dict[str, str]]:
    """By name: of what is trained, whether it decays; of what is not, why."""
    found = find_trainable(graph, refusal)
    return {p.value.name: p.decays for p in found.parameters}, {v.name: why for v, why in found.left}


TRAINED: dict[str, tuple[Build, dict[str, bool]]] = {
    "bias of MatMul and Add": (lambda n, x: n.op("Add", x, n.w("b", 6)), {"b": False}),
    "one bias of one output": (
        lambda n, x: n.op("Add", n.op("MatMul", x, n.w("v", 6, 1)), n.w("b", 1)),
        {"v": True, "b": False},
    ),
    "LayerScale": (lambda n, x: n.op("Mul", x, n.w("g", 6)), {"g": False}),
    "LayerScale, reshaped": (
        lambda n, x: n.op("Mul", x, n.op("Unsqueeze", n.w("g", 6), n.ints(0, 1))),
        {"g": False},
    ),
    "a norm written out": (
        lambda n, x: n.op("Add", n.op("Mul", n.op("Sub", x, n.op("ReduceMean", x)), n.c("g", np.ones(6))), n.w("b", 6)),
        {"g": False, "b": False},
    ),
    "positions": (lambda n, x: n.op("Add", x, n.w("p", 1, 4, 6)), {"p": False}),
    "positions, gathered": (
        lambda n, x: n.op("Add", x, n.op("Gather", n.w("p", 9, 6), n.ints(0, 1, 2, 3))),
        {"p": False},
    ),
    "embedding": (
        lambda n, x: n.op("Gather", n.w("e", 9, 6), n.op("Cast", n.op("ReduceSum", x), to=int(DType.INT64))),
        {"e": True},
    ),
    "class token": (lambda n, x: n.op("Concat", n.w("t", 1, 1, 6), x, axis=1), {"t": False}),
    "slopes": (lambda n, x: n.op("PRelu", x, n.w("s", 6)), {"s": False}),
    "the other branch of Where": (
        lambda n, x: n.op("Where", n.op("Greater", x, n.c("zero", 0)), x, n.w("m", 1, 1, 6)),
        {"m": False},
    ),
    "Einsum": (lambda n, x: n.op("Einsum", x, n.w("e", 6, 2), equation="abc,cd->abd"), {"e": True}),
    "transposed weight": (
        lambda n, x: n.op("MatMul", x, n.op("Transpose", n.w("w", 2, 6), perm=[1, 0])),
        {"w": True},
    ),
    "GRU": (
        lambda n, x: n.op("GRU", x, n.w("W", 1, 6, 6), n.w("R", 1, 6, 2), n.w("B", 1, 12), hidden_size=2),
        {"W": True, "R": True, "B": False},
    ),
    "FusedMatMul": (lambda n, x: n.op("FusedMatMul", x, n.w("k", 6, 3), domain="com.microsoft"), {"k": True}),
    "BiasGelu": (lambda n, x: n.op("BiasGelu", x, n.w("b", 6), domain="com.microsoft"), {"b": False}),
}


@pytest.mark.parametrize("what", sorted(TRAINED))
def test_is_trained(what: str) -> None:
    build, expected = TRAINED[what]
    trained, left = survey(net(build))
    if what == "embedding":  # nothing before it has a gradient
        assert "first" in left
    else:
        assert trained.pop("first") is True
    assert trained == expected
    assert {name: why for name, why in left.items() if name not in ("first", "zero")} == {}


ANGLES = np.arange(4)[:, None] * np.array([1, 0.5, 0.2, 0.1, 0.03, 0.01])
COSINE, SINE = np.cos(ANGLES), np.sin(ANGLES)
LEFT: dict[str, tuple[Build, dict[str, str]]] = {
    "a coefficient": (lambda n, x: n.op("Mul", x, n.c("c", 0.125)), {"c": "one number"}),
    "a coefficient of rank 3": (lambda n, x: n.op("Add", n.op("Relu", x), n.c("c", [[[1e-5]]])), {"c": "one number"}),
    "a divisor": (lambda n, x: n.op("Div", x, n.w("d", 6)), {"d": "a divisor"}),
    "an exponent": (lambda n, x: n.op("Pow", x, n.c("e", [2, 3, 2, 3, 2, 3])), {"e": "an exponent"}),
    "bounds": (lambda n, x: n.op("Clip", x, n.c("lo", -1.5), n.c("hi", 2)), {"lo": "a bound", "hi": "a bound"}),
    "a bound by Max": (lambda n, x: n.op("Max", x, n.w("m", 6)), {"m": "a bound"}),
    "a causal mask": (
        lambda n, x: n.op("Add", x, n.c("m", np.triu(np.full((4, 6), -1e9), 1))),
        {"m": "a mask"},
    ),
    "a mask of infinities": (
        lambda n, x: n.op("Add", x, n.c("m", np.where(np.eye(4, 6) > 0, 0, -np.inf))),
        {"m": "a mask"},
    ),
    "a mask that multiplies": (lambda n, x: n.op("Mul", x, n.c("m", np.eye(4, 6))), {"m": "zeros and ones"}),
    "a detector's grid": (lambda n, x: n.op("Add", x, n.c("g", np.arange(24).reshape(4, 6) - 0.5)), {"g": "whole"}),
    "rotations": (
        lambda n, x: n.op(
            "Add", n.op("Mul", x, n.c("cos", np.cos(ANGLES))), n.op("Mul", x, n.c("sin", np.sin(ANGLES)))
        ),
        {"cos": "a rotation", "sin": "a rotation"},
    ),
    "frequencies": (
        lambda n, x: n.op("Mul", n.op("Sin", y := n.op("Mul", x, n.w("f", 6))), n.op("Cos", y)),
        {"f": "frequencies"},
    ),
    "an initial state": (
        lambda n, x: n.op("RNN", x, n.w("W", 1, 2, 6), n.w("R", 1, 2, 2), None, None, n.w("h", 1, 4, 2), hidden_size=2),
        {"h": "an initial state"},
    ),
    "padding": (lambda n, x: n.op("Pad", x, n.ints(0, 0, 1, 0, 0, 1), n.c("v", 0.5)), {"v": "padded with"}),
}


@pytest.mark.parametrize("what", sorted(LEFT))
def test_is_left_with_its_reason(what: str) -> None:
    build, expected = LEFT[what]
    trained, left = survey(net(build))
    assert "first" in trained
    assert sorted(left) == sorted(expected)
    for name, why in expected.items():
        assert why in left[name]


@pytest.mark.parametrize(
    "steps",
    [
        [("Sub", (3, 1, 1)), ("Div", (3, 1, 1))],
        [("Mul", (1, 3, 1, 1)), ("Add", (1, 3, 1, 1))],
        [("Sub", (3, 8, 8)), ("Mul", ())],
        [("Add", (3, 1, 1)), ("Relu", None)],
    ],
)
def test_normalisation_of_an_input_is_no_weight(steps: list[tuple[str, tuple[int, ...] | None]]) -> None:
    """Mean and deviation of a channel, or of a pixel; behind the first convolution the same ops are trained."""
    words = Net()
    x: Value = words.graph.add_input("x", DType.FLOAT, ("n", 3, 8, 8))
    for behind in ("before", "after"):
        for op, shape in steps:
            constants = [] if shape is None else [words.w(f"{behind}_{op}", *shape)]
            x = words.op(op, x, *constants)
        if behind == "before":
            x = words.op("Conv", x, words.w("kernel", 3, 3, 1, 1))
    words.graph.add_output(x)
    infer_shapes(words.graph)
    trained, left = survey(words.graph)
    learnt = [f"after_{op}" for op, shape in steps if shape and op != "Div"]
    assert sorted(trained) == sorted(["kernel", *learnt])
    assert all(name in left for name in (f"before_{op}" for op, shape in steps if shape is not None))


def test_a_position_table_on_the_input_itself_is_trained() -> None:
    words = Net()
    x = words.graph.add_input("x", DType.FLOAT, ("n", 4, 6))
    x = words.op("Add", x, words.w("pos", 1, 4, 6))
    words.graph.add_output(words.op("Mul", x, words.w("behind", 6)))
    infer_shapes(words.graph)
    assert survey(words.graph) == ({"pos": False, "behind": False}, {})


def test_a_way_without_a_gradient_is_named() -> None:
    """Of two ways, one without a gradient is enough: half a gradient would be a wrong one."""

    def build(n: Net, x: Value) -> Value:
        y = n.op("Add", x, n.op("Odd", x, domain="com.example"))
        n.graph.opsets["com.example"] = 1
        n.graph.set_type(n.graph.value("odd"), DType.FLOAT, ("n", 4, 6))
        return n.op("MatMul", y, n.w("last", 6, 2))

    found = find_trainable(net(build), refusal)
    assert [p.value.name for p in found.parameters] == ["last"]
    assert [(v.name, why) for v, why in found.left] == [
        ("first", "node 'odd' (com.example.Odd) is on its way to the output: no gradient rule for com.example.Odd")
    ]
    assert [(node.op, why) for node, why in found.blocked] == [("Odd", "no gradient rule for com.example.Odd")]


@pytest.mark.parametrize(("op", "why"), [("Round", "constant between its steps"), ("Sign", "its gradient is 0")])
def test_what_is_flat_teaches_nothing(op: str, why: str) -> None:
    trained, left = survey(net(lambda n, x: n.op("MatMul", n.op(op, x), n.w("last", 6, 2))))
    assert list(trained) == ["last"]
    assert why in left["first"]


def test_what_is_learnt_as_a_bound_is_named() -> None:
    """A computed maximum has a gradient, a computed bound of Clip has none."""

    def bounded(op: str) -> Build:
        def build(n: Net, x: Value) -> Value:
            bound = n.op("ReduceMax", n.op("MatMul", x, n.w("limit", 6, 1)), keepdims=0)
            return n.op("MatMul", n.op(op, x, bound), n.w("last", 6, 2))

        return build

    trained, left = survey(net(bounded("Max")))
    assert (sorted(trained), left) == (["first", "last", "limit"], {})
    trained, left = survey(net(bounded("Clip")))
    assert sorted(trained) == ["last"]
    assert left["limit"] == "node 'clip' (Clip) reads it as a bound, which has no gradient rule"


def test_only_the_first_output_is_trained_towards() -> None:
    graph = net(lambda n, x: n.op("MatMul", x, n.w("last", 6, 2)))
    other = graph.op(
        "MatMul", graph.value("matmul"), graph.add_constant("aside", np.ones((6, 3), np.float32)), name="o"
    )
    graph.add_output(other)
    infer_shapes(graph)
    trained, left = survey(graph)
    assert sorted(trained) == ["first", "last"]
    assert left == {"aside": "the first output, 'matmul_2', does not depend on it"}


def test_statistics_are_no_weights_even_where_they_are_shared() -> None:
    def build(n: Net, x: Value) -> Value:
        shared, var = n.w("shared", 4), n.c("var", np.ones(4))
        return n.op("BatchNormalization", x, n.c("scale", np.ones(4)), shared, shared, var)

    trained, left = survey(net(build))
    assert sorted(trained) == ["first", "scale"]
    assert sorted(left) == ["shared", "var"]


def test_nothing_to_train_says_why() -> None:
    words = Net()
    x = words.graph.add_input("x", DType.FLOAT, ("n", 3))
    words.graph.add_output(words.op("Div", words.op("Sub", x, words.w("mean", 3)), words.w("std", 3)))
    infer_shapes(words.graph)
    with pytest.raises(TrainingError, match=r"'mean': the normalisation of an input.*'std': a divisor"):
        mark_parameters(words.graph)


def test_every_op_of_the_tables_has_a_gradient() -> None:
    known = {*differentiable_ops(), ("", "Dropout"), ("", "Upsample")}
    assert set(trainable.GATHERED) <= known
    assert {("", op) for op in trainable.FLAT} <= known
    undefined = {key for key in trainable.FIXED if not key[0] and not onnx.defs.has(key[1])}
    assert not undefined


def test_inspect_says_what_train_moves(model_path: Path) -> None:
    """The same names and numbers, on every model there is."""
    graph = read(model_path)
    found = inspect_model(graph, differentiable=refusal, prepare=prepared).trainable
    assert found is not None
    student = prepared(graph)
    trained = mark_parameters(student)
    assert found.params == sum(int(np.prod(v.static_shape)) for v in trained)
    assert found.params + sum(one.size for one in found.left) == found.total
    assert not {v.name for v in trained} & {one.name for one in found.left}
    assert found.params >= 0.99 * found.total
