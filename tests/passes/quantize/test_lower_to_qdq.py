"""LowerToQdq: int8 weights, int32 biases, the target's activation type, and ONNX Runtime's integer kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxslim.calibration import Extremes
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Array, DType, Graph, Node
from onnxslim.ir.onnx_io import to_bytes
from onnxslim.ir.quant_math import quantize, weight_scale
from onnxslim.ir.rewrite import Context
from onnxslim.ir.statistics import Statistic, Statistics
from onnxslim.ir.text import to_text
from onnxslim.runtime.session import Session
from onnxslim.targets import load_target
from passes.quantize import ExpandFakeQuant, InsertFakeQuant, LowerToQdq, RoundBiases
from tests.fixed_range import FixedRange

X64, ARM = Context(target=load_target("x64")), Context(target=load_target("arm"))


def fake_quantised(graph: Graph, **options: Any) -> Graph:
    """FakeQuants with plausible ranges: 0 … 3 after ReLU and pools, −2 … 3 elsewhere."""
    step = InsertFakeQuant(**options)
    ranges: dict[Statistic[Any], Extremes] = {}
    for request in step.requests(graph, X64):
        source = graph.producer(graph.value(request.value))
        positive = source is not None and source.op in ("Relu", "Clip")
        ranges[request] = Extremes(0 if positive else -2, 3)
    step(graph, Context(target=X64.target, statistics=Statistics(ranges)))
    return graph


def test_more_bits_than_the_target_takes_are_refused(net: Any) -> None:
    wide = replace(load_target("x64"), activation_bits=16)
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    InsertFakeQuant(calibrator=FixedRange(-1, 3))(graph, Context(target=wide))
    before = to_text(graph)
    with pytest.raises(UnsupportedError, match=r"'x' is quantised to 16 bits, but target 'arm' takes .* of 8"):
        LowerToQdq()(graph, ARM)
    assert to_text(graph) == before
    LowerToQdq()(graph, Context(target=wide))
    pairs = [n for n in graph.nodes() if n.op == "QuantizeLinear"]
    assert pairs
    assert {(n.domain, graph.operand(n, 2).dtype) for n in pairs} == {("com.microsoft", DType.UINT16)}


def kernels(graph: Graph, folder: Path) -> Counter[str]:
    """The ops that ONNX Runtime runs for a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(to_bytes(graph), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(folder / "optimised.onnx").graph.node)


def only(graph: Graph, op: str) -> Node:
    (node,) = [n for n in graph.nodes() if n.op == op]
    return node


def constant(graph: Graph, node: Node, slot: int) -> Array:
    array = graph.operand(node, slot).array
    assert array is not None
    return array


def test_integers_come_from_weight_and_scale_as_they_are(net: Any) -> None:
    graph = fake_quantised(net.finish(net.gemm(net.conv(net.x, 4))))
    scale = graph.value("conv.weight.scale")
    assert scale.array is not None
    trained = (scale.array * np.float32(1.3)).astype(np.float32)  # as training left it, not max|w|/127
    graph.set_array(scale, trained)
    weight, bias = graph.value("conv.weight").array, graph.value("conv.bias").array
    assert weight is not None
    assert bias is not None
    x_scale = constant(graph, graph.node_named("x.fake_quant"), 1)
    assert LowerToQdq()(graph, X64).refused == ()
    conv = only(graph, "Conv")
    dq_weight, dq_bias = (graph.producer(graph.operand(conv, slot)) for slot in (1, 2))
    assert dq_weight is not None
    assert dq_bias is not None
    integers, scales, zeros = (constant(graph, dq_weight, slot) for slot in range(3))
    np.testing.assert_array_equal(integers, quantize(weight, trained, axis=0, narrow=True))
    np.testing.assert_array_equal(scales, trained)
    assert (integers.dtype, zeros.dtype, zeros.any(), dq_weight.attr("axis")) == (np.int8, np.int8, False, 0)
    integers, scales = constant(graph, dq_bias, 0), constant(graph, dq_bias, 1)
    assert integers.dtype == np.int32
    np.testing.assert_array_equal(scales, x_scale * trained)
    assert np.abs(integers * scales.astype(np.float64) - bias).max() <= 0.5 * scales.max() * (1 + 1e-6)


def test_target_shifts_the_zero_point(net: Any) -> None:
    graph = fake_quantised(net.finish(net.gemm(net.conv(net.x, 4))))
    twin = graph.copy()
    LowerToQdq()(graph, X64)
    LowerToQdq()(twin, ARM)
    pairs = [[n for n in g.nodes() if n.op == "QuantizeLinear"] for g in (graph, twin)]
    assert len(pairs[0]) == len(pairs[1]) > 0
    for u8, s8 in zip(*pairs):
        a, b = constant(graph, u8, 2), constant(twin, s8, 2)
        assert (a.dtype, b.dtype) == (np.uint8, np.int8)
        assert int(a) - 128 == int(b)
        assert constant(graph, u8, 1) == constant(twin, s8, 1)


def test_saturation_replaces_relu_and_clip(net: Any) -> None:
    bounds = [net.graph.add_constant(n, np.float32(v)) for n, v in (("lo", 0), ("hi", 3))]
    y = net.op("Clip", net.conv(net.x, 4, relu=False), *bounds)
    net.channels[y.id] = 4
    graph = fake_quantised(net.finish(net.gemm(net.conv(y, 4))))
    LowerToQdq()(graph, X64)
    assert not {"Relu", "Clip"} & {n.op for n in graph.nodes()}


def test_wider_clip_stays(net: Any) -> None:
    bounds = [net.graph.add_constant(n, np.float32(v)) for n, v in (("lo", 0), ("hi", 2))]  # the grid goes to 3
    y = net.op("Clip", net.conv(net.x, 4, relu=False), *bounds)
    net.channels[y.id] = 4
    graph = fake_quantised(net.finish(net.gemm(net.conv(y, 4))))
    LowerToQdq()(graph, X64)
    clip = only(graph, "Clip")
    before = graph.producer(graph.operand(clip, 0))
    assert before is not None
    assert before.op == "DequantizeLinear"  # so that the convolution before it has its integer kernel


def test_structure_is_all_integer_kernels(residual_net: Callable[[], Graph], tmp_path: Path) -> None:
    graph = fake_quantised(residual_net())
    outcome = LowerToQdq()(graph, X64)
    assert outcome.refused == ()
    found = kernels(graph, tmp_path)
    assert found["QLinearConv"] == 6
    assert found["QLinearAdd"] == 1
    assert found["QLinearGlobalAveragePool"] == 1
    assert found["QGemm"] == 1
    assert not {"Conv", "Add", "Gemm", "GlobalAveragePool", "MaxPool"} & set(found) - {"MaxPool"}
    assert "FakeQuant" not in found


@pytest.mark.parametrize("context", [X64, ARM], ids=["x64", "arm"])
def test_same_numbers_as_fake_quant(residual_net: Callable[[], Graph], images: Array, context: Context) -> None:
    graph = fake_quantised(residual_net())
    RoundBiases()(graph, context)
    expanded, lowered = graph.copy(), graph.copy()
    ExpandFakeQuant()(expanded)
    LowerToQdq()(lowered, context)
    expected = Session(expanded, fuse_qdq=False).run({"x": images})["y"]
    for fuse in (False, True):
        found = Session(lowered, fuse_qdq=fuse).run({"x": images})["y"]
        # a handful of steps of the input grid of Gemm: ties rounded the other way early on
        np.testing.assert_allclose(found, expected, atol=0.03 * float(np.abs(expected).max()))
        assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.95


def test_matmul(net: Any) -> None:
    flat = net.op("Flatten", net.op("GlobalAveragePool", net.conv(net.x, 4)))
    graph = fake_quantised(net.finish(net.graph.op("MatMul", flat, net.constant("w", 4, 10), name="mm")))
    outcome = LowerToQdq()(graph, X64)
    assert outcome.refused == ()
    weight = graph.producer(graph.operand(only(graph, "MatMul"), 1))
    assert weight is not None
    assert constant(graph, weight, 0).dtype == np.int8
    assert weight.attr("axis", 1) == 1
    assert constant(graph, weight, 1).shape == (10,)
    assert Session(graph).run({"x": np.zeros((2, 3, 8, 8), np.float32)})["y"].shape == (2, 10)


def test_dead_channel_raises_its_scale_so_that_the_bias_fits(net: Any) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    weight, bias = graph.value("conv.weight"), graph.value("conv.bias")
    assert weight.array is not None
    dead = weight.array.copy()
    dead[1] = 1e-12
    graph.set_array(weight, dead)
    graph.set_array(bias, np.array([1, 200, 1, 1], np.float32))
    fake_quantised(graph)
    scale = graph.value("conv.weight.scale")
    assert scale.array is not None
    folded = scale.array.copy()
    folded[1] = 1e-9  # γ/σ of a dead channel
    graph.set_array(scale, folded)
    LowerToQdq()(graph, X64)
    dq = graph.producer(graph.operand(only(graph, "Conv"), 2))
    assert dq is not None
    integers, step = constant(graph, dq, 0), constant(graph, dq, 1)
    assert np.abs(integers.astype(np.int64)).max() <= 2**30 * 1.001
    np.testing.assert_allclose(integers * step.astype(np.float64), [1, 200, 1, 1], rtol=1e-4)
    kept = graph.producer(graph.operand(only(graph, "Conv"), 1))
    assert kept is not None
    np.testing.assert_array_equal(np.delete(constant(graph, kept, 1), 1), np.delete(folded, 1))


def test_bias_shared_by_two_layers_gets_two_scales(net: Any) -> None:
    a = net.conv(net.x, 4)
    b = net.graph.op("Conv", a, net.constant("w", 4, 4, 1, 1), net.graph.value("conv.bias"), name="again")
    net.channels[b.id] = 4
    graph = fake_quantised(net.finish(net.gemm(b)))
    LowerToQdq()(graph, X64)
    names = [node.name for node in graph.nodes()]
    assert len(set(names)) == len(names)
    assert Session(graph).run({"x": np.zeros((1, 3, 8, 8), np.float32)})["y"].shape == (1, 10)


def test_zero_points_are_written_and_weights_have_their_own(residual_net: Callable[[], Graph]) -> None:
    graph = fake_quantised(residual_net())
    LowerToQdq()(graph, X64)
    zeros = [v for v in graph.initializers() if v.name.startswith("zero") and not v.name.startswith("zero_point")]
    layers = [n for n in graph.nodes() if n.op in ("Conv", "Gemm")]
    assert len([v for v in zeros if v.dtype is DType.INT8]) == len(layers)
    assert all(len(graph.uses(v)) == 1 for v in zeros if v.dtype is DType.INT8)
    lengths = [v.static_shape for v in zeros if v.dtype is DType.INT32]
    assert 1 <= len(lengths) == len(set(lengths)) < len(layers)
    assert all(n.arity[0] == 3 for n in graph.nodes() if n.op in ("QuantizeLinear", "DequantizeLinear"))


def test_low_bits_keep_integers_in_int8_and_say_what_has_no_kernel(net: Any, images: Array) -> None:
    graph = fake_quantised(net.finish(net.gemm(net.conv(net.x, 4))), weight_bits=4, activation_bits=6)
    RoundBiases()(graph, X64)
    expanded = graph.copy()
    ExpandFakeQuant()(expanded)
    outcome = LowerToQdq()(graph, X64)
    assert {r.why for r in outcome.refused} == {"6-bit activations have no integer kernel"}
    weight = graph.producer(graph.operand(only(graph, "Conv"), 1))
    assert weight is not None
    assert np.abs(constant(graph, weight, 0)).max() == 7
    found, expected = (Session(g, fuse_qdq=False).run({"x": images})["y"] for g in (graph, expanded))
    np.testing.assert_allclose(found, expected, atol=0.05 * float(np.abs(expected).max()))


def test_unfolded_batch_norm_is_refused(net: Any) -> None:
    y = net.conv(net.x, 4, relu=False)
    y = net.op("BatchNormalization", y, *(net.graph.add_constant(n, np.ones(4, np.float32)) for n in "abcd"))
    net.channels[y.id] = 4
    graph = fake_quantised(net.finish(net.gemm(y)))
    assert any("not folded" in r.why for r in LowerToQdq()(graph, X64).refused)


def test_skipped_node_stays_float(net: Any) -> None:
    graph = fake_quantised(net.finish(net.gemm(net.conv(net.x, 4))), skip=("fc",))
    outcome = LowerToQdq()(graph, X64)
    assert [r.where for r in outcome.refused] == ["node 'fc' (Gemm)"]
    assert graph.operand(only(graph, "Gemm"), 1).dtype is DType.FLOAT


def test_without_fake_quant_nothing_happens(net: Any) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    assert LowerToQdq()(graph, X64).rewrites == 0


def test_weight_scale_of_a_fresh_graph_reaches_127(net: Any) -> None:
    graph = fake_quantised(net.finish(net.gemm(net.conv(net.x, 4))))
    weight = graph.value("conv.weight").array
    assert weight is not None
    LowerToQdq()(graph, X64)
    dq = graph.producer(graph.operand(only(graph, "Conv"), 1))
    assert dq is not None
    assert (np.abs(constant(graph, dq, 0).astype(int)).max(axis=(1, 2, 3)) == 127).all()
    np.testing.assert_array_equal(constant(graph, dq, 1), weight_scale(weight, 0))
