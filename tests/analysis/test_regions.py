"""Quantisation regions: fused tails, shared grids, integer ops between quantised ones, and reasons for the rest."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.analysis.regions import find_regions, fused_tail, hands_on, weight_axis
from onnxslim.builders import mobilenet_v1, mobilenet_v2, resnet, vgg
from onnxslim.graph import DType, Graph, Value
from onnxslim.targets import load_target

X64 = load_target("x64")


def conv(graph: Graph, x: Value, out: int = 4, inner: int = 4, name: str = "conv") -> Value:
    w = graph.add_constant(f"{name}.w", np.ones((out, inner, 1, 1), np.float32))
    return graph.op("Conv", x, w, name=name)


def start(channels: int = 4) -> tuple[Graph, Value]:
    graph = Graph()
    return graph, graph.add_input("x", DType.FLOAT, ["N", channels, 4, 4])


def sites(graph: Graph) -> list[list[str]]:
    return [[site.value.name for site in group.sites] for group in find_regions(graph, X64).groups]


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        ([], "conv"),
        (["Relu"], "Relu"),
        (["BatchNormalization", "Relu"], "Relu"),
        (["BatchNormalization"], "BatchNormalization"),
        (["Relu", "Relu"], "Relu"),
        (["Sigmoid"], "conv"),
        (["Relu", "BatchNormalization"], "Relu"),
    ],
)
def test_fused_tail(ops: list[str], expected: str) -> None:
    graph, x = start()
    y = conv(graph, x)
    for op in ops:
        extra = [graph.add_constant("p", np.ones(4, np.float32)) for _ in range(4)] if op.startswith("Batch") else []
        y = graph.op(op, y, *extra)
    graph.add_output(y)
    assert fused_tail(graph, graph.node_named("conv")).name == expected


@pytest.mark.parametrize(("low", "expected"), [(0.0, "Clip"), (-1.0, "conv"), (None, "conv")])
def test_only_clips_from_zero_fuse(low: float | None, expected: str) -> None:
    graph, x = start()
    bound = graph.add_input("low", DType.FLOAT, []) if low is None else graph.add_constant("low", np.float32(low))
    graph.add_output(graph.op("Clip", conv(graph, x), bound))
    assert fused_tail(graph, graph.node_named("conv")).name == expected


def test_tail_ends_where_another_node_or_the_caller_reads() -> None:
    graph, x = start()
    y = conv(graph, x)
    graph.add_output(graph.op("Relu", y))
    graph.add_output(graph.op("Sigmoid", y))
    assert fused_tail(graph, graph.node_named("conv")).name == "conv"


def test_concat_chain_is_one_group() -> None:
    graph, x = start()
    a, b, c = (conv(graph, x, name=n) for n in "abc")
    y = graph.op("Concat", graph.op("Concat", a, b, axis=1), c, axis=1)
    graph.add_output(graph.op("Sigmoid", conv(graph, graph.op("MaxPool", y, kernel_shape=[2, 2]), 2, 12, "last")))
    assert sites(graph) == [["x"], ["a", "b", "c"], ["last"]]


def test_add_joins_only_between_quantised_ops() -> None:
    graph, x = start()
    a, b = conv(graph, x, name="a"), conv(graph, x, name="b")
    inside = graph.op("Add", a, b, name="inside")
    last = conv(graph, inside, name="last")
    graph.add_output(graph.op("Add", last, graph.op("Sigmoid", last), name="outside"))
    regions = find_regions(graph, X64)
    assert [n.name for n in regions.integer] == ["inside"]
    assert [(n.name, why) for n, why in regions.refused] == [
        ("", "no integer kernel for Sigmoid on target 'x64'"),
        ("outside", "not between quantised ops"),
    ]


def test_chain_of_adds_joins_as_a_whole() -> None:
    graph, x = start()
    total = conv(graph, x, name="first")
    for i in range(4):
        total = graph.op("Add", total, conv(graph, total, name=f"c{i}"), name=f"add{i}")
    graph.add_output(graph.op("Softmax", conv(graph, total, name="last")))
    assert [n.name for n in find_regions(graph, X64).integer] == ["add0", "add1", "add2", "add3"]


def test_constant_operand_keeps_add_in_float() -> None:
    graph, x = start()
    y = graph.op("Add", conv(graph, x), graph.add_constant("c", np.ones((1, 4, 1, 1), np.float32)), name="add")
    graph.add_output(conv(graph, y, name="last"))
    assert find_regions(graph, X64).integer == ()
    assert sites(graph) == [["x"], ["conv"], ["add"], ["last"]]


def test_pad_hands_on_zeros_only() -> None:
    graph, x = start()
    pads = graph.add_constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    ones = graph.add_constant("one", np.float32(1))
    for name, extra in (("zeros", ()), ("ones", (ones,))):
        graph.op("Pad", x, pads, *extra, name=name)
    assert [hands_on(graph, graph.node_named(name), X64) for name in ("zeros", "ones")] == [True, False]


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "axis"),
    [
        ("Conv", (8, 4, 3, 3), {}, 0),
        ("ConvTranspose", (4, 8, 3, 3), {}, 1),
        ("ConvTranspose", (4, 8, 3, 3), {"group": 2}, None),
        ("Gemm", (4, 8), {}, 1),
        ("Gemm", (8, 4), {"transB": 1}, 0),
        ("MatMul", (4, 8), {}, 1),
        ("MatMul", (2, 4, 8), {}, None),
    ],
)
def test_weight_axis(op: str, shape: tuple[int, ...], attributes: dict[str, int], axis: int | None) -> None:
    graph, x = start()
    w = graph.add_constant("w", np.zeros(shape, np.float32))
    graph.op(op, x, w, name="n", **attributes)
    assert weight_axis(graph.node_named("n"), w) == axis


@pytest.mark.parametrize(
    ("attributes", "bias", "why"),
    [
        ({"alpha": 0.5}, True, "alpha = 1"),
        ({"beta": 0.5}, True, "beta = 1"),
    ],
)
def test_gemm_factors_are_refused(attributes: dict[str, float], bias: bool, why: str) -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ["N", 4])
    w, b = graph.add_constant("w", np.ones((4, 2), np.float32)), graph.add_constant("b", np.ones(2, np.float32))
    graph.add_output(graph.op("Gemm", x, w, b if bias else None, **attributes))
    regions = find_regions(graph, X64)
    assert regions.compute == ()
    assert why in regions.refused[0][1]


@pytest.mark.parametrize("graph", [mobilenet_v1(), mobilenet_v2(), resnet(), vgg()], ids=["v1", "v2", "resnet", "vgg"])
def test_built_networks_are_quantised_throughout(graph: Graph) -> None:
    regions = find_regions(graph, X64)
    compute = [n for n in graph.nodes() if n.op in ("Conv", "Gemm")]
    assert list(regions.compute) == compute
    assert len(regions.weights) == len(compute)
    adds = [n for n in graph.nodes() if n.op == "Add"]
    assert set(adds) <= set(regions.integer)
    assert regions.refused == ()
    names = [site.value.name for group in regions.groups for site in group.sites]
    assert len(set(names)) == len(names)
