"""What each criterion says of filters whose importance is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxslim.analysis.channels import find_groups
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Graph
from onnxslim.pruning.criteria import BatchnormScale, Chance, GeometricMedian, Taylor, scores
from onnxslim.pruning.tables import CRITERIA, criterion_of
from onnxslim.pruning.taylor import gradient_products
from onnxslim.runtime.session import Session

Make = Callable[..., Graph]


def scaled(graph: Graph, node: str, axis: int, factors: np.ndarray) -> None:
    """The weight of a node with its slices along an axis multiplied."""
    weight = graph.operand(graph.node_named(node), 1)
    assert weight.array is not None
    shape = [1] * weight.array.ndim
    shape[axis] = -1
    unit = np.ones_like(weight.array)
    graph.set_array(weight, (unit * factors.reshape(shape)).astype(np.float32))


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_norms_are_averaged_over_both_sides(network: Make, criterion: str) -> None:
    graph = network((4, 6), batchnorm=False)
    scaled(graph, "conv1", 0, np.array([1.0, 2, 3, 2]))
    scaled(graph, "conv2", 1, np.array([4.0, 1, 1, 2]))
    found = scores(graph, find_groups(graph).free, criterion_of(criterion))
    assert np.allclose(found["conv1"], (np.array([1, 2, 3, 2]) / 2 + np.array([4, 1, 1, 2]) / 2) / 2)
    assert found["conv2"].mean() == pytest.approx(1)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_a_filter_before_a_batch_norm_has_no_scale(network: Make, criterion: str) -> None:
    graph = network((4, 6))
    scaled(graph, "conv1", 0, np.array([1.0, 2, 3, 2]))
    scaled(graph, "conv2", 1, np.array([4.0, 1, 1, 2]))
    assert np.allclose(
        scores(graph, find_groups(graph).free, criterion_of(criterion))["conv1"], np.array([4, 1, 1, 2]) / 2
    )


def test_fpgm_finds_the_filter_in_the_middle(network: Make) -> None:
    graph = network((5, 6))
    scaled(graph, "conv1", 0, np.array([-9.0, -1, 0, 2, 8]))
    found = scores(graph, find_groups(graph).free, GeometricMedian())["conv1"]
    assert found.argmin() == 2
    distances = np.abs(np.subtract.outer([-9, -1, 0, 2, 8], [-9, -1, 0, 2, 8])).mean(axis=1)
    assert np.allclose(found, distances / distances.mean())


def test_batchnorm_scale(network: Make) -> None:
    graph = network((4, 6))
    norm = next(n for n in graph.nodes() if n.op == "BatchNormalization")
    graph.set_array(graph.operand(norm, 1), np.array([1, -3, 2, 2], np.float32))
    assert np.allclose(scores(graph, find_groups(graph).free, BatchnormScale())["conv1"], np.array([1, 3, 2, 2]) / 2)


def test_batchnorm_scale_needs_one_and_says_how_to_get_it(network: Make) -> None:
    graph = network((4, 6), batchnorm=False)
    with pytest.raises(UnsupportedError, match="'conv1' has no batch norm, it is folded .* restore_batchnorm"):
        scores(graph, find_groups(graph).free, BatchnormScale())


def test_random_is_drawn_by_the_seed(network: Make) -> None:
    graph = network()
    groups = find_groups(graph).free
    one, same, other = (scores(graph, groups, Chance(), seed=s)["conv2"] for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_every_criterion_has_a_score_for_every_unit(network: Make, rng: np.random.Generator) -> None:
    graph = network((8, 16, 12), depthwise=True)
    groups = find_groups(graph).free
    images = rng.standard_normal((4, 1, 8, 8)).astype(np.float32)
    products = gradient_products(graph, [({"image": images}, np.arange(4))], 4, 1)
    for criterion in CRITERIA:
        found = scores(graph, groups, criterion(), products=products)
        assert {name: s.shape for name, s in found.items()} == {g.name: (g.units,) for g in groups}
        assert all(np.isfinite(s).all() and (s >= 0).all() for s in found.values())


@pytest.mark.parametrize("batchnorm", [True, False])
def test_taylor_is_the_change_of_the_loss_to_first_order(
    network: Make, rng: np.random.Generator, batchnorm: bool
) -> None:
    """Scaling what reads a unit by 1 − ε changes the loss by −ε · Σ gradient · weight."""
    graph = network((4, 6), batchnorm=batchnorm)
    images, labels = rng.standard_normal((8, 1, 8, 8)).astype(np.float32), np.arange(8) % 6
    products = gradient_products(graph, [({"image": images}, labels)], 8, 1)
    found = scores(graph, find_groups(graph).free, Taylor(), products=products)["conv1"]

    def loss(factors: np.ndarray) -> float:
        twin = graph.copy()
        weight = twin.operand(twin.node_named("conv2"), 1)
        assert weight.array is not None
        twin.set_array(weight, (weight.array * factors.reshape(1, -1, 1, 1)).astype(np.float32))
        logits = next(iter(Session(twin).run({"image": images}).values())).astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(8), labels]).mean())

    changes = []
    for unit in range(4):
        up, down = (np.ones(4), np.ones(4))
        up[unit], down[unit] = 1.01, 0.99
        changes.append((loss(up) - loss(down)) / 0.02)
    expected = np.square(changes)
    assert np.allclose(found, expected / expected.mean(), rtol=2e-2, atol=1e-3)
