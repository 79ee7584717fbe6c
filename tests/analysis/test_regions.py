"""Quantisation regions: fused tails, shared grids, integer ops between quantised ones, and reasons for the rest."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.analysis.regions import find_regions, fused_tail, hands_on, weight_axis
from onnxslim.builders import mobilenet_v1, mobilenet_v2, resnet, vgg
from onnxslim.ir.graph import DType, Graph, Value
from onnxslim.targets import load_target

X64 = load_target("x64")


def conv(graph: Graph, x: Value, out: int = 4, inner: int = 4, name: str = "conv") -> Value:
    w = graph.add_constant(f"{name}.w", np.ones((out, inner, 1, 1), np.float32))
    return graph.op("Conv", x, w, name=name)


def start(channels: int = 4) -> tuple[Graph, Value]:
    graph = Graph()
    return graph, graph.add_input("x", DType.FLOAT, ["N", channels, 4, 4])


def sites(graph: Graph) -> list[str]:
    return [site.value.name for site in find_regions(graph, X64).sites]


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


def test_all_that_a_concat_joins_keeps_its_own_grid() -> None:
    graph, x = start()
    a, b, c = (conv(graph, x, name=n) for n in "abc")
    y = graph.op("Concat", graph.op("Concat", a, b, axis=1), c, axis=1)
    graph.add_output(graph.op("Sigmoid", conv(graph, graph.op("MaxPool", y, kernel_shape=[2, 2]), 2, 12, "last")))
    assert sites(graph) == ["x", "a", "b", "c", "Concat", "Concat_2", "last"]
    assert [n.op for n in find_regions(graph, X64).integer] == ["Concat", "Concat"]


def test_a_concat_that_no_kernel_reads_stays_in_float() -> None:
    graph, x = start()
    graph.add_output(graph.op("Concat", conv(graph, x, name="a"), conv(graph, x, name="b"), axis=1, name="all"))
    regions = find_regions(graph, X64)
    assert regions.integer == ()
    assert sites(graph) == ["x", "a", "b"]
    assert [(node.name, why) for node, why in regions.refused] == [("all", "not between quantised ops")]


def test_add_joins_only_between_quantised_ops() -> None:
    graph, x = start()
    a, b = conv(graph, x, name="a"), conv(graph, x, name="b")
    inside = graph.op("Add", a, b, name="inside")
    last = conv(graph, inside, name="last")
    graph.add_output(graph.op("Add", last, graph.op("Sigmoid", last), name="outside"))
    regions = find_regions(graph, X64)
    assert [n.name for n in regions.integer] == ["inside"]
    assert [(n.name, why) for n, why in regions.refused] == [
        ("", "not between quantised ops"),
        ("outside", "not between quantised ops"),
    ]


def test_silu_joins_and_hard_swish_has_no_kernel_of_its_own() -> None:
    graph, x = start()
    y = conv(graph, x, name="first")
    y = graph.op("Mul", y, graph.op("Sigmoid", y, name="sigmoid"), name="mul")
    y = graph.op("HardSwish", conv(graph, y, name="second"), name="swish")
    graph.add_output(conv(graph, y, name="last"))
    regions = find_regions(graph, X64)
    assert [n.name for n in regions.integer] == ["sigmoid", "mul"]
    assert [(n.name, why) for n, why in regions.refused] == [
        ("swish", "no integer kernel for HardSwish on target 'x64'")
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
    assert sites(graph) == ["x", "conv", "add", "last"]


def test_resize_hands_on_what_it_repeats() -> None:
    graph, x = start()
    scales = graph.add_constant("scales", np.array([1, 1, 2, 2], np.float32))
    for mode in ("nearest", "linear"):
        y = graph.op("Resize", conv(graph, x, name=f"before {mode}"), None, scales, name=mode, mode=mode)
        graph.add_output(conv(graph, y, name=f"after {mode}"))
    assert [hands_on(graph, graph.node_named(name), X64) for name in ("nearest", "linear")] == [True, False]
    refused = {node.name: why for node, why in find_regions(graph, X64).refused}
    assert refused == {"linear": "no integer kernel for Resize of mode 'linear' on target 'x64'"}
    assert sites(graph) == ["x", "before nearest", "after nearest", "before linear", "linear", "after linear"]


def test_pad_hands_on_zeros_only() -> None:
    graph, x = start()
    pads = graph.add_constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    ones = graph.add_constant("one", np.float32(1))
    for name, extra in (("zeros", ()), ("ones", (ones,))):
        graph.op("Pad", x, pads, *extra, name=name)
    assert [hands_on(graph, graph.node_named(name), X64) for name in ("zeros", "ones")] == [True, False]


@pytest.mark.parametrize("op", ["ConvTranspose", "ReduceMean", "Sqrt"])
def test_ops_without_an_integer_kernel_are_told(op: str) -> None:
    graph, x = start()
    more = {
        "ConvTranspose": [graph.add_constant("w", np.ones((4, 4, 1, 1), np.float32))],
        "ReduceMean": [graph.add_constant("axes", np.array([1]))],
    }
    y = graph.op(op, conv(graph, x), *more.get(op, []), name="n")
    graph.add_output(conv(graph, y, name="last"))
    refused = [(node.name, why) for node, why in find_regions(graph, X64).refused]
    assert refused == [("n", f"no integer kernel for {op} on target 'x64'")]


def test_softmax_is_left_in_float_by_choice() -> None:
    graph, x = start()
    graph.add_output(conv(graph, graph.op("Softmax", conv(graph, x), name="n"), name="last"))
    refused = [(node.name, why) for node, why in find_regions(graph, X64).refused]
    assert refused == [("n", "Softmax stays in float, which is faster than its integer kernel")]


@pytest.mark.parametrize(
    ("shape", "fits"), [((), True), ((1,), True), ((4,), True), ((1, 4), True), ((4, 1), False), ((4, 4), False)]
)
def test_a_gemm_adds_one_number_a_channel(shape: tuple[int, ...], fits: bool) -> None:
    """[M, 1] adds one a row: with M = N, nothing but its shape tells it from a bias."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, [4, 4])
    w, c = graph.add_constant("w", np.ones((4, 4), np.float32)), graph.add_constant("c", np.ones(shape, np.float32))
    graph.add_output(graph.op("Gemm", x, w, c, name="n"))
    regions = find_regions(graph, X64)
    assert bool(regions.compute) is fits
    assert fits or "one number a channel" in regions.refused[0][1]


def test_a_constant_on_the_left_stays_in_float() -> None:
    graph = Graph()
    x, w = graph.add_input("x", DType.FLOAT, [4, 4]), graph.add_constant("w", np.ones((4, 4), np.float32))
    graph.add_output(graph.op("MatMul", w, x, name="n"))
    regions = find_regions(graph, X64)
    assert regions.compute == ()
    assert "as the second operand only" in regions.refused[0][1]


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "axis"),
    [
        ("Conv", (8, 4, 3, 3), {}, 0),
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
    names = [site.value.name for site in regions.sites]
    assert len(set(names)) == len(names)
