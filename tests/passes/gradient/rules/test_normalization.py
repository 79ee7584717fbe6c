from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.errors import GradientError
from onnxslim.ir.graph import DType, Graph, Role, Value
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.session import Session
from passes.gradient import differentiate
from passes.gradient.rules import normalization
from passes.gradient.train_batchnorm import TrainBatchnorm

SHAPES = pytest.mark.parametrize("shape", [(4, 3, 2, 3), (5, 3, 4), (6, 2), (2, 2, 2, 3, 2), (2, 1, 3, 3)], ids=str)
SUBSETS = pytest.mark.parametrize("wrt", [[0], [1], [2], [0, 1, 2], [1, 2]], ids=str)


def batch_norm(epsilon: float, training: bool) -> Callable:
    def run(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        axes = tuple(a for a in range(x.ndim) if a != 1)
        if training:
            mean, var = x.mean(axes), x.var(axes)
        shape = [1, -1] + [1] * (x.ndim - 2)
        g, b, m, v = (a.reshape(shape) for a in (gamma, beta, mean, var))
        return ((x - m) / np.sqrt(v + epsilon) * g + b).reshape(-1)

    return run


def test_every_rule_has_a_case() -> None:
    assert sorted(normalization.RULES) == ["BatchNormalization"]


@SHAPES
@SUBSETS
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_evaluation_mode(
    shape: tuple[int, ...], wrt: list[int], epsilon: float, check: Callable, spaced: Callable
) -> None:
    c = (shape[1],)
    arrays = [spaced(c, 2), spaced(c, 3), spaced(c, 4), spaced(c, 5, 0.3, 2)]
    check(
        "BatchNormalization", [spaced(shape, 1), *arrays], wrt, forward=batch_norm(epsilon, False), epsilon=epsilon
    )  # fmt: skip


@SHAPES
@SUBSETS
@pytest.mark.parametrize("offset", [0, 3])
def test_training_mode(shape: tuple[int, ...], wrt: list[int], offset: int, check: Callable, spaced: Callable) -> None:
    """With inputs far from zero too, where sums of x and of x − mean differ most."""
    c = (shape[1],)
    arrays = [spaced(c, 2), spaced(c, 3), np.zeros(c, np.float32), np.ones(c, np.float32)]
    kept = batch_norm(1e-5, True)

    def forward(x: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        axes = tuple(a for a in range(x.ndim) if a != 1)
        return np.concatenate([kept(x, *rest), x.mean(axes), x.var(axes)])

    check(
        "BatchNormalization", [spaced(shape, 1) + np.float32(offset), *arrays], wrt, forward=forward,
        outputs=3, unused=(1, 2), training_mode=1, momentum=0.0,
    )  # fmt: skip


@pytest.mark.skipif(not capabilities().lanes, reason="no blocked kernels")
@pytest.mark.parametrize("batch", [1, 2])
def test_training_mode_with_blocked_kernels(batch: int, check: Callable, spaced: Callable) -> None:
    """Rows long enough for them."""
    c, lanes = (3,), capabilities().lanes
    arrays = [spaced(c, 2), spaced(c, 3), np.zeros(c, np.float32), np.ones(c, np.float32)]
    x = spaced((batch, *c, 16, lanes), 1)
    check(
        "BatchNormalization", [x, *arrays], [0, 1, 2], forward=batch_norm(1e-5, True), spare=2,
        lanes=lanes, training_mode=1, momentum=0.0,
    )  # fmt: skip


@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=5).map(tuple),
    training=st.booleans(),
    epsilon=st.sampled_from([1e-2, 0.125, 1.0]),
    wrt=st.sets(st.integers(0, 2), min_size=1).map(sorted),
    seed=st.integers(0, 99),
)
def test_any_shape(
    shape: tuple[int, ...], training: bool, epsilon: float, wrt: list[int], seed: int, check: Callable, spaced: Callable
) -> None:
    """One element a channel, too: then training's dx is 0."""
    c = (shape[1],)
    arrays = [spaced(c, seed + 1), spaced(c, seed + 2), spaced(c, seed + 3), spaced(c, seed + 4, 0.5, 2.0)]
    kept, more = batch_norm(epsilon, training), {"outputs": 3, "unused": (1, 2), "training_mode": 1, "momentum": 0.0}

    def forward(x: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        axes = tuple(a for a in range(x.ndim) if a != 1)
        return np.concatenate([kept(x, *rest), x.mean(axes), x.var(axes)]) if training else kept(x, *rest)

    check(
        "BatchNormalization", [spaced(shape, seed), *arrays], wrt, forward=forward, epsilon=epsilon,
        **(more if training else {}),
    )  # fmt: skip


def test_constants_of_the_gradient_are_not_overwritten() -> None:
    """ONNX Runtime merges equal constants of up to 8 elements, and training overwrites the running statistics
    in place: with fresh statistics of 0 and 1 (the gradient's constants, too) dx was wrong by a tenth."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (4, 8, 6, 6))
    fresh = {"gamma": 1, "beta": 0, "mean": 0, "var": 1}
    arrays = [graph.add_constant(n, np.full(8, v, np.float32)) for n, v in fresh.items()]
    y = graph.op("BatchNormalization", x, *arrays, name="norm")
    rng = np.random.default_rng(0)
    dy = rng.normal(size=(4, 8, 6, 6)).astype(np.float32)
    product = graph.op("Mul", y, graph.add_constant("dy", dy), name="product")
    loss = graph.op("ReduceSum", product, name="loss", keepdims=0)
    TrainBatchnorm()(graph)
    for value in (graph.value("gamma"), graph.value("beta")):
        graph.set_array(value, None)
        graph.feed(value)
    infer_shapes(graph)
    graph.add_output(differentiate(graph, loss, [x, graph.value("gamma")])["x"])
    feeds = {"x": rng.normal(size=(4, 8, 6, 6)), "gamma": np.ones(8), "beta": np.zeros(8)}
    session = Session(graph)
    found = [session.run({n: a.astype(np.float32) for n, a in feeds.items()}) for _ in range(2)][1]
    dx = found[graph.outputs[0].name]
    mean, var = feeds["x"].mean((0, 2, 3), keepdims=True), feeds["x"].var((0, 2, 3), keepdims=True)
    hat = (feeds["x"] - mean) / np.sqrt(var + 1e-5)
    axes = (0, 2, 3)
    expected = (dy - dy.mean(axes, keepdims=True) - hat * (dy * hat).mean(axes, keepdims=True)) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(dx, expected, rtol=0, atol=1e-4)


def small() -> Graph:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (4, 2, 3, 3))
    arrays = [graph.add_constant(n, np.ones(2, np.float32)) for n in ("gamma", "beta", "mean", "var")]
    y = graph.op("BatchNormalization", x, *arrays, name="norm")
    graph.add_output(graph.op("ReduceSum", y, name="loss", keepdims=0))
    infer_shapes(graph)
    return graph


def statistics(graph: Graph) -> dict[str, Value]:
    """Of the batch, by the running statistic that they are of."""
    return {v.owner: v for v in graph.values() if v.role is Role.STATISTIC and v.array is None}


def test_train_batchnorm_gives_the_batch_statistics() -> None:
    graph = small()
    assert TrainBatchnorm()(graph).rewrites == 1
    assert TrainBatchnorm()(graph).rewrites == 0
    for value in statistics(graph).values():
        graph.add_output(value)
    x = np.random.default_rng(0).normal(2, 3, (4, 2, 3, 3)).astype(np.float32)
    _, mean, var = Session(graph).run({"x": x}).values()
    np.testing.assert_allclose(mean, x.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(var, x.var((0, 2, 3)), rtol=1e-5)


def test_a_loss_of_the_batch_statistics_is_refused() -> None:
    graph = small()
    TrainBatchnorm()(graph)
    infer_shapes(graph)
    both = graph.op("Add", graph.value("loss"), graph.op("ReduceSum", statistics(graph)["mean"], keepdims=0))
    infer_shapes(graph)
    graph.set_type(both, DType.FLOAT, ())
    with pytest.raises(GradientError, match=r"'norm' \(BatchNormalization\).*statistics"):
        differentiate(graph, both, [graph.value("x")])
