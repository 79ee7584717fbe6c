"""FoldBatchnorm: fires, must be retained, and keeps the integers of a quantised weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.ir.graph import DType, Graph, Role, Value
from onnxslim.ir.quant_math import quantize
from onnxslim.ir.rewrite import Context
from onnxslim.ir.text import to_text
from onnxslim.runtime.checker import random_feeds, relative_error
from onnxslim.runtime.session import Session
from passes.quantize import ExpandFakeQuant
from passes.simplify import FoldBatchnorm, canonicalize
from tests.passes.simplify.conftest import Builder, largest_error


def layer(b: Builder, op: str, groups: int = 1, bias: bool = True, fake_quant: bool = False, bits: int = 8) -> Value:
    """6 channels → 4 with a batch norm, a FakeQuant on the weight where asked for."""
    shape = {"Conv": (4, 6 // groups, 3, 3), "ConvTranspose": (6, 4, 3, 3), "Gemm": (6, 4), "GemmB": (4, 6)}[op]
    weight = b.weight(*shape)
    if fake_quant:
        weight = b.fake_quant(weight, {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "GemmB": 0}[op], bits)
    attributes = {"group": groups} if op == "Conv" else {"transB": 1} if op == "GemmB" else {}
    inputs = [b.x, weight, b.weight(4, name="bias")] if bias else [b.x, weight]
    return b.batchnorm(b.graph.op(op.removesuffix("B"), *inputs, name="layer", **attributes), 4)


def builder(op: str, seed: int = 3) -> Builder:
    return Builder("N", 6, seed=seed) if "Gemm" in op else Builder("N", 6, 5, 5, seed=seed)


def expanded(graph: Graph) -> Graph:
    twin = graph.copy()
    ExpandFakeQuant()(twin)
    return twin


def test_every_model_file(model_path: Path, run_on_file) -> None:
    before, after, _ = run_on_file(canonicalize(), model_path)
    FoldBatchnorm()(after)
    convolutions = [
        n for n in after.nodes() if n.op == "BatchNormalization" and after.producer(after.operand(n, 0)).op == "Conv"
    ]
    assert convolutions == []
    assert largest_error(before, after) <= 1e-5


@given(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "GemmB"]), st.booleans(), st.integers(0, 99))
def test_fires_for_every_layer(op: str, bias: bool, seed: int) -> None:
    b = builder(op, seed)
    graph = b.finish(layer(b, op, bias=bias))
    before = graph.copy()
    outcome = FoldBatchnorm()(graph)
    assert (outcome.rewrites, outcome.refused) == (1, ())
    assert [n.op for n in graph.nodes()] == [op.removesuffix("B")]
    assert largest_error(before, graph) <= 1e-5


def test_grouped_convolutions(largest_error) -> None:
    b = builder("Conv")
    graph = b.finish(layer(b, "Conv", groups=2))
    before = graph.copy()
    assert FoldBatchnorm()(graph).rewrites == 1
    assert largest_error(before, graph) <= 1e-5


def test_golden_text() -> None:
    b = Builder("N", 1, 2, 2)
    w = b.constant(np.full((1, 1, 1, 1), 3.0, np.float32), "w")
    y = b.graph.op("Conv", b.x, w, name="conv")
    arrays = {"g": 2.0, "b": 1.0, "m": 0.5, "v": 4.0}
    values = [b.constant(np.full(1, value, np.float32), name) for name, value in arrays.items()]
    graph = b.finish(b.graph.op("BatchNormalization", y, *values, name="bn", epsilon=0.0))
    FoldBatchnorm()(graph)
    assert to_text(graph) == (
        "graph small opset ai.onnx 18\n"
        "in   x: FLOAT[N, 1, 2, 2]\n"
        "init w: FLOAT[1, 1, 1, 1] {3}\n"
        "init conv.bias: FLOAT[1] parameter {0.5}\n"
        "node bn: FLOAT[N, 1, 2, 2] = Conv(x, w, conv.bias) # conv\n"
        "out  bn: FLOAT[N, 1, 2, 2]\n"
    )


@given(
    st.sampled_from(["Conv", "ConvTranspose", "Gemm", "GemmB"]), st.integers(2, 8), st.booleans(), st.integers(0, 99)
)
def test_integers_of_a_fake_quant_stay_up_to_sign(op: str, bits: int, bias: bool, seed: int) -> None:
    b = builder(op, seed)
    graph = b.finish(layer(b, op, bias=bias, fake_quant=True, bits=bits))
    before = expanded(graph)
    axis = graph.node_named("fq").attr("axis")
    integers = quantize(graph.value("w").array, graph.value("w.scale").array, bits=bits, narrow=True, axis=axis)
    signs = np.sign(graph.value("bn.g").array)
    assert FoldBatchnorm()(graph).rewrites == 1
    scale = graph.value("w.scale")
    folded = quantize(graph.value("w").array, scale.array, bits=bits, narrow=True, axis=axis)
    shape = [-1 if a == axis else 1 for a in range(integers.ndim)]
    np.testing.assert_array_equal(folded, integers * signs.reshape(shape).astype(np.int8))
    assert (scale.role, scale.owner) == (Role.SCALE, "w")
    assert largest_error(before, expanded(graph)) <= 1e-5


def test_ties_between_integers_stay_ties() -> None:
    """Weights exactly between two integers, where one float32 ulp decides."""
    b = builder("Conv")
    w = b.weight(4, 6, 3, 3)
    grid = b.fake_quant(w, 0)
    scale = b.graph.value("w.scale").array
    halves = b.rng.integers(-126, 126, w.shape) + 0.5
    b.graph.set_array(w, (halves * scale.reshape(-1, 1, 1, 1)).astype(np.float32))
    graph = b.finish(b.batchnorm(b.graph.op("Conv", b.x, grid, name="layer"), 4))
    before = quantize(w.array, scale, narrow=True, axis=0)
    signs = np.sign(graph.value("bn.g").array).astype(np.int8).reshape(-1, 1, 1, 1)
    FoldBatchnorm()(graph)
    after = quantize(graph.value("w").array, graph.value("w.scale").array, narrow=True, axis=0)
    np.testing.assert_array_equal(after, before * signs)


@pytest.mark.parametrize("factor", [0.0, 1e-44])
def test_a_silent_channel_keeps_a_scale(factor: float) -> None:
    b = builder("Conv")
    graph = b.finish(layer(b, "Conv", fake_quant=True))
    gamma = graph.value("bn.g").array.copy()
    gamma[0] = factor
    graph.set_array(graph.value("bn.g"), gamma)
    before = expanded(graph)
    assert FoldBatchnorm()(graph).rewrites == 1
    assert (graph.value("w.scale").array >= np.finfo(np.float32).tiny).all()
    assert largest_error(before, expanded(graph)) <= 1e-5


def test_a_scale_that_others_share_is_not_changed_for_them() -> None:
    b = builder("Conv")
    w, v = b.weight(4, 6, 3, 3), b.weight(4, 6, 3, 3, name="v")
    first = b.fake_quant(w, 0)
    node = b.graph.producer(first)
    attributes = dict(node.attributes)
    inputs = [v, b.graph.operand(node, 1), b.graph.operand(node, 2)]
    second = b.graph.result(b.graph.add_node("FakeQuant", inputs, 1, attributes, domain="onnxslim", name="fq2"))
    other = b.graph.op("Conv", b.x, second, name="other")
    graph = b.finish(b.batchnorm(b.graph.op("Conv", b.x, first, name="layer"), 4), other)
    before = expanded(graph)
    assert FoldBatchnorm()(graph).rewrites == 1
    assert graph.operand(graph.node_named("fq2"), 1) is not graph.operand(graph.node_named("fq"), 1)
    assert largest_error(before, expanded(graph)) <= 1e-5


def why(graph: Graph) -> str:
    """Nothing happens, and the reason."""
    before = to_text(graph)
    outcome = FoldBatchnorm()(graph)
    assert outcome.rewrites == 0
    assert to_text(graph) == before
    (refusal,) = outcome.refused
    assert refusal.where == "node 'bn' (BatchNormalization)"
    return refusal.why


def test_an_output_read_elsewhere_is_retained() -> None:
    b = builder("Conv")
    normed = layer(b, "Conv")
    graph = b.finish(normed, b.graph.op("Relu", b.graph.operand(b.graph.producer(normed), 0)))
    assert why(graph) == "the output of node 'layer' (Conv) is read elsewhere too"


def test_an_output_of_the_graph_is_retained() -> None:
    b = builder("Conv")
    normed = layer(b, "Conv")
    graph = b.finish(normed, b.graph.operand(b.graph.producer(normed), 0))
    assert "read elsewhere" in why(graph)


def test_training_mode_is_retained() -> None:
    b = builder("Conv")
    graph = b.finish(layer(b, "Conv"))
    graph.set_attribute(graph.node_named("bn"), "training_mode", 1)
    assert why(graph) == "it is in training mode"


def test_a_shared_weight_is_retained() -> None:
    b = builder("Conv")
    normed = layer(b, "Conv")
    graph = b.finish(normed, b.graph.op("Conv", b.x, b.graph.value("w"), name="twin"))
    assert "its weight 'w' is shared" in why(graph)


def test_a_batch_norm_at_the_start_is_retained() -> None:
    b = Builder("N", 4, 5, 5)
    assert why(b.finish(b.batchnorm(b.x, 4))) == "it follows no layer"


def test_a_batch_norm_after_an_activation_is_retained() -> None:
    b = Builder("N", 4, 5, 5)
    assert "Relu is no convolution" in why(b.finish(b.batchnorm(b.graph.op("Relu", b.x), 4)))


def test_fed_parameters_are_retained() -> None:
    b = builder("Conv")
    graph = b.finish(layer(b, "Conv"))
    graph.feed(graph.value("bn.g"))
    assert why(graph) == "its parameters are computed or fed"


def test_a_gemm_with_alpha_is_retained() -> None:
    b = Builder("N", 6)
    y = b.graph.op("Gemm", b.x, b.weight(6, 4), name="layer", alpha=2.0)
    assert "alpha or beta" in why(b.finish(b.batchnorm(y, 4)))


def test_a_grouped_transposed_convolution_is_retained() -> None:
    b = Builder("N", 6, 5, 5)
    y = b.graph.op("ConvTranspose", b.x, b.weight(6, 2, 3, 3), name="layer", group=2)
    assert "grouped ConvTranspose" in why(b.finish(b.batchnorm(y, 4)))


@pytest.mark.parametrize("case", ["per tensor", "asymmetric", "other axis"])
def test_a_grid_whose_integers_would_change_is_retained(case: str) -> None:
    b = Builder("N", 4, 5, 5)
    grid = b.fake_quant(b.weight(4, 4, 3, 3), {"per tensor": None, "other axis": 1}.get(case, 0))
    graph = b.finish(b.batchnorm(b.graph.op("Conv", b.x, grid, name="layer"), 4))
    if case == "asymmetric":
        graph.set_array(graph.value("w.zero_point"), np.ones(4, np.float32))
    assert ("not symmetric" if case == "asymmetric" else "no scale of its own") in why(graph)


def test_equal_in_evaluation_on_large_batches() -> None:
    b = builder("Conv")
    graph = b.finish(layer(b, "Conv", fake_quant=True))
    feeds = random_feeds(graph, seed=1, batch=32)
    (old,) = Session(expanded(graph), fuse_qdq=False).run(feeds).values()
    FoldBatchnorm()(graph)
    (new,) = Session(expanded(graph), fuse_qdq=False).run(feeds).values()
    assert relative_error(old, new) <= 1e-5


def test_statistics_for_every_pixel_are_refused(build) -> None:
    """`spatial` of opsets 7 and 8: parameters of the shape [C, H, W]."""
    b = build(2, 3, 4, 4, opset=7)
    parameters = [b.weight(3, 4, 4, name=name) for name in ("gamma", "beta", "mean", "var")]
    y = b.graph.op("Conv", b.x, b.weight(3, 3, 1, 1))
    graph = b.finish(b.graph.op("BatchNormalization", y, *parameters, spatial=0), infer=False)
    outcome = FoldBatchnorm().run(graph, Context())
    assert outcome.rewrites == 0
    assert outcome.refused[0].why == "it has statistics for every pixel"


@pytest.mark.parametrize(
    ("slot", "number"), [(1, np.nan), (1, np.inf), (2, np.nan), (3, np.inf), (4, -1.0), (4, np.inf)]
)
def test_it_must_refuse_parameters_that_give_no_finite_weights(slot: int, number: float) -> None:
    graph = Graph("g")
    x = graph.add_input("x", DType.FLOAT, (1, 2, 4, 4))
    y = graph.op("Conv", x, graph.add_constant("w", np.ones((3, 2, 1, 1), np.float32)))
    parameters = [graph.add_constant(n, np.ones(3, np.float32)) for n in ("gamma", "beta", "mean", "var")]
    array = np.ones(3, np.float32)
    array[1] = number
    graph.set_array(parameters[slot - 1], array)
    graph.add_output(graph.op("BatchNormalization", y, *parameters))
    outcome = FoldBatchnorm()(graph)
    assert outcome.rewrites == 0
    assert ("not all finite" if not np.isfinite(number) else "would overflow") in outcome.refused[0].why
