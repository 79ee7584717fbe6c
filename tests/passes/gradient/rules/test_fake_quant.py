from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.quant_math import qrange, weight_scale
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.session import Session
from passes.gradient import differentiate
from passes.quantize import ExpandFakeQuant


def surrogate(scale: np.ndarray, zero_point: np.ndarray, bounds: tuple[int, int], axis: int | None) -> Callable:
    """What the straight-through estimator differentiates: fake-quant without the rounding."""

    def run(x: np.ndarray, *_: np.ndarray) -> np.ndarray:
        shape = [1] * x.ndim
        if axis is not None:
            shape[axis] = -1
        s, z = (np.asarray(v, np.float64).reshape(shape) for v in (scale, zero_point))
        return ((np.clip(x / s + z, bounds[0] - 0.5, bounds[1] + 0.5) - z) * s).reshape(-1)

    return run


@settings(max_examples=25)
@given(
    bits=st.integers(2, 8),
    signed=st.booleans(),
    narrow=st.booleans(),
    axis=st.sampled_from([None, 0, 1, -1]),
    seed=st.integers(0, 99),
)
def test_straight_through(
    bits: int, signed: bool, narrow: bool, axis: int | None, seed: int, check: Callable, spaced: Callable
) -> None:
    rng = np.random.default_rng(seed)
    bounds = qrange(bits, signed, narrow)
    x = spaced((3, 4, 2), seed)  # −2 … 2, of which the grid covers about the middle half
    sizes = () if axis is None else (x.shape[axis],)
    scale = np.asarray(rng.uniform(0.8, 1.2, sizes) * 2 / (bounds[1] - bounds[0]), np.float32)
    zero_point = np.asarray(rng.integers(bounds[0], bounds[1] + 1, sizes), np.float32)
    if narrow:  # a weight's grid is symmetric
        zero_point = np.zeros_like(zero_point)
    attributes = {"bits": bits, "signed": int(signed), "narrow": int(narrow), "kind": "activation"}
    if axis is not None:
        attributes["axis"] = axis
    check(
        "FakeQuant",
        [x, scale, zero_point],
        forward=surrogate(scale, zero_point, bounds, axis),
        domain="onnxslim",
        **attributes,
    )


@pytest.mark.parametrize("op", ["Relu", "Clip"])
@pytest.mark.parametrize("zero_point", [0.0, 3.0])
def test_after_a_relu_and_with_a_range(zero_point: float, op: str) -> None:
    """A ReLU's or ReLU6's output needs no lower bound, and the observed range has no gradient."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (6,))
    others = [graph.add_constant(n, np.float32(a)) for n, a in (("s", 0.01), ("z", zero_point), ("range", [0, 2.55]))]
    limits = [graph.add_constant("limit", np.float32(a)) for a in (0, 6)] if op == "Clip" else []
    cut = graph.op(op, x, *limits)
    y = graph.op("FakeQuant", cut, *others, domain="onnxslim", bits=8, signed=0, kind="activation")
    loss = graph.op("ReduceSum", y, keepdims=0)
    infer_shapes(graph)
    gradient = differentiate(graph, loss, [x])["x"]
    assert len([n for n in graph.nodes() if n.op == "HardSigmoid"]) == 2  # its own, and the upper bound
    graph.add_output(gradient)
    ExpandFakeQuant()(graph)
    found = Session(graph, fuse_qdq=False).run({"x": np.float32([-1, 0.3, 2.51, 2.6, 9, 1])})[gradient.name]
    np.testing.assert_array_equal(found, [0, 1, 1, 0, 0, 1])


@pytest.mark.parametrize("axis", [None, 0])
def test_a_weight_is_never_clipped(axis: int | None, spaced: Callable) -> None:
    """Its scale comes from its largest value: the gradient passes whole."""
    w = spaced((3, 4), 1).astype(np.float32)
    graph = Graph()
    x = graph.add_input("w", DType.FLOAT, w.shape)
    scale = graph.add_constant("s", weight_scale(w, axis, 8))
    zero_point = graph.add_constant("z", np.zeros_like(scale.array))
    attributes = {"bits": 8, "signed": 1, "narrow": 1, "kind": "weight"} | ({} if axis is None else {"axis": axis})
    y = graph.op("FakeQuant", x, scale, zero_point, domain="onnxslim", **attributes)
    loss = graph.op("ReduceSum", graph.op("Mul", y, graph.add_constant("c", w)), keepdims=0)
    infer_shapes(graph)
    graph.add_output(differentiate(graph, loss, [x])["w"])
    ExpandFakeQuant()(graph)
    found = Session(graph, fuse_qdq=False).run({"w": w})
    np.testing.assert_array_equal(found[graph.outputs[0].name], w)
