"""Constants in which numbers of channels are written, and what is computed from shapes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.analysis.channels import find_groups
from onnxslim.ir.graph import DType, Graph, Value
from onnxslim.ir.verify import verify
from onnxslim.runtime.checker import random_feeds
from onnxslim.runtime.session import Session
from passes.prune import CutChannels
from tests.passes.prune.conftest import Net, cut_errors


def cut(graph: Graph, **cuts: list[int]) -> Graph:
    """The cut graph, which runs with other batches too."""
    feeds = [random_feeds(graph, seed=batch, batch=batch) for batch in (1, 3)]
    assert max(cut_errors(graph, cuts, feeds)) <= 1e-5
    twin = graph.copy()
    CutChannels(cuts)(twin)
    verify(twin)
    return twin


def numbers(graph: Graph, node: str, slot: int) -> object:
    value = graph.input(graph.node_named(node), slot)
    assert value is not None
    assert value.array is not None
    return value.array.tolist()


def part_of_shape(net: Net, x: Value, *places: int) -> Value:
    """Shape → Gather, as exporters ask for sizes."""
    return net.op("Gather", net.op("Shape", x), net.constant("at", list(places)))


def test_a_reshape_whose_target_is_computed() -> None:
    """[batch, channels, −1], with the number of channels asked for: what a cut makes of it is taken off."""
    net = Net("N", 3, 4, 5)
    a = net.conv(net.x, 6, "a")
    target = net.op("Concat", part_of_shape(net, a, 0, 1), net.constant("rest", [-1]), axis=0)
    y = net.op("Reshape", a, target, name="r")
    y = net.op("MatMul", net.op("Transpose", y, perm=[0, 2, 1]), net.weight("b.w", 6, 2))
    graph = cut(net.finish(y), a=[0, 4])
    assert graph.value("r").shape == ("N", 4, 20)


def test_a_reshape_whose_target_is_a_whole_shape() -> None:
    net = Net("N", 3, 4, 5)
    a = net.conv(net.x, 6, "a")
    flat = net.op("Reshape", a, net.constant("flat", [0, 6, -1]), name="there")
    y = net.op("Reshape", net.op("Tanh", flat), net.op("Shape", a), name="back")
    graph = cut(net.finish(net.conv(y, 2, "b")), a=[1, 2, 3])
    assert (numbers(graph, "there", 1), graph.value("back").shape) == ([0, 3, -1], ("N", 3, 4, 5))


def test_a_number_written_in_a_computed_target() -> None:
    """Concat of the batch and of numbers that count channels and pixels."""
    net = Net("N", 3, 2, 2)
    a = net.conv(net.x, 6, "a")
    target = net.op("Concat", part_of_shape(net, net.x, 0), net.constant("rest", [24]), axis=0)
    graph = net.finish(net.gemm(net.op("Reshape", a, target, name="r"), 2, "b"))
    assert cut(graph, a=[5]).value("r").shape == ("N", 20)


def test_zeros_and_free_sizes_in_a_target_stay() -> None:
    net = Net("N", 3, 2, 2)
    y = net.op("Reshape", net.conv(net.x, 6, "a"), net.constant("s", [0, 0, -1]), name="r")
    y = net.op("Reshape", y, net.constant("t", [-1, 24]), name="flat")
    graph = cut(net.finish(net.gemm(y, 2, "b")), a=[0])
    assert numbers(graph, "r", 1) == [0, 0, -1]
    assert numbers(graph, "flat", 1) == [-1, 20]


def test_one_constant_that_several_nodes_share() -> None:
    """Each gets what it needs, and what else reads the constant keeps it."""
    net = Net("N", 3, 2, 2)
    shape = net.constant("shape", [0, 6, 4])
    a = net.op("Reshape", net.conv(net.x, 6, "a"), shape, name="ra")
    b = net.op("Reshape", net.conv(net.x, 6, "b"), shape, name="rb")
    c = net.op("Reshape", net.conv(net.x, 6, "c"), shape, name="rc")
    y = [net.op("MatMul", net.weight(f"{v.name}.w", 2, 6), v) for v in (a, b, c)]
    graph = cut(net.finish(*y), a=[0, 1], b=[2])
    assert [numbers(graph, name, 1) for name in ("ra", "rb", "rc")] == [[0, 4, 4], [0, 5, 4], [0, 6, 4]]
    assert graph.value("shape").array is not None


def test_expand() -> None:
    net = Net("N", 3, 4, 5)
    pooled = net.op("GlobalAveragePool", net.conv(net.x, 6, "a"))
    y = net.op("Expand", pooled, net.constant("to", [6, 4, 5]), name="e")
    y = net.op("Expand", net.op("GlobalMaxPool", y), net.constant("one", [1, 1, 4, 5]), name="f")
    y = net.op("Add", y, net.op("Expand", pooled, net.op("Shape", y), name="g"))
    graph = cut(net.finish(net.conv(y, 2, "b")), a=[0, 5])
    assert (numbers(graph, "e", 1), numbers(graph, "f", 1)) == ([4, 4, 5], [1, 1, 4, 5])
    assert graph.value("g").shape == ("N", 4, 4, 5)


def test_what_is_expanded_to_the_shape_of_cut_channels_keeps_its_own() -> None:
    net = Net(2, 3, 4, 5)
    a = net.conv(net.x, 6, "a")
    wide = net.op("Expand", net.op("ReduceMean", net.x, net.constant("c", [1])), net.op("Shape", a), name="wide")
    graph = cut(net.finish(net.conv(a, 2, "b"), net.conv(wide, 2, "d")), a=[0, 1])
    assert graph.value("wide").shape == (2, 6, 4, 5)


def test_a_number_of_channels_that_is_computed_with_stays_what_it_was() -> None:
    """A mean written out: what is divided by is not a matter of what was cut."""
    net = Net(2, 3, 4, 5)
    a = net.conv(net.x, 6, "a")
    count = net.op("Cast", part_of_shape(net, a, 1), to=1)
    y = net.op("Div", net.op("ReduceSum", a, net.constant("axes", [1])), count)
    last = net.op("Gather", net.op("Shape", a, start=1, end=3), net.constant("zero", [0]))
    graph = cut(net.finish(y, net.op("Add", last, net.constant("none", [0]))), a=[0, 3])
    assert sum(node.op == "Add" for node in graph.nodes()) == 3  # one behind each Shape, and the one that was there


def test_a_shape_of_which_only_other_sizes_are_read_is_left() -> None:
    net = Net("N", 3, 4, 5)
    a = net.conv(net.x, 6, "a")
    rows = net.op("Slice", net.op("Shape", a), net.constant("two", [2]), net.constant("four", [4]))
    target = net.op("Concat", part_of_shape(net, a, 0), net.constant("six", [6]), rows, axis=0)
    y = net.op("Resize", a, None, None, target, name="r", mode="nearest")
    y = net.op("Resize", net.conv(y, 6, "b"), None, None, net.constant("s", [9, 6]), mode="nearest", axes=[2, 1])
    graph = cut(net.finish(net.conv(y, 2, "c")), a=[0], b=[1, 2])
    assert [node.op for node in graph.nodes()].count("Add") == 1  # before the Resize alone
    assert numbers(graph, "resize", 3) == [9, 4]


def test_a_target_that_cannot_be_followed_pins() -> None:
    net = Net(2, 3, 2, 2)
    a = net.conv(net.x, 6, "a")
    target = net.graph.add_input("target", DType.INT64, (3,))
    y = net.op("Reshape", a, target, name="r")
    net.graph.set_type(y, DType.FLOAT, (2, 6, 4))
    found = find_groups(net.finish(net.op("MatMul", net.weight("b.w", 2, 6), y))).by_name
    assert found["a"].pinned == ("node 'r' (Reshape) is told its size by something unknown",)


def test_split_into_a_number_of_parts() -> None:
    """Uneven ones: 7 into 3 are 3, 3 and 1; then what is left of each."""
    net = Net("N", 3, 4, 5)
    parts = net.results("Split", net.conv(net.x, 7, "a"), axis=1, outputs=3, num_outputs=3)
    ends = [net.conv(part, 2, f"b{place}") for place, part in enumerate(parts)]
    graph = net.finish(*ends)
    assert [(g.name, g.units) for g in find_groups(graph).free] == [("a[0:3]", 3), ("a[3:6]", 3), ("a[6:7]", 1)]
    graph = cut(graph, **{"a[0:3]": [1], "a[3:6]": [0, 2]})
    assert numbers(graph, "split", 1) == [2, 1, 1]
    assert graph.node_named("split").attr("num_outputs") is None


def test_slices_with_limits_from_the_back_and_of_32_bits() -> None:
    net = Net("N", 3, 4, 5)
    a = net.conv(net.x, 8, "a")
    limits = [net.constant(name, np.array(n, np.int32)) for name, n in (("s", [-7, 1]), ("e", [-2, 3]), ("x", [1, -2]))]
    y = net.op("Slice", a, *limits, name="cut")
    graph = net.finish(net.conv(y, 2, "b"))
    graph = cut(graph, **{"a[1:6]": [0, 4], "a[0:8]": [1, 2]})
    assert (numbers(graph, "cut", 1), numbers(graph, "cut", 2)) == ([1, 1], [4, 3])
    assert graph.operand(graph.node_named("cut"), 1).dtype is DType.INT32


def test_slices_of_other_axes_keep_their_limits() -> None:
    net = Net("N", 3, 4, 5)
    y = net.op(
        "Slice", net.conv(net.x, 8, "a"), net.constant("s", [-3]), net.constant("e", [99]), net.constant("x", [3])
    )
    graph = cut(net.finish(net.conv(y, 2, "b")), a=[0])
    assert (numbers(graph, "slice", 1), numbers(graph, "slice", 2)) == ([-3], [99])


@pytest.mark.parametrize("indices", [np.int64(-2), np.array([[4, 1]])])
def test_gather_by_number_follows_the_one_that_it_takes(indices: object) -> None:
    net = Net("N", 3, 4, 5)
    a = net.conv(net.x, 6, "a")
    taken = net.op("Gather", a, net.constant("at", indices), name="g", axis=1)
    graph = net.finish(net.conv(a, 2, "b"), taken)
    (free,) = find_groups(graph).free
    graph = cut(graph, **{free.name: [0]})
    assert numbers(graph, "g", 1) == (np.asarray(indices) % 6 - 1).tolist()


def test_gather_of_a_list_loses_what_went() -> None:
    net = Net("N", 3, 4, 5)
    y = net.op(
        "Gather", net.conv(net.x, 4, "a"), net.constant("at", np.array([3, 1, 0, 2], np.int32)), name="g", axis=1
    )
    graph = cut(net.finish(net.conv(y, 2, "b")), a=[1])
    assert numbers(graph, "g", 1) == [2, 0, 1]
    assert graph.operand(graph.node_named("g"), 1).dtype is DType.INT32


def test_pads_of_channels() -> None:
    net = Net("N", 3, 4, 4)
    a = net.conv(net.x, 4, "a")
    y = net.op("Pad", a, net.constant("pads", [0, 2, 1, 0, 0, 2, 1, 0]), net.constant("v", np.float32(0.5)), name="p")
    b = net.conv(net.op("Pad", a, net.constant("rows", [0, 0, 1, 0, 0, 0, 1, 0])), 8, "b")
    graph = net.finish(net.conv(net.op("Add", y, b), 2, "c"))
    graph = cut(graph, a=[0, 1], b=[1, 2])
    assert numbers(graph, "p", 1) == [0, 1, 1, 0, 0, 1, 1, 0]


def test_depthwise_groups_of_both_kinds() -> None:
    net = Net("N", 3, 4, 4)
    b = net.conv(net.conv(net.x, 6, "a"), 12, "b", 3, group=6)
    c = net.op("ConvTranspose", b, net.weight("c.w", 12, 1, 2, 2), name="c", group=12)
    graph = net.finish(net.conv(net.conv(c, 8, "d", group=2), 2, "e"))
    assert {g.name: (g.units, g.width) for g in find_groups(graph).free} == {"a": (3, 2), "d": (4, 2)}
    graph = cut(graph, a=[1], d=[0, 3])
    assert [graph.node_named(name).attr("group") for name in "bcd"] == [4, 8, 2]


def test_a_grouped_convolution_may_become_a_depthwise_one_and_be_cut_again() -> None:
    net = Net("N", 3, 4, 4)
    b = net.conv(net.conv(net.x, 6, "a"), 6, "b", 3, group=3)
    graph = cut(net.finish(net.conv(b, 2, "c")), a=[1], b=[0])
    assert graph.node_named("b").attr("group") == 3
    assert graph.value("b.w").shape == (3, 1, 3, 3)
    (group,) = find_groups(graph).free
    assert [node.name for node in group.makers] == ["a", "b"]
    assert cut(graph, a=[0, 2]).node_named("b").attr("group") == 1


def test_squeeze_says_its_axes_once_a_channel_may_be_the_last() -> None:
    n = Net(2, 3, 4, 4)
    s = n.op("Squeeze", n.op("GlobalAveragePool", n.conv(n.x, 8, "a")))
    graph = n.finish(n.gemm(s, 3, "o"))
    assert max(cut_errors(graph, {"a": list(range(7))})) <= 1e-5


def test_a_shape_that_is_an_output_tells_what_was() -> None:
    n = Net("N", 3, 4, 4)
    a = n.conv(n.x, 8, "a")
    graph = n.finish(n.conv(a, 2, "o"), n.op("Shape", a, name="told", start=1))
    less = cut(graph, a=[0, 5])
    assert [value.name for value in less.outputs] == ["o", "told"]
    assert Session(less).run({"x": np.zeros((2, 3, 4, 4), np.float32)})["told"].tolist() == [8, 4, 4]
