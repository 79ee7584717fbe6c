"""Groups of whole graphs: names and order, what is shared, what nobody can cut, what nobody understands."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxslim.analysis.channels import Axis, find_groups
from onnxslim.builders import mobilenet_v1, mobilenet_v2, small_cnn, vgg
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.text import to_text
from tests.analysis.channels.conftest import Net, each, groups_of, index


def test_builders_have_the_groups_that_they_are_made_of() -> None:
    found = find_groups(vgg((8, 0, 16), 5, 8, hidden=(12,)))
    assert [(g.name, g.units, g.width, bool(g.pinned)) for g in found.groups] == [
        ("conv1", 8, 1, False),
        ("conv3", 16, 1, False),
        ("hidden1", 12, 1, False),
        ("head", 5, 1, True),
    ]
    blocks = find_groups(mobilenet_v1(width=0.25, classes=5))
    assert sum(not group.pinned for group in blocks.groups) == 14
    assert all(len(group.makers) == 2 for group in blocks.free[:-1])  # a pointwise one and the depthwise one behind it


def test_finding_changes_nothing_and_repeats() -> None:
    graph = mobilenet_v2()
    before, mark = to_text(graph), graph.mark()
    first, second = find_groups(graph), find_groups(graph)
    assert to_text(graph) == before
    assert list(graph.touched(mark)) == []
    assert [(g.name, index(g)) for g in first.groups] == [(g.name, index(g)) for g in second.groups]


def test_the_net_says_which_node_couples_two_axes() -> None:
    net = Net("N", 3, 5, 5)
    graph = net.finish(net.conv(net.op("Relu", net.conv(net.x, 4, "a")), 2, "b"))
    a, relu = graph.value("a"), graph.value("relu")
    edge = find_groups(graph).net.edges[Axis(a.id, 1), Axis(relu.id, 1)]
    assert graph.item(edge["node"]) is graph.producer(relu)


def test_groups_of_nodes_without_a_name_or_of_one_name() -> None:
    net = Net("N", 3, 5, 5)
    a, b = net.conv(net.x, 4, "a"), net.conv(net.x, 4, "b")
    c = net.conv(net.op("Concat", a, b, axis=1), 3, "c")
    graph = net.finish(net.conv(c, 2, "d"))
    for name, other in (("a", "twin"), ("b", "twin"), ("c", "")):
        graph.node_named(name).name = other
    assert [group.name for group in find_groups(graph).groups] == ["twin[0:4]", "twin[0:4]_2", "c", "d"]


def test_a_weight_that_two_nodes_share_is_cut_for_both() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    w = net.weight("w", 4, 4, 1, 1)
    y = net.op("Conv", net.op("Relu", net.op("Conv", a, w, name="b")), w, name="c")
    (group,) = groups_of(net.finish(net.conv(y, 2, "d"))).free
    assert [node.name for node in group.makers] == ["a", "b", "c"]
    assert index(group)["w:0"] == index(group)["w:1"] == each(4)


def test_a_constant_that_is_read_where_nothing_can_be_cut_stays() -> None:
    """Whichever of its readers comes first."""
    for order in (0, 1):
        net = Net("N", 4, 5, 5)
        c = net.weight("c", 4, 1, 1)
        early = net.op("Mul", net.x, c, name="early") if order == 0 else None
        y = net.op("Mul", net.conv(net.x, 4, "a"), c, name="scaled")
        early = net.op("Mul", net.x, c, name="early") if early is None else early
        found = groups_of(net.finish(net.conv(y, 2, "b"), net.op("Neg", early))).by_name
        assert len(found["a"].pinned) >= 1
        assert "early" in found["a"].pinned[0]


def test_a_weight_of_a_layer_that_reads_the_input_is_not_cut_with_another() -> None:
    net = Net("N", 4, 5, 5)
    w = net.weight("w", 4, 4, 1, 1)
    first = net.op("Conv", net.x, w, name="first")
    a = net.conv(net.x, 4, "a")
    second = net.op("Conv", a, w, name="second")
    found = groups_of(net.finish(net.conv(net.op("Concat", first, second, axis=1), 2, "b"))).by_name
    assert found["a"].pinned == ("node 'first' (Conv) has no rule for channels there",)


def test_outputs_keep_their_channels_and_what_meets_them() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    y = net.op("Add", a, net.conv(a, 4, "b"))
    found = groups_of(net.finish(y, a))
    (group,) = found.groups
    assert group.pinned == ("'a' is an output of the graph", "'add' is an output of the graph")
    assert found.free == ()


def test_an_op_that_nobody_knows_pins() -> None:
    net = Net("N", 3, 5, 5)
    a, b = net.conv(net.x, 4, "a"), net.conv(net.x, 4, "b")
    net.graph.set_type(net.op("Mystery", a, name="m", domain="com.example"), DType.FLOAT, ("N", 4, 5, 5))
    net.graph.add_output(net.graph.value("m"))
    c = net.op("CumSum", b, net.constant("axis", np.int64(1)), name="s")
    found = find_groups(net.finish(c)).by_name
    assert found["a"].pinned == ("node 'm' (com.example.Mystery) has no rule for channels",)
    assert found["b"].pinned == ("node 's' (CumSum) has no rule for channels",)


def test_a_local_function_of_a_known_name_pins() -> None:
    net = Net("N", 3, 5, 5)
    y = net.op("Gelu", net.conv(net.x, 4, "a"), name="g", domain="com.microsoft")
    net.graph.set_type(y, DType.FLOAT, ("N", 4, 5, 5))
    net.graph.add_output(y)
    assert find_groups(net.graph).by_name["a"].pinned == ("'g' is an output of the graph",)
    body = [helper.make_node("Softmax", ["x"], ["y"], axis=1)]
    imports = [helper.make_opsetid("", 18)]
    net.graph.functions.append(helper.make_function("com.microsoft", "Gelu", ["x"], ["y"], body, imports))
    assert "node 'g' (com.microsoft.Gelu) has no rule for channels" in find_groups(net.graph).by_name["a"].pinned


def branch(name: str, captured: str) -> onnx.GraphProto:
    node = helper.make_node("Relu", [captured], [name])
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, 1, None)])


def test_what_a_body_captures_stays() -> None:
    net = Net("N", 3, 5, 5)
    a, b = net.conv(net.x, 4, "a"), net.conv(net.x, 4, "b")
    condition = net.graph.add_input("condition", DType.BOOL, ())
    attributes = {"then_branch": branch("then", "a"), "else_branch": branch("else", "a")}
    node = net.graph.add_node("If", [condition], 1, attributes, name="choice")
    net.graph.add_capture(node, a, "a")
    y = net.graph.result(node)
    net.graph.set_type(y, DType.FLOAT, ("N", 4, 5, 5))
    graph = net.finish(net.conv(net.op("Add", y, b), 2, "c"))
    found = find_groups(graph).by_name
    assert found["a"].pinned == ("node 'choice' (If) has no rule for channels",)
    why = "node 'add' (Add) meets what node 'choice' (If) makes there, whose axis cannot be cut"
    assert found["b"].pinned == (why,)


def test_a_constant_that_a_body_captures_stays() -> None:
    net = Net("N", 3, 5, 5)
    y = net.op("Mul", net.conv(net.x, 4, "a"), net.weight("c", 4, 1, 1))
    condition = net.graph.add_input("condition", DType.BOOL, ())
    attributes = {"then_branch": branch("then", "c"), "else_branch": branch("else", "c")}
    node = net.graph.add_node("If", [condition], 1, attributes, name="choice")
    net.graph.add_capture(node, net.graph.value("c"), "c")
    out = net.graph.result(node)
    net.graph.set_type(out, DType.FLOAT, (4, 1, 1))
    found = find_groups(net.finish(net.conv(y, 2, "b"), out)).by_name
    assert found["a"].pinned == ("node 'choice' (If) has no rule for channels",)


def test_initialisers_that_a_caller_may_replace_stay() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    net.graph.feed(net.graph.value("a.w"))
    found = find_groups(net.finish(net.conv(a, 2, "b"))).by_name
    assert found["a"].pinned == ("node 'a' (Conv) meets 'a.w' there, whose axis cannot be cut",)


def test_an_axis_of_no_length_is_nothing_to_cut() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    none = net.op("Slice", a, net.constant("s", [4]), net.constant("e", [9]), net.constant("axis", [1]), name="none")
    found = groups_of(net.finish(net.conv(net.op("Concat", none, a, axis=1), 2, "b")))
    assert [group.units for group in found.free] == [4]


@pytest.mark.parametrize("unknown", [None, "C"])
def test_channels_of_unknown_number_stay(unknown: str | None) -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    y = net.op("Mystery", a, name="m", domain="com.example")
    net.graph.set_type(y, DType.FLOAT, ("N", unknown, 5, 5))
    z = net.op("Add", y, net.conv(net.x, 4, "b"), name="sum")
    net.graph.set_type(z, DType.FLOAT, ("N", unknown, 5, 5))
    found = find_groups(net.finish(net.op("Relu", z))).by_name
    assert found["b"].pinned


def test_what_is_counted_stays() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    size = net.op("Cast", net.op("Size", a, name="size"), to=1)
    found = groups_of(net.finish(net.op("Div", net.conv(a, 2, "b"), size))).by_name
    assert found["a"].pinned == ("node 'size' (Size) counts its elements",)


def test_older_opsets_are_refused() -> None:
    graph = small_cnn()
    graph.opsets[""] = 12
    with pytest.raises(UnsupportedError, match="in opset 12, channels are found in opset 13 and later: convert it"):
        find_groups(graph)


def test_no_channels_at_all() -> None:
    graph = Graph("empty")
    x = graph.add_input("x", DType.FLOAT, ("N", 3))
    y = graph.op("Relu", x)
    graph.set_type(y, DType.FLOAT, ("N", 3))
    graph.add_output(y)
    assert find_groups(graph).groups == ()
