"""Heads of attention: ONNX Runtime's own op, and one layer for queries, keys and values that is sliced or split."""

from __future__ import annotations

import numpy as np
import pytest

import onnxslim
from onnxslim.analysis.channels import find_groups
from onnxslim.analysis.cost import cost
from onnxslim.ir.graph import DType, Graph, Value
from onnxslim.pruning.footprint import Footprint
from passes.prune import CutChannels
from tests.analysis.channels.conftest import Net, each, groups_of, index

HEADS, WIDTHS = 3, (6, 6, 12)
"""Of queries, keys and values, all heads together."""


def attention(widths: tuple[int, ...] = WIDTHS, *further: Value | None, given: bool = True, net: Net | None = None,
              **attributes: object) -> Graph:  # fmt: skip
    """x [N, T, 4] → MatMul "in" → Attention "a" → MatMul "out"."""
    net = Net("N", "T", 4) if net is None else net
    net.graph.opsets["com.microsoft"] = 1
    x = net.op("MatMul", net.x, net.weight("in.w", 4, 5), name="in")
    w, b = net.weight("a.w", 5, sum(widths)), net.weight("a.b", sum(widths))
    sizes = list(widths) if given else None
    y = net.op("Attention", x, w, b, *further, name="a", domain="com.microsoft", num_heads=HEADS,
               qkv_hidden_sizes=sizes, **attributes)  # fmt: skip
    return net.finish(net.op("MatMul", y, net.weight("out.w", widths[2], 3), name="out"))


def columns(widths: tuple[int, ...]) -> list[list[int]]:
    """Of the merged weights, by head."""
    starts = np.cumsum([0, *widths[:2]])
    parts = [s + np.arange(width).reshape(HEADS, -1) for s, width in zip(starts, widths)]
    return np.concatenate(parts, axis=1).tolist()


@pytest.mark.parametrize("unidirectional", [0, 1])
@pytest.mark.parametrize(("widths", "given"), [(WIDTHS, True), ((6, 6, 6), True), ((6, 6, 6), False)])
def test_a_head_is_its_queries_keys_and_values(widths: tuple[int, ...], given: bool, unidirectional: int) -> None:
    graph = attention(widths, given=given, unidirectional=unidirectional)
    groups = groups_of(graph)  # every cut of it is run, and compared with the mask
    assert [(group.name, group.units) for group in groups.free] == [("in", 5), ("a", HEADS)]
    found = index(groups.by_name["a"])
    assert found["a.w:1"] == found["a.b:0"] == columns(widths)
    assert found["out.w:0"] == each(HEADS, widths[2] // HEADS)
    cut = graph.copy()
    CutChannels({"a": [1]})(cut)
    node = cut.node_named("a")
    assert node.attr("num_heads") == HEADS - 1
    assert node.attr("qkv_hidden_sizes") == ([width * 2 // 3 for width in widths] if given else None)


def test_positions_of_each_head_go_with_it() -> None:
    """A table for each sample: ONNX Runtime 1.19.2 reads one for all of them beyond its end."""
    net = Net(2, 4, 4)
    table = net.weight("positions", 2, HEADS, 4, 4)
    group = groups_of(attention(WIDTHS, None, None, table, net=net)).by_name["a"]
    assert index(group)["positions:1"] == each(HEADS)


def test_positions_for_all_heads_stay() -> None:
    """Which ONNX Runtime 1.19.2 does not run yet."""
    net = Net("N", 4, 4)
    graph = attention(WIDTHS, None, None, net.weight("positions", 1, 1, 4, 4), net=net)
    group = find_groups(graph).by_name["a"]
    assert not group.pinned
    assert "positions:1" not in index(group)


def test_what_is_remembered_pins_heads() -> None:
    net = Net("N", "T", 4)
    past = net.graph.add_input("past", DType.FLOAT, (2, "N", HEADS, "P", 2))
    (why,) = find_groups(attention((6, 6, 6), None, past, net=net)).by_name["a"].pinned
    assert why == "node 'a' (com.microsoft.Attention) meets 'past' there, whose axis cannot be cut"


def test_weights_that_are_computed_make_no_heads() -> None:
    net = Net("N", 4, 4)
    net.graph.opsets["com.microsoft"] = 1
    w = net.graph.add_input("w", DType.FLOAT, (4, 18))
    y = net.op("Attention", net.x, w, net.weight("b", 18), name="a", domain="com.microsoft", num_heads=HEADS)
    graph = net.finish(net.op("MatMul", y, net.weight("out.w", 6, 3), name="out"))
    assert find_groups(graph).free == ()


@pytest.mark.parametrize("sizes", [[6, 12], [6, 6, 6, 6], [-6, 18, 12], [0, 12, 12], [5, 7, 12], [6, 6, 6]])
def test_sizes_that_are_no_heads_make_none(sizes: list[int]) -> None:
    """And end nowhere in a traceback, as a damaged file may say anything."""
    graph = attention()
    graph.set_attribute(graph.node_named("a"), "qkv_hidden_sizes", sizes)
    assert [group.name for group in find_groups(graph).groups if not group.pinned] == ["in"]


@pytest.mark.parametrize("heads", [0, -3, 4])
def test_numbers_of_heads_that_do_not_divide_make_none(heads: int) -> None:
    graph = attention()
    graph.set_attribute(graph.node_named("a"), "num_heads", heads)
    assert [group.name for group in find_groups(graph).groups if not group.pinned] == ["in"]


def macs(graph: Graph) -> int | None:
    return next(row.macs for row in cost(graph).by_node if row.op == "Attention")


def test_cost_of_what_is_left() -> None:
    """By hand, for two places: each is multiplied with the weights, and its queries and values with both places'."""
    graph = attention(net=Net("N", 2, 4))
    assert macs(graph) == 2 * (5 * 24 + 2 * (6 + 12))
    group = find_groups(graph).by_name["a"]
    cut = graph.copy()
    CutChannels({"a": [0]})(cut)
    assert macs(cut) == 2 * (5 * 16 + 2 * (4 + 8))
    footprint = Footprint(graph, {"a": group})
    footprint.set("a", HEADS - 1)
    assert (footprint.size.macs, footprint.size.params) == (cost(cut).macs, cost(cut).params)


@pytest.mark.parametrize("layer", ["Gemm", "MatMul", "Conv"])
@pytest.mark.parametrize("parts", ["Slice", "Split"])
def test_a_packed_layer_is_cut_by_heads(layer: str, parts: str) -> None:
    """One layer makes queries, keys and values of 3 heads of 2; of each of them goes what is of a head that goes."""
    net = Net(2, 4, 5)  # [N, T, features]
    features = 3 * HEADS * 2
    x = net.x
    if layer == "Gemm":
        x = net.gemm(net.op("Reshape", x, net.constant("rows", [8, 5])), features, "qkv")
        x = net.op("Reshape", x, net.constant("places", [2, 4, features]))
    elif layer == "Conv":
        y = net.conv(net.op("Transpose", x, perm=[0, 2, 1], name="first"), features, "qkv", bias=True)
        x = net.op("Transpose", y, perm=[0, 2, 1], name="last")
    else:
        x = net.op("MatMul", x, net.weight("qkv.w", 5, features), name="qkv")
    if parts == "Split":
        q, k, v = net.results("Split", x, net.constant("sizes", [HEADS * 2] * 3), outputs=3, axis=2)
    else:
        limits = [net.constant(f"limit{i}", [HEADS * 2 * i]) for i in range(4)]
        axis = net.constant("axis", [2])
        q, k, v = (net.op("Slice", x, limits[i], limits[i + 1], axis, name=f"part{i}") for i in range(3))
    shape = net.constant("heads", [2, 4, HEADS, 2])
    q, k, v = (net.op("Transpose", net.op("Reshape", part, shape), perm=order)
               for part, order in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3])))  # fmt: skip
    y = net.op("MatMul", net.op("Softmax", net.op("MatMul", q, k, name="scores")), v, name="context")
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.constant("merged", [2, 4, HEADS * 2]))
    graph = net.finish(net.op("MatMul", y, net.weight("out.w", HEADS * 2, 3), name="out"))
    (group,) = groups_of(graph).free
    assert (group.name, group.units) == ("qkv", HEADS)
    assert next(iter(index(group).values())) == columns((6, 6, 6))


@pytest.mark.parametrize("criterion", ["l1", "fpgm", "random"])
def test_heads_are_scored_and_cut_to_a_target(criterion: str) -> None:
    found = onnxslim.prune(attention(net=Net("N", 2, 4)), macs=0.7, multiple=1, criterion=criterion)
    assert found.plan.after.macs <= 0.7 * found.plan.before.macs
    assert cost(found.graph).macs == found.plan.after.macs
    node = found.graph.node_named("a")
    assert 1 <= node.attr("num_heads") < HEADS
    assert node.attr("qkv_hidden_sizes") == [width * node.attr("num_heads") // HEADS for width in WIDTHS]
