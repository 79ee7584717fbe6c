"""ExpandFakeQuant: the same numbers as quant_math, from standard ops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Array, DType, Graph, Role
from onnxslim.ir.quant_math import GRID_BITS, fake_quant, qrange
from onnxslim.runtime.session import Session
from passes.quantize import ExpandFakeQuant


def graph_of(x: Array, scale: Array, zero: Array, attributes: dict[str, int], *, fed: bool = False) -> Graph:
    graph = Graph()
    source = graph.add_input("x", DType.FLOAT, x.shape)
    if fed:
        parameters = [graph.add_input(n, DType.FLOAT, a.shape) for n, a in (("s", scale), ("z", zero))]
    else:
        parameters = [graph.add_constant(n, a, role=Role.SCALE) for n, a in (("s", scale), ("z", zero))]
    parameters.append(graph.add_constant("range", np.zeros(2, np.float32), role=Role.STATISTIC))
    node = graph.add_node("FakeQuant", [source, *parameters], ["y"], attributes, domain="onnxslim", name="fq")
    graph.opsets["onnxslim"] = 1
    graph.set_type(graph.result(node), DType.FLOAT, x.shape)
    graph.add_output(graph.result(node))
    return graph


@given(
    seed=st.integers(0, 2**31),
    bits=st.sampled_from(GRID_BITS),
    signed=st.booleans(),
    narrow=st.booleans(),
    per_channel=st.booleans(),
    fed=st.booleans(),
)
@settings(deadline=None, max_examples=30)
def test_is_quant_math_bit_for_bit(
    seed: int, bits: int, signed: bool, narrow: bool, per_channel: bool, fed: bool
) -> None:
    narrow = narrow and bits <= 8
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 3, (4, 5)).astype(np.float32)
    axis = 1 if per_channel else None
    scale = rng.uniform(0.01, 0.5, 5 if per_channel else ()).astype(np.float32)
    low, high = qrange(bits, signed, narrow)
    zero = rng.integers(low, high + 1, scale.shape).astype(np.float32)
    attributes = {"bits": bits, "signed": int(signed), "narrow": int(narrow)} | ({"axis": 1} if per_channel else {})
    graph = graph_of(x, np.asarray(scale), np.asarray(zero), attributes, fed=fed)
    assert ExpandFakeQuant()(graph).rewrites == 1
    pairs = [node for node in graph.nodes() if node.op.endswith("Linear")]
    assert [node.domain for node in pairs] == ["com.microsoft" if bits == 16 else ""] * 2
    assert ("Clip" in [n.op for n in graph.nodes()]) == (bits < 8 or (narrow and signed))
    feeds = {"x": x} | ({"s": np.asarray(scale), "z": np.asarray(zero)} if fed else {})
    found = Session(graph, fuse_qdq=False).run(feeds)["y"]
    expected = fake_quant(x, scale, zero, bits=bits, signed=signed, narrow=narrow, axis=axis)
    np.testing.assert_array_equal(found, expected)


def test_known_zero_point_needs_no_cast_and_range_goes() -> None:
    x = np.zeros((2, 3), np.float32)
    graph = graph_of(x, np.float32(0.1), np.float32(3), {"bits": 8, "signed": 0, "narrow": 0})
    ExpandFakeQuant()(graph)
    assert [n.op for n in graph.nodes()] == ["QuantizeLinear", "DequantizeLinear"]
    assert graph.find("range") is None
    assert graph.find("z") is None
    assert "onnxslim" not in graph.opsets


def test_fed_zero_point_is_cast_once() -> None:
    x = np.zeros((2, 3), np.float32)
    graph = graph_of(x, np.float32(0.1), np.float32(3), {"bits": 8, "signed": 0, "narrow": 0}, fed=True)
    twin = graph.add_node(
        "FakeQuant",
        [graph.value("y"), graph.value("s"), graph.value("z")],
        ["again"],
        {"bits": 8, "signed": 0, "narrow": 0},
        domain="onnxslim",
        name="fq2",
    )
    graph.add_output(graph.result(twin))
    ExpandFakeQuant()(graph)
    assert [n.op for n in graph.nodes()].count("Cast") == 1


def test_without_fake_quant_nothing_happens() -> None:
    graph = Graph()
    graph.add_output(graph.op("Relu", graph.add_input("x", DType.FLOAT, [1])))
    assert ExpandFakeQuant()(graph).rewrites == 0


@pytest.mark.parametrize("signed", [0, 1])
def test_16_bits_are_onnx_ops_from_opset_21_on(signed: int) -> None:
    x = np.random.default_rng(0).normal(0, 1, 50).astype(np.float32)
    attributes = {"bits": 16, "signed": signed, "narrow": 0}
    graph = graph_of(x, np.float32(1e-4), np.float32(-3 if signed else 39_997), attributes)
    old = graph.copy()
    graph.opsets[""], graph.ir_version = 21, 10
    ExpandFakeQuant()(graph)
    ExpandFakeQuant()(old)
    assert not any(node.domain for node in graph.nodes())
    results = [Session(g, fuse_qdq=False).run({"x": x})["y"] for g in (graph, old)]
    np.testing.assert_array_equal(*results)
    assert np.abs(results[0] - x)[np.abs(x) < 2].max() <= 0.51e-4


@pytest.mark.parametrize(
    ("bits", "narrow", "message"), [(12, 0, "12 bits; .* 2 to 8, or 16"), (1, 0, "1 bits"), (16, 1, "narrow")]
)
def test_refuses_grids_that_there_are_none_of(bits: int, narrow: int, message: str) -> None:
    attributes = {"bits": bits, "signed": 1, "narrow": narrow}
    graph = graph_of(np.zeros(2, np.float32), np.float32(1), np.float32(0), attributes)
    with pytest.raises(UnsupportedError, match=message):
        ExpandFakeQuant()(graph)
