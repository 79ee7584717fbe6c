from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import BroadcastableShapes, array_shapes, mutually_broadcastable_shapes

from onnxslim.errors import GradientError
from onnxslim.ir.graph import DType, Graph
from passes.gradient import differentiate
from passes.gradient.rules import elementwise

UNARY: dict[str, tuple[float, float]] = {
    "Abs": (-2, 2),
    "Acos": (-0.9, 0.9),
    "Acosh": (1.2, 3),
    "Asin": (-0.9, 0.9),
    "Asinh": (-2, 2),
    "Atan": (-2, 2),
    "Atanh": (-0.9, 0.9),
    "Ceil": (-2.2, 2.2),
    "Cos": (-2, 2),
    "Cosh": (-2, 2),
    "Erf": (-2, 2),
    "Exp": (-2, 2),
    "Floor": (-2.2, 2.2),
    "HardSwish": (-4, 4),
    "Identity": (-2, 2),
    "Log": (0.3, 3),
    "Neg": (-2, 2),
    "Reciprocal": (0.5, 3),
    "Relu": (-2, 2),
    "Round": (-2.2, 2.2),
    "Sigmoid": (-4, 4),
    "Sign": (-2, 2),
    "Sin": (-2, 2),
    "Sinh": (-2, 2),
    "Softplus": (-3, 3),
    "Sqrt": (0.3, 3),
    "Tan": (-1, 1),
    "Tanh": (-2, 2),
}
"""Ops of one input without attributes, and where they are smooth enough for differences."""

SLOPED = ("Elu", "HardSigmoid", "LeakyRelu")
BINARY = ("Add", "Div", "Mul", "PRelu", "Pow", "Sub")
VARIADIC = ("Max", "Mean", "Min", "Sum")
OTHERS = ("Cast", "Clip", "Where")

SHAPES = array_shapes(min_dims=0, max_dims=4, max_side=4)
SEEDS = st.integers(0, 99)
FEW = settings(max_examples=6)


def test_every_rule_has_a_case() -> None:
    assert sorted([*UNARY, *SLOPED, *BINARY, *VARIADIC, *OTHERS]) == sorted(elementwise.RULES)


@pytest.mark.parametrize("op", sorted(UNARY))
@FEW
@given(shape=SHAPES, seed=SEEDS)
def test_unary(op: str, shape: tuple[int, ...], seed: int, check: Callable, spaced: Callable) -> None:
    closed = {"Erf": np.vectorize(math.erf, otypes=[float])}  # onnx's reference rounds to float32
    forward = (lambda x: closed[op](x).reshape(-1)) if op in closed else None
    check(op, [spaced(shape, seed, *UNARY[op])], forward=forward)


@pytest.mark.parametrize("op", SLOPED)
@FEW
@given(shape=SHAPES, seed=SEEDS, alpha=st.sampled_from([None, 0.125, 0.5]))
def test_sloped(
    op: str, shape: tuple[int, ...], seed: int, alpha: float | None, check: Callable, spaced: Callable
) -> None:
    attributes = {} if alpha is None else {"alpha": alpha}
    check(op, [spaced(shape, seed, -4, 4)], **attributes)


@pytest.mark.parametrize("op", BINARY)
@FEW
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4), seed=SEEDS)
def test_binary(op: str, shapes: BroadcastableShapes, seed: int, check: Callable, spaced: Callable) -> None:
    a, b = shapes.input_shapes
    if op == "PRelu":  # its slope broadcasts one way only
        a = shapes.result_shape
    low, high = (0.5, 2) if op in ("Div", "Pow") else (-2, 2)
    check(op, [spaced(a, seed, low, high), spaced(b, seed + 1, low, high)], [0, 1])


@pytest.mark.parametrize("power", [np.float32(2), np.float32(3), np.int64(2), np.float32([[1], [2]])])
def test_power_by_a_constant(power: np.ndarray, check: Callable, spaced: Callable) -> None:
    check("Pow", [spaced((3, 2, 2), 4), np.asarray(power)])


def test_an_exponent_of_two_gets_its_gradient(check: Callable, spaced: Callable) -> None:
    check("Pow", [spaced((3, 2), 4, 0.5, 2), np.asarray(np.float32(2))], [0, 1])


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("op", ["Add", "Mul", "Div", "Sub"])
def test_one_side_only(op: str, slot: int, check: Callable, spaced: Callable) -> None:
    check(op, [spaced((2, 3), 1, 0.5, 2), spaced((3,), 2, 0.5, 2)], [slot])


@pytest.mark.parametrize("op", VARIADIC)
@FEW
@given(data=st.data(), seed=SEEDS, count=st.integers(1, 3))
def test_variadic(op: str, data: st.DataObject, seed: int, count: int, check: Callable, spaced: Callable) -> None:
    shapes = data.draw(mutually_broadcastable_shapes(num_shapes=count, max_dims=3, max_side=4)).input_shapes
    sizes = [int(np.prod(s)) for s in shapes]
    pool = spaced((sum(sizes),), seed)  # distinct over all inputs: no ties
    parts = np.split(pool, np.cumsum(sizes)[:-1])
    folds = {"Max": np.maximum, "Mean": np.add, "Min": np.minimum, "Sum": np.add}

    def forward(*inputs: np.ndarray) -> np.ndarray:  # onnx's reference cannot broadcast a Mean
        return np.ravel(functools.reduce(folds[op], inputs) / (count if op == "Mean" else 1))

    check(op, [p.reshape(s) for p, s in zip(parts, shapes)], list(range(count)), forward=forward)


@FEW
@given(shape=SHAPES, seed=SEEDS, low=st.booleans(), high=st.booleans())
def test_clip(shape: tuple[int, ...], seed: int, low: bool, high: bool, check: Callable, spaced: Callable) -> None:
    bounds = [np.float32(-1) if low else None, np.float32(0.9) if high else None]
    check("Clip", [spaced(shape, seed), *[None if b is None else np.asarray(b) for b in bounds]])


@pytest.mark.parametrize(("low", "high"), [(0, 6), (-0.3, 0.6), (0.1, 0.7)])
def test_clip_gives_nothing_to_what_sits_on_a_bound(low: float, high: float, check: Callable) -> None:
    """Whether the middle between the bounds is exact or not."""
    bounds = [np.asarray(np.float32(b)) for b in (low, high)]
    x = np.array([*bounds, 0.5], np.float32)
    check("Clip", [x, *bounds], forward=lambda x, low, high: np.array([low, high, x[2]]))


@FEW
@given(shapes=mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=4), seed=SEEDS)
def test_where(shapes: BroadcastableShapes, seed: int, check: Callable, spaced: Callable) -> None:
    condition, a, b = shapes.input_shapes
    chosen = np.random.default_rng(seed).integers(0, 2, condition).astype(bool)
    check("Where", [np.asarray(chosen), spaced(a, seed), spaced(b, seed + 1)], [1, 2])


def test_cast_between_floats(check: Callable, spaced: Callable) -> None:
    check("Cast", [spaced((2, 3), 1)], forward=np.ravel, to=int(DType.FLOAT))


def test_cast_to_integers_stops_the_gradient() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (3,))
    integers = graph.op("Cast", x, to=int(DType.INT64))
    graph.set_type(integers, DType.INT64, (3,))
    loss = graph.op("ReduceSum", graph.op("Cast", integers, to=int(DType.FLOAT)), keepdims=0)
    graph.set_type(loss, DType.FLOAT, ())
    array = differentiate(graph, loss, [x])["x"].array
    assert array is not None
    np.testing.assert_array_equal(array, np.zeros(3))


def test_bounds_of_clip_are_refused() -> None:
    graph = Graph()
    x, low = graph.add_input("x", DType.FLOAT, (3,)), graph.add_input("low", DType.FLOAT, ())
    y = graph.op("Clip", x, low, name="limit")
    graph.set_type(y, DType.FLOAT, (3,))
    loss = graph.op("ReduceSum", y, keepdims=0)
    graph.set_type(loss, DType.FLOAT, ())
    with pytest.raises(GradientError, match=r"'limit' \(Clip\)"):
        differentiate(graph, loss, [low])
