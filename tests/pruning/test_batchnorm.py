"""Statistics measured anew are those of what each batch norm reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from onnxslim.errors import DataError
from onnxslim.ir.graph import Graph
from onnxslim.pruning.batchnorm import ReestimateBatchnorm
from onnxslim.runtime.session import Session


def reestimate(graph: Graph, batches: Sequence[Mapping[str, np.ndarray]]) -> int:
    """In place; how many batch norms there are."""
    return ReestimateBatchnorm(lambda: batches)(graph).rewrites


def test_they_are_consistent_along_the_network(network: Callable[..., Graph], rng: np.random.Generator) -> None:
    """After one measurement on one batch, every batch norm's output has the mean β and the deviation γ."""
    graph = network((4, 6), batchnorm=True)
    images = (3 + 2 * rng.standard_normal((64, 1, 8, 8))).astype(np.float32)
    assert reestimate(graph, [{"image": images}]) == 2
    norms = [n for n in graph.nodes() if n.op == "BatchNormalization"]
    seen = graph.copy()
    for node in norms:
        seen.add_output(seen.result(seen.node_named(node.name)))
    found = Session(seen, fuse_qdq=False).run({"image": images})
    for node in norms:
        y = found[graph.result(node).name]
        gamma, beta = graph.operand(node, 1).array, graph.operand(node, 2).array
        assert gamma is not None
        assert np.allclose(y.mean(axis=(0, 2, 3)), beta, atol=1e-4)
        assert np.allclose(y.std(axis=(0, 2, 3)), np.abs(gamma), rtol=1e-2, atol=1e-4)


def test_batches_count_by_their_size(network: Callable[..., Graph], rng: np.random.Generator) -> None:
    images = rng.standard_normal((48, 1, 8, 8)).astype(np.float32)
    whole, parts = network((4,)), network((4,))
    reestimate(whole, [{"image": images}])
    reestimate(parts, [{"image": images[:40]}, {"image": images[40:]}])
    for a, b in zip(whole.initializers(), parts.initializers()):
        assert np.allclose(a.array, b.array, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


def test_without_batch_norm_or_without_data(network: Callable[..., Graph]) -> None:
    assert reestimate(network((4,), batchnorm=False), []) == 0
    with pytest.raises(DataError, match="at least one batch"):
        reestimate(network((4,)), [])


def test_statistics_that_are_stored_once_are_measured_apart(
    network: Callable[..., Graph], rng: np.random.Generator
) -> None:
    images = (3 + 2 * rng.standard_normal((64, 1, 8, 8))).astype(np.float32)
    apart, shared = network((4, 4), batchnorm=True), network((4, 4), batchnorm=True)
    first, second = (n for n in shared.nodes() if n.op == "BatchNormalization")
    for slot in (3, 4):
        shared.set_input(second, slot, shared.operand(first, slot))
    for graph in (apart, shared):
        assert reestimate(graph, [{"image": images}]) == 2
    outputs = [Session(graph).run({"image": images}) for graph in (apart, shared)]
    for a, b in zip(*(found.values() for found in outputs)):
        assert np.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_batch_norms_in_training_already_are_left(network: Callable[..., Graph], rng: np.random.Generator) -> None:
    images = rng.standard_normal((16, 1, 8, 8)).astype(np.float32)
    graph = network((4, 6), batchnorm=True)
    first = next(n for n in graph.nodes() if n.op == "BatchNormalization")
    graph.set_attribute(first, "training_mode", 1)
    for slot, name in ((1, "mean"), (2, "var")):
        graph.set_output(first, slot, graph.add_value(name, graph.operand(first, 3).dtype, (4,)))
    before = np.array(graph.operand(first, 3).array)
    assert reestimate(graph, [{"image": images}]) == 1
    assert np.array_equal(before, np.asarray(graph.operand(first, 3).array))
