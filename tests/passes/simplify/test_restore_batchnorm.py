"""RestoreBatchnorm: the same function in evaluation mode, normalised in training mode, and undone by folding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxslim.calibration import ChannelMoments, Moments, gather
from onnxslim.ir.graph import Array, Graph, Role
from onnxslim.ir.onnx_io import read, to_proto
from onnxslim.ir.quant_math import quantize
from onnxslim.ir.rewrite import Context, Outcome
from onnxslim.ir.statistics import Statistics
from onnxslim.runtime.checker import random_feeds
from onnxslim.runtime.session import Session
from onnxslim.targets import load_target
from passes.quantize import ExpandFakeQuant, InsertFakeQuant
from passes.simplify import FoldBatchnorm, RestoreBatchnorm, canonicalize
from tests.passes.simplify.conftest import Builder, largest_error


def expanded(graph: Graph) -> Graph:
    twin = graph.copy()
    ExpandFakeQuant()(twin)
    return twin


def restored(graph: Graph, feeds: dict[str, Array], **options: float) -> Outcome:
    """Restores in place, measured on `feeds`."""
    step = RestoreBatchnorm(**options)
    statistics = gather(expanded(graph), step.requests(graph, Context()), [feeds])
    return step(graph, Context(statistics=statistics))


def test_every_model_file(model_path: Path) -> None:
    graph = read(model_path)
    canonicalize()(graph)
    FoldBatchnorm()(graph)
    before, feeds = graph.copy(), random_feeds(graph)
    convolutions = [n for n in graph.nodes() if n.op == "Conv"]
    outcome = restored(graph, feeds)
    assert 0 < outcome.rewrites == len(convolutions) - len(outcome.refused)
    # Random weights: in some of these networks the signal dies out on the way.
    reasons = ("all its channels are dead", "it makes one number", "its output is an output", "its bias", "its weight")
    assert all(refusal.why.startswith(reasons) for refusal in outcome.refused)
    assert largest_error(before, graph, feeds) <= 1e-5
    assert largest_error(before, graph, random_feeds(graph, seed=77)) <= 1e-5
    assert FoldBatchnorm()(graph).rewrites >= outcome.rewrites
    assert largest_error(before, graph, feeds) <= 1e-5


def test_on_real_images(trained_path: Path, images: Array) -> None:
    graph = read(trained_path)
    canonicalize()(graph)
    before = graph.copy()
    outcome = restored(graph, {"image": images})
    assert outcome.refused == ()
    convolutions = [n for n in graph.nodes() if n.op == "Conv"]
    assert outcome.rewrites == len(convolutions)
    assert {len(n.input) for n in to_proto(graph).graph.node if n.op_type == "Conv"} == {2}  # ONNX Runtime fuses these
    assert largest_error(before, graph, {"image": images[:32]}) <= 1e-5


def quantised(path: Path, feeds: dict[str, Array]) -> Graph:
    graph = read(path)
    canonicalize()(graph)
    step, context = InsertFakeQuant(), Context(target=load_target("x64"))
    statistics = gather(graph, step.requests(graph, context), [feeds])
    step(graph, Context(statistics=statistics, target=load_target("x64")))
    return graph


def integers(graph: Graph) -> dict[str, Array]:
    """Of every quantised weight."""
    found = {}
    for node in graph.nodes():
        if node.op == "FakeQuant" and node.attr("kind") == "weight":
            w, scale = graph.operand(node, 0), graph.operand(node, 1)
            found[w.name] = quantize(w.array, scale.array, narrow=True, axis=node.attr("axis"))
    return found


def test_folding_undoes_it_behind_fake_quant(trained_path: Path) -> None:
    feeds = {"image": np.random.default_rng(3).standard_normal((8, 3, 32, 32), np.float32)}
    graph = quantised(trained_path, feeds)
    before, weights = expanded(graph), integers(graph)
    outcome = restored(graph, feeds)
    assert outcome.rewrites == sum(n.op == "Conv" for n in graph.nodes())
    assert not largest_error(before, before)
    middle = expanded(graph)
    fold = FoldBatchnorm()(graph)
    assert (fold.rewrites, fold.refused) == (outcome.rewrites, ())
    assert not [n for n in graph.nodes() if n.op == "BatchNormalization"]
    after = integers(graph)
    assert list(after) == list(weights)
    for name, expected in weights.items():
        np.testing.assert_array_equal(after[name], expected)
    # An activation's rounding may tip by one step where float32 sums differ in their last bit.
    results = [Session(g, fuse_qdq=False).run(feeds) for g in (before, middle, expanded(graph))]
    logits = [next(iter(r.values())) for r in results]
    for other in logits[1:]:
        assert np.abs(other - logits[0]).max() <= 0.05 * np.abs(logits[0]).max()
        assert (other.argmax(1) == logits[0].argmax(1)).all()


def small(seed: int = 3, bias: bool = True) -> Builder:
    b = Builder("N", 3, 6, 6, seed=seed)
    inputs = [b.x, b.weight(5, 3, 3, 3)] + ([b.weight(5, name="bias")] if bias else [])
    b.graph.op("Conv", *inputs, name="conv")
    return b


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_inserted(bias: bool) -> None:
    b = small(bias=bias)
    graph = b.finish(b.graph.op("Relu", b.graph.value("conv"), name="y"))
    before, feeds = graph.copy(), random_feeds(graph, batch=16)
    tapped = graph.copy()
    tapped.add_output(tapped.value("conv"))
    y = Session(tapped).run(feeds)["conv"].astype(np.float64)
    mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3))
    assert restored(graph, feeds).rewrites == 1
    assert [n.op for n in graph.nodes()] == ["Conv", "BatchNormalization", "Relu"]
    scale, beta, mu, v = (graph.value(f"conv.norm.{k}") for k in ("scale", "bias", "mean", "var"))
    shift = before.value("bias").array if bias else 0
    np.testing.assert_allclose(scale.array, np.sqrt(var + 1e-5), rtol=1e-5)
    np.testing.assert_allclose(beta.array, mean, atol=1e-5)
    np.testing.assert_allclose(mu.array, mean - shift, atol=1e-5)
    np.testing.assert_allclose(v.array, var, rtol=1e-5)
    assert (scale.role, beta.role, mu.role, v.role) == (Role.PARAMETER, Role.PARAMETER, Role.STATISTIC, Role.STATISTIC)
    assert graph.find("bias") is None
    assert largest_error(before, graph, feeds) <= 1e-5


def test_training_mode_computes_the_same_on_the_same_data() -> None:
    """The statistics are those of the data: normalising by the batch's own changes nothing."""
    b = small()
    graph = b.finish(b.graph.op("Relu", b.graph.value("conv"), name="y"))
    feeds = random_feeds(graph, batch=16)
    before = graph.copy()
    restored(graph, feeds)
    node = graph.node_named("conv.norm")
    graph.set_attribute(node, "training_mode", 1)
    for slot, name in ((1, "running_mean"), (2, "running_var")):
        graph.set_output(node, slot, graph.add_value(name))
    assert largest_error(before, graph, feeds) <= 1e-4


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_a_dead_channel_keeps_the_function_and_its_gain(noise: float) -> None:
    b = small()
    weight = b.graph.value("w").array.copy()
    weight[2] *= noise
    b.graph.set_array(b.graph.value("w"), weight)
    graph = b.finish(b.graph.op("Relu", b.graph.value("conv"), name="y"))
    before, feeds = graph.copy(), random_feeds(graph, batch=16)
    assert restored(graph, feeds).rewrites == 1
    assert largest_error(before, graph, feeds) <= 1e-5
    gamma, var = graph.value("conv.norm.scale").array, graph.value("conv.norm.var").array
    assert var[2] == np.float32(1e-8)
    assert gamma[2] / np.sqrt(0 + 1e-5) == pytest.approx(1, rel=1e-3)  # even where its variance becomes 0


def refusal(graph: Graph, feeds: dict[str, Array] | None = None) -> str:
    outcome = restored(graph, feeds or random_feeds(graph, batch=8))
    assert outcome.rewrites == 0
    assert not [n for n in graph.nodes() if n.name.endswith(".norm")]
    (found,) = outcome.refused
    assert found.where.startswith("node 'conv'")
    return found.why


def test_all_channels_dead_is_refused() -> None:
    b = small()
    b.graph.set_array(b.graph.value("w"), np.zeros((5, 3, 3, 3), np.float32))
    assert "dead" in refusal(b.finish(b.graph.op("Relu", b.graph.value("conv"))))


def test_a_batch_norm_behind_it_is_refused() -> None:
    b = small()
    assert "follows it already" in refusal(b.finish(b.batchnorm(b.graph.value("conv"), 5)))


def test_a_graph_output_is_refused() -> None:
    b = small()
    assert "output of the graph" in refusal(b.finish(b.graph.value("conv")))


def test_a_squeeze_excite_gate_is_refused() -> None:
    b = Builder("N", 4, 6, 6)
    gate = b.graph.op("Conv", b.graph.op("GlobalAveragePool", b.x), b.weight(4, 4, 1, 1), name="conv")
    assert "too few" in refusal(b.finish(b.graph.op("Mul", b.x, b.graph.op("Sigmoid", gate))))


def test_a_shared_weight_is_refused() -> None:
    b = small()
    other = b.graph.op("MaxPool", b.graph.op("Conv", b.x, b.graph.value("w"), name="conv_2"), kernel_shape=[2, 2])
    graph = b.finish(b.graph.op("Relu", b.graph.value("conv")), other)
    outcome = restored(graph, random_feeds(graph))
    assert (outcome.rewrites, len(outcome.refused)) == (0, 2)


def test_a_per_tensor_grid_is_refused() -> None:
    b = Builder("N", 3, 6, 6)
    b.graph.op("Conv", b.x, b.fake_quant(b.weight(5, 3, 3, 3), None), name="conv")
    assert "no scale of its own" in refusal(b.finish(b.graph.op("Relu", b.graph.value("conv"))))


def test_missing_and_infinite_statistics_are_refused() -> None:
    b = small()
    graph = b.finish(b.graph.op("Relu", b.graph.value("conv")))
    assert "were not gathered" in RestoreBatchnorm()(graph).refused[0].why
    bad = Context(statistics=Statistics({ChannelMoments("conv"): Moments(8, np.full(5, np.inf), np.zeros(5))}))
    assert "not finite" in RestoreBatchnorm()(graph, bad).refused[0].why


def test_several_readers_all_read_the_batch_norm() -> None:
    b = small()
    y = b.graph.value("conv")
    graph = b.finish(b.graph.op("Relu", y), b.graph.op("Sigmoid", y))
    before, feeds = graph.copy(), random_feeds(graph, batch=8)
    assert restored(graph, feeds).rewrites == 1
    assert [u.node.op for u in graph.uses(graph.value("conv"))] == ["BatchNormalization"]
    assert largest_error(before, graph, feeds) <= 1e-5
