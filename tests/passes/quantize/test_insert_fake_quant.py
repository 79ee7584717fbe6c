"""InsertFakeQuant: where FakeQuants stand, with which grids, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxslim.calibration import Extremes
from onnxslim.errors import DataError, OptionError
from onnxslim.ir.graph import Array, DType, Graph, Node, Role
from onnxslim.ir.quant_math import affine_from_range, weight_scale
from onnxslim.ir.rewrite import Context
from onnxslim.ir.statistics import Statistics
from onnxslim.ir.verify import verify
from onnxslim.targets import load_target
from passes.quantize import InsertFakeQuant
from tests.fixed_range import FixedRange

UNCALIBRATED = InsertFakeQuant(calibrator=FixedRange(-1.0, 3.0))


def fake_quants(graph: Graph, kind: str) -> dict[str, Node]:
    """FakeQuant nodes of one kind by the name of what they quantise."""
    return {graph.operand(n, 0).name: n for n in graph.nodes() if n.op == "FakeQuant" and n.attr("kind") == kind}


def readers(graph: Graph, name: str) -> list[str]:
    return [node.op for node in graph.consumers(graph.value(name))]


def test_conv_relu_fires(net: Any) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    outcome = UNCALIBRATED(graph)
    assert outcome.refused == ()
    weights, activations = fake_quants(graph, "weight"), fake_quants(graph, "activation")
    assert set(weights) == {"conv.weight", "fc.weight"}
    assert set(activations) == {"x", "relu", "globalaveragepool"}
    assert outcome.rewrites == 5
    assert graph.opsets["onnxslim"] == 1
    verify(graph)


def test_relu_is_inside_the_region(net: Any) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    UNCALIBRATED(graph)
    assert readers(graph, "conv") == ["Relu"]
    assert readers(graph, "relu") == ["FakeQuant"]


def test_batch_norm_and_clip_are_inside_the_region(net: Any) -> None:
    y = net.conv(net.x, 4, relu=False)
    parameters = [net.graph.add_constant(n, np.ones(4, np.float32)) for n in ("gamma", "beta", "mean", "var")]
    y = net.op("BatchNormalization", y, *parameters)
    bounds = [net.graph.add_constant(n, np.float32(v)) for n, v in (("lo", 0), ("hi", 6))]
    y = net.op("Clip", y, *bounds)
    net.channels[y.id] = 4
    graph = net.finish(net.gemm(y))
    UNCALIBRATED(graph)
    assert set(fake_quants(graph, "activation")) == {"x", "clip", "globalaveragepool"}


def test_last_gemm_stays_float_and_last_conv_does_not(net: Any) -> None:
    graph = net.finish(net.conv(net.x, 4, relu=False), "N", 4, 8, 8)
    UNCALIBRATED(graph)
    producer = graph.producer(graph.value("y"))
    assert producer is not None
    assert producer.op == "FakeQuant"
    assert graph.operand(producer, 1).owner == graph.operand(producer, 0).name


def test_weight_grids(net: Any) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    UNCALIBRATED(graph)
    for name, node in fake_quants(graph, "weight").items():
        array, scale, zero = graph.value(name).array, graph.operand(node, 1), graph.operand(node, 2)
        assert array is not None
        assert scale.array is not None
        assert zero.array is not None
        np.testing.assert_array_equal(scale.array, weight_scale(array, 0))
        assert not zero.array.any()
        assert (scale.role, scale.owner, zero.role, zero.owner) == (Role.SCALE, name, Role.SCALE, name)
        assert [node.attr(a) for a in ("bits", "signed", "narrow", "axis")] == [8, 1, 1, 0]


def test_gemm_axis_follows_transposition(net: Any) -> None:
    x = net.op("Flatten", net.op("GlobalAveragePool", net.x))
    y = net.graph.op("Gemm", x, net.constant("w", 3, 10), name="fc")
    graph = net.finish(y)
    UNCALIBRATED(graph)
    node = fake_quants(graph, "weight")["w"]
    assert node.attr("axis") == 1
    assert graph.operand(node, 1).shape == (10,)


def test_calibration_sets_the_grid(net: Any, calibrated: Callable[..., Context], images: Array) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    context = calibrated(graph, InsertFakeQuant(), images)
    InsertFakeQuant()(graph, context)
    node = fake_quants(graph, "activation")["relu"]
    scale, zero, observed = (graph.operand(node, slot) for slot in (1, 2, 3))
    assert observed.array is not None
    assert observed.role is Role.STATISTIC
    assert observed.owner == "relu"
    assert observed.array.shape == (2,)
    assert observed.array[0] == 0
    expected = affine_from_range(0.0, observed.array[1], 8, False)
    np.testing.assert_array_equal([scale.array, zero.array], expected)


def test_range_always_holds_zero(net: Any) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    InsertFakeQuant(calibrator=FixedRange(1.0, 3.0))(graph)
    for node in fake_quants(graph, "activation").values():
        array = graph.operand(node, 3).array
        assert array is not None
        assert array.tolist() == [0.0, 3.0]


def test_target_decides_the_sign(net: Any) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    UNCALIBRATED(graph, Context(target=load_target("arm")))
    assert all(n.attr("signed") == 1 for n in fake_quants(graph, "activation").values())


def test_missing_and_infinite_statistics_are_named(net: Any) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    with pytest.raises(DataError, match="range of 'x'"):
        InsertFakeQuant()(graph)
    requests = InsertFakeQuant().requests(graph, Context())
    assert [r.value for r in requests] == ["x", "relu", "globalaveragepool"]
    statistics = Statistics({r: Extremes(0, np.nan) for r in requests})
    with pytest.raises(DataError, match="NaN or infinity"):
        InsertFakeQuant()(graph, Context(statistics=statistics))
    assert not fake_quants(graph, "weight")  # nothing was touched


def test_residual_add_is_quantised_after_its_relu(residual_net: Callable[[], Graph]) -> None:
    graph = residual_net()
    UNCALIBRATED(graph)
    add = graph.node_named("add")
    sources = [graph.producer(v) for v in graph.node_inputs(add) if v is not None]
    assert [s.op for s in sources if s is not None] == ["FakeQuant", "FakeQuant"]
    assert readers(graph, "add") == ["Relu"]


def test_max_pool_hands_its_grid_on(residual_net: Callable[[], Graph]) -> None:
    graph = residual_net()
    UNCALIBRATED(graph)
    pool = graph.node_named("maxpool")
    assert "maxpool" not in fake_quants(graph, "activation")
    assert readers(graph, graph.result(pool).name) == ["Conv", "Conv"]


def test_concat_leaves_each_branch_its_grid(residual_net: Callable[[], Graph], calibrated: Any, images: Array) -> None:
    graph = residual_net()
    context = calibrated(graph, InsertFakeQuant(), images)
    InsertFakeQuant()(graph, context)
    concat = graph.node_named("concat")
    nodes = [graph.producer(v) for v in graph.node_inputs(concat)] + [graph.consumers(graph.result(concat))[0]]
    lows, highs = zip(*(graph.operand(node, 3).array for node in nodes if node is not None))
    assert lows[0] == 0  # behind a ReLU
    assert lows[1] < 0
    assert (lows[2], highs[2]) == (min(lows), max(highs))


def test_shared_weight_gets_one_fake_quant(net: Any) -> None:
    a = net.conv(net.x, 3)
    w = net.graph.value("conv.weight")
    b = net.graph.op("Conv", a, w, name="again", pads=[1, 1, 1, 1])
    net.channels[b.id] = 3
    graph = net.finish(net.gemm(b))
    UNCALIBRATED(graph)
    assert readers(graph, "conv.weight") == ["FakeQuant"]
    assert readers(graph, "conv.weight.quantized") == ["Conv", "Conv"]


def test_bits(net: Any) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    InsertFakeQuant(weight_bits=4, activation_bits=6, calibrator=FixedRange(0, 1))(graph)
    assert {n.attr("bits") for n in fake_quants(graph, "weight").values()} == {4}
    assert {n.attr("bits") for n in fake_quants(graph, "activation").values()} == {6}
    with pytest.raises(OptionError, match="weight_bits: expected 2 to 8, got 1"):
        InsertFakeQuant(weight_bits=1).requests(graph, Context())


def test_reduced_range_is_seven_bits(net: Any) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    UNCALIBRATED(graph, Context(target=replace(load_target("x64"), reduce_range=True)))
    assert {n.attr("bits") for n in fake_quants(graph, "weight").values()} == {7}
    assert {n.attr("bits") for n in fake_quants(graph, "activation").values()} == {8}


def test_per_tensor(net: Any) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    InsertFakeQuant(per_channel=False, calibrator=FixedRange(0, 1))(graph)
    for node in fake_quants(graph, "weight").values():
        assert graph.operand(node, 1).shape == ()
        assert node.attr("axis") is None


@pytest.mark.parametrize("pattern", ["fc", "Gemm", "f?", "re:f[c]"])
def test_skip(net: Any, pattern: str) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    outcome = InsertFakeQuant(skip=(pattern,), calibrator=FixedRange(0, 1))(graph)
    assert set(fake_quants(graph, "weight")) == {"conv.weight"}
    assert "globalaveragepool" not in fake_quants(graph, "activation")
    assert [r.why for r in outcome.refused if "'fc'" in r.where] == ["skipped as asked"]


@pytest.mark.parametrize(("pattern", "message"), [("cnov", "near names: conv"), ("re:(", "not a regular expression")])
def test_skip_that_matches_nothing_is_an_error(net: Any, pattern: str, message: str) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    with pytest.raises(OptionError, match=message):
        InsertFakeQuant(skip=(pattern,), calibrator=FixedRange(0, 1))(graph)


def test_refuses_weights_that_are_computed(net: Any) -> None:
    w = net.graph.op("Abs", net.constant("w", 4, 3, 1, 1))
    y = net.graph.op("Conv", net.x, w, name="dynamic")
    graph = net.finish(y, "N", 4, 8, 8)
    outcome = UNCALIBRATED(graph)
    assert outcome.rewrites == 0
    assert "onnxslim" not in graph.opsets
    assert any("not a constant" in r.why and "dynamic" in r.where for r in outcome.refused)


def test_refuses_ops_without_kernel_and_keeps_them_float(net: Any) -> None:
    y = net.op("HardSwish", net.conv(net.x, 4, relu=False))
    net.channels[y.id] = 4
    graph = net.finish(net.conv(y, 2), "N", 2, 8, 8)
    outcome = UNCALIBRATED(graph)
    assert any("HardSwish" in r.where and "no integer kernel" in r.why for r in outcome.refused)
    # Conv's kernel writes integers, so both sides of the float op are quantised
    assert {"conv", "hardswish"} <= set(fake_quants(graph, "activation"))


def test_float_branch_of_a_float_value_keeps_reading_it(net: Any) -> None:
    side = net.op("Sigmoid", net.x)
    y = net.op("Mul", net.conv(net.x, 3, relu=False), side)
    graph = net.finish(y, "N", 3, 8, 8)
    UNCALIBRATED(graph)
    assert readers(graph, "x") == ["Sigmoid", "FakeQuant"]


def test_second_run_changes_nothing(net: Any) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    UNCALIBRATED(graph)
    outcome = UNCALIBRATED(graph)
    assert outcome.rewrites == 0
    assert "already" in outcome.refused[0].why


def test_half_precision_is_refused() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT16, ["N", 1, 4, 4])
    y = graph.op("Conv", x, graph.add_constant("w", np.ones((1, 1, 1, 1), np.float16)), name="conv")
    graph.set_type(y, DType.FLOAT16, ["N", 1, 4, 4])
    graph.add_output(y)
    outcome = UNCALIBRATED(graph)
    assert outcome.rewrites == 0
    assert "only float32" in outcome.refused[0].why
