"""The int8 contract on small networks of every shape, and on the trained ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.analysis.precision import quantized_type
from onnxslim.calibration import Extremes
from onnxslim.data import open_dataset
from onnxslim.errors import ModelError
from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.onnx_io import read
from onnxslim.ir.rewrite import Context
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.statistics import Statistics
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.contract import Int8Contract, compare_int8
from onnxslim.runtime.session import Session
from onnxslim.stages.quantize import ready_to_quantize
from onnxslim.targets import Target, load_target
from passes.quantize import (
    ExpandFakeQuant,
    InsertFakeQuant,
    LowerToQdq,
    RoundBiases,
    SaturateHardSigmoid,
    SplitHardSwish,
)
from tests.fixed_range import FixedRange

INSERT = InsertFakeQuant(weight_bits=capabilities().exact_weight_bits)


def calibrated(graph: Graph, images: Array, target: Target) -> Context:
    """The context with the ranges that InsertFakeQuant asks for, from one batch."""
    context = Context(target=target)
    tapped, name = graph.copy(), graph.inputs[0].name
    requests = INSERT.requests(graph, context)
    for request in requests:
        value = tapped.value(request.value)
        if not tapped.is_input(value) and not tapped.is_output(value):
            tapped.add_output(value)
    found = {name: images, **Session(tapped).run({name: images})}
    ranges = {r: Extremes(float(found[r.value].min()), float(found[r.value].max())) for r in requests}
    return Context(statistics=Statistics(ranges), target=context.target)


def contract(graph: Graph, images: Array, target: str | Target = "x64") -> tuple[Int8Contract, Graph]:
    """Quantises, then compares on the images; also gives the lowered graph."""
    profile = load_target(target) if isinstance(target, str) else target
    SplitHardSwish()(graph, Context(target=profile))
    context = calibrated(graph, images[:100], profile)
    INSERT(graph, context)
    RoundBiases()(graph, context)
    expanded, lowered = graph.copy(), graph.copy()
    ExpandFakeQuant()(expanded)
    LowerToQdq()(lowered, context)
    SaturateHardSigmoid()(lowered, context)
    name = graph.inputs[0].name
    batches = [{name: images[i : i + 50]} for i in range(0, len(images), 50)]
    return compare_int8(expanded, lowered, batches), lowered


def random_net(seed: int, blocks: list[str]) -> Graph:
    """A classifier of the given blocks, with weights of a trained network's size."""
    graph, rng = Graph(), np.random.default_rng(seed)
    x = graph.add_input("x", DType.FLOAT, ["N", 3, 12, 12])
    channels = 3

    def conv(x: Value, inner: int, out: int, kernel: int = 3, group: int = 1, **attributes: object) -> Value:
        fan = inner // group * kernel * kernel
        w = graph.add_constant("w", rng.normal(0, (2 / fan) ** 0.5, (out, inner // group, kernel, kernel)).astype("f"))
        b = graph.add_constant("b", rng.normal(0, 0.2, out).astype("f"))
        return graph.op("Conv", x, w, b, pads=[kernel // 2] * 4, group=group, **attributes)

    for block in ["conv", *blocks]:
        if block == "conv":
            x, channels = graph.op("Relu", conv(x, channels, 8)), 8
        elif block == "separable":
            x = graph.op("Relu", conv(x, channels, channels, group=channels))
            x = graph.op(
                "Clip", conv(x, channels, channels, 1), *(graph.add_constant("c", np.float32(v)) for v in (0, 6))
            )
        elif block == "residual":
            inner = graph.op("Relu", conv(x, channels, channels))
            x = graph.op("Relu", graph.op("Add", conv(inner, channels, channels), x))
        elif block == "linear bottleneck":
            inner = graph.op("Relu", conv(x, channels, 2 * channels, 1))
            x = graph.op("Add", conv(inner, 2 * channels, channels, 1), x)
        elif block == "concat":
            parts = graph.op("Relu", conv(x, channels, 4)), conv(x, channels, 5, 1)
            x, channels = graph.op("Concat", *parts, axis=1), 9
        elif block == "max pool":
            x = graph.op("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
        elif block == "average pool":
            x = graph.op("AveragePool", x, kernel_shape=[2, 2], strides=[1, 1])
        elif block == "swish":
            x = graph.op("HardSwish", conv(x, channels, channels))
        elif block == "silu":
            x = conv(x, channels, channels)
            x = graph.op("Mul", x, graph.op("Sigmoid", x))
        elif block == "gate":
            mean = graph.op("GlobalAveragePool", x)
            gate = graph.op("HardSigmoid", conv(mean, channels, channels, 1), alpha=1 / 6, beta=0.5)
            x = graph.op("Mul", x, gate)
    x = graph.op("Flatten", graph.op("GlobalAveragePool", x))
    w = graph.add_constant("w", rng.normal(0, 1, (10, channels)).astype("f"))
    y = graph.op("Gemm", x, w, graph.add_constant("b", rng.normal(0, 1, 10).astype("f")), transB=1, name="logits")
    graph.set_type(y, DType.FLOAT, ["N", 10])
    graph.add_output(y)
    infer_shapes(graph)
    return graph


BLOCKS = ["separable", "residual", "linear bottleneck", "concat", "max pool", "average pool", "swish", "silu", "gate"]


@pytest.mark.parametrize("signed", [False, True])
def test_16_bit_activations_within_one_step_a_layer(signed: bool) -> None:
    """float32 holds 24 bits: sums end up to a few hundredths of a step of 16 bits away from the exact ones, and where
    the runtime's Sigmoid does, one step; so differences need not be at ties, as they are with 8 bits."""
    images = np.random.default_rng(3).normal(size=(32, 3, 12, 12)).astype(np.float32)
    graph = random_net(3, ["separable", "residual", "concat", "max pool", "average pool", "silu"])
    wide = replace(load_target("x64"), name="wide", activation_signed=signed, activation_bits=16)
    result, lowered = contract(graph, images, wide)
    types = {quantized_type(lowered, n) for n in lowered.nodes() if n.op == "QuantizeLinear"}
    assert types == {DType.INT16 if signed else DType.UINT16}
    assert len(result.layers) >= 15
    assert result.largest == 1
    assert result.agreement == 1


@given(
    seed=st.integers(0, 2**31),
    blocks=st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4),
    target=st.sampled_from(["x64", "arm"]),
)
@settings(deadline=None, max_examples=15)
def test_one_step_a_layer(seed: int, blocks: list[str], target: str) -> None:
    images = np.random.default_rng(seed).normal(size=(64, 3, 12, 12)).astype(np.float32)
    result, _ = contract(random_net(seed, blocks), images, target)
    assert result.largest <= 1
    assert result.from_tie <= 1e-4  # see trained_contract
    assert result.samples == 64
    assert len(result.layers) >= 3
    # Answers of random networks lie close together: one of 64 may tip over
    assert result.agreement >= 0.98


@pytest.mark.parametrize("target", ["x64", "arm"])
@pytest.mark.parametrize("blocks", [["swish", "swish"], ["silu", "silu"], ["gate", "conv", "gate"]], ids=str)
def test_activations_and_gates_stay_between_integers(blocks: list[str], target: str) -> None:
    images = np.random.default_rng(4).normal(size=(64, 3, 12, 12)).astype(np.float32)
    result, lowered = contract(random_net(11, blocks), images, target)
    assert result.largest <= 1
    ops = [node.op for node in lowered.nodes()]
    assert "HardSigmoid" not in ops
    assert "HardSwish" not in ops
    for node in lowered.nodes():
        if node.op in ("Add", "Mul", "Sigmoid"):
            makers = [lowered.producer(v) for v in lowered.node_inputs(node) if v is not None]
            assert all(maker is not None and maker.op == "DequantizeLinear" for maker in makers)
            assert [use.node.op for use in lowered.uses(lowered.result(node))] == ["QuantizeLinear"]


def test_trained_networks(trained_path: Path) -> None:
    """On random images: what a layer does to its inputs does not depend on where they come from."""
    images = np.random.default_rng(0).normal(size=(200, 3, 32, 32)).astype(np.float32)
    result = trained_contract(trained_path, images)
    # Outputs of random images lie close together, so that single steps, summed over the layers, tip some answers
    # over. They move an output by up to 2.2 % of the outputs' spread (five networks; kernels with and without
    # AVX-512): two outputs that are further apart than twice that must keep their order.
    assert result.margin <= 0.045


def test_trained_networks_on_real_images(trained_path: Path, shared: Path) -> None:
    result = trained_contract(trained_path, real_images(shared / "data" / "cifar10.zip"))
    assert result.agreement >= 0.995  # the contract: of 200 answers, one may tip over


def trained_contract(path: Path, images: Array) -> Int8Contract:
    """The contract of a trained network, layer by layer."""
    graph = read(path)
    ready_to_quantize()(graph)
    result, lowered = contract(graph, images)
    assert result.largest <= 1
    # A layer's value, up to 255 steps, is known to half an ulp of float32, 8e-6 steps, at each of some roundings (sum,
    # multiplier, scale): 4e-5 is the most that was seen, with AVX2 and with AVX-512 kernels.
    assert result.from_tie <= 1e-4
    assert not any(node.op == "Relu" or node.domain for node in lowered.nodes())
    return result


def real_images(archive: Path, count: int = 200) -> Array:
    """Validation images, normalised: float32 [count, 3, 32, 32]."""
    data = open_dataset(archive, "val")
    indices = np.linspace(0, len(data) - 1, count).astype(np.int64)
    images = np.asarray(data.read(indices)["image"], np.float32)
    normal = (images - np.array([125.3, 123.0, 113.9], np.float32)) / np.array([63.0, 62.1, 66.7], np.float32)
    return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))


def test_a_broken_layer_is_found() -> None:
    graph = random_net(0, ["residual"])
    images = np.random.default_rng(0).normal(size=(20, 3, 12, 12)).astype(np.float32)
    context = calibrated(graph, images, load_target("x64"))
    InsertFakeQuant()(graph, context)
    expanded, lowered = graph.copy(), graph.copy()
    ExpandFakeQuant()(expanded)
    LowerToQdq()(lowered, context)
    weight = next(v for v in lowered.initializers() if v.name.endswith(".int8") and v.array is not None)
    assert weight.array is not None
    lowered.set_array(weight, -weight.array)
    result = compare_int8(expanded, lowered, [{"x": images}])
    assert not result.holds
    wrong = [layer.value for layer in result.layers if (layer.fake_quant_to_integer or 0) > 1]
    assert len(wrong) == 1  # errors do not travel: only the layer with the wrong weight shows
    assert result.from_tie > 1e-3
    assert next(layer for layer in result.layers if layer.value == wrong[0]).from_tie == result.from_tie
    assert result.largest > 1


def test_refuses_graphs_that_cannot_be_matched() -> None:
    graph = random_net(0, [])
    with pytest.raises(ModelError, match="no quantised value"):
        compare_int8(graph, graph, [])
    InsertFakeQuant(calibrator=FixedRange(-1, 1))(graph)
    with pytest.raises(ModelError, match="run ExpandFakeQuant first"):
        compare_int8(graph, graph, [])
