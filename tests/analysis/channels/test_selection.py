"""Concat, Split, Slice, Gather, Pad: each index is followed to its place."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.analysis.channels import find_groups
from onnxslim.ir.graph import DType
from tests.analysis.channels.conftest import Net, each, groups_of, index


def shifted(units: int, by: int) -> list[list[int]]:
    return [[u + by] for u in range(units)]


def test_concat_puts_channels_behind_one_another() -> None:
    net = Net("N", 3, 5, 5)
    a, b = net.conv(net.x, 4, "a"), net.conv(net.x, 2, "b")
    inner = net.op("Concat", a, b, axis=1, name="inner")
    c = net.conv(inner, 3, "c")
    outer = net.op("Concat", inner, c, axis=-3, name="outer")
    found = groups_of(net.finish(net.conv(outer, 2, "d"))).by_name
    assert {name: group.units for name, group in found.items()} == {"a": 4, "b": 2, "c": 3, "d": 2}
    assert index(found["b"]) == {
        "b.w:0": each(2),
        "b:1": each(2),
        "inner:1": shifted(2, 4),
        "c.w:1": shifted(2, 4),
        "outer:1": shifted(2, 4),
        "d.w:1": shifted(2, 4),
    }
    assert index(found["c"]) == {"c.w:0": each(3), "c:1": each(3), "outer:1": shifted(3, 6), "d.w:1": shifted(3, 6)}


def test_concat_with_the_input_pins_the_inputs_channels_only() -> None:
    net = Net("N", 3, 5, 5)
    y = net.op("Concat", net.x, net.conv(net.x, 4, "a"), axis=1, name="cat")
    found = groups_of(net.finish(net.conv(y, 2, "b"))).by_name
    assert not found["a"].pinned
    assert index(found["a"])["cat:1"] == shifted(4, 3)


def test_concat_along_another_axis_couples() -> None:
    net = Net("N", 3, 5, 5)
    a, b = net.conv(net.x, 4, "a"), net.conv(net.x, 4, "b")
    y = net.op("Concat", a, b, a, axis=2)
    (group,) = groups_of(net.finish(net.conv(y, 2, "c"))).free
    assert [node.name for node in group.makers] == ["a", "b"]


def test_concat_of_a_value_with_itself() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    y = net.op("Concat", a, a, axis=1, name="cat")
    (group,) = groups_of(net.finish(net.conv(y, 2, "b"))).free
    assert index(group)["cat:1"] == each(4, 2, step=4)


def test_split() -> None:
    """Halves that meet again are cut alike; the third part goes its own way."""
    net = Net("N", 3, 5, 5)
    parts = net.results("Split", net.conv(net.x, 10, "a"), net.constant("sizes", [4, 4, 2]), axis=1, outputs=3)
    y = net.op("Concat", net.op("Add", parts[0], parts[1]), parts[2], axis=1, name="cat")
    found = groups_of(net.finish(net.conv(y, 2, "b"))).by_name
    assert list(found) == ["a[0:8]", "a[8:10]", "b"]
    assert index(found["a[0:8]"])["a.w:0"] == each(4, 2, step=4)
    assert index(found["a[0:8]"])["cat:1"] == each(4)
    assert index(found["a[8:10]"])["a.w:0"] == shifted(2, 8)
    assert index(found["a[8:10]"])["split_o2:1"] == each(2)


def test_a_split_that_leaves_out_a_part_pins() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    node = net.graph.add_node("Split", [a, net.constant("sizes", [2, 2])], [None, "kept"], {"axis": 1}, name="s")
    y = net.conv(net.op("Identity", net.graph.result(node, 1)), 2, "b")
    assert groups_of(net.finish(y)).by_name["a"].pinned == ("node 's' (Split) leaves out an output",)


def test_slice() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 8, "a")
    limits = [net.constant(name, [n]) for name, n in (("starts", -6), ("ends", 1 << 40), ("axes", 1), ("steps", 1))]
    y = net.op("Slice", a, *limits, name="s")
    y = net.op("Slice", y, net.constant("one", [1]), net.constant("end", [5]), net.constant("h", [2]), name="rows")
    found = groups_of(net.finish(net.conv(y, 2, "b"))).by_name
    assert index(found["a[2:8]"]) == {
        "a.w:0": shifted(6, 2),
        "a:1": shifted(6, 2),
        "s:1": each(6),
        "rows:1": each(6),
        "b.w:1": each(6),
    }


def test_slices_that_overlap_make_three_groups() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 8, "a")
    axis = net.constant("axis", [1])
    front = net.op("Slice", a, net.constant("s0", [0]), net.constant("e0", [5]), axis, name="front")
    back = net.op("Slice", a, net.constant("s1", [3]), net.constant("e1", [8]), axis, name="back")
    found = groups_of(net.finish(net.conv(front, 2, "b"), net.conv(back, 2, "c"))).by_name
    assert list(found) == ["a[0:3]", "a[3:5]", "a[5:8]", "b", "c"]
    assert index(found["a[3:5]"])["back:1"] == each(2)


def test_slices_in_steps_and_with_computed_limits_pin() -> None:
    net = Net("N", 3, 5, 5)
    one, two = net.constant("one", [1]), net.constant("two", [2])
    a = net.op(
        "Slice", net.conv(net.x, 8, "a"), net.constant("zero", [0]), net.constant("end", [8]), one, two, name="s"
    )
    rows = net.op("Slice", net.op("Shape", net.x), two, net.constant("three", [3]), name="rows")
    b = net.op("Slice", net.conv(a, 6, "b"), one, rows, two, name="t")
    found = groups_of(net.finish(net.conv(b, 2, "c"))).by_name
    assert found["a"].pinned == ("node 's' (Slice) takes it in steps",)
    assert found["b"].pinned == ("node 't' (Slice) has computed limits",)


def test_gather_of_a_list() -> None:
    net = Net("N", 3, 5, 5)
    y = net.op("Gather", net.conv(net.x, 4, "a"), net.constant("at", [2, 0, -1, 2]), name="g", axis=1)
    found = groups_of(net.finish(net.conv(y, 2, "b"))).by_name
    # those that are taken once, twice, never
    assert [group.units for group in found.values()] == [2, 1, 1, 2]
    assert index(found["a[0:4]"]) == {name: [[0], [3]] for name in ("a.w:0", "a:1")} | {
        name: [[1], [2]] for name in ("g:1", "b.w:1")
    }
    assert index(found["a[2:3]"])["g:1"] == [[0, 3]]
    assert index(found["a[1:2]"]) == {"a.w:0": [[1]], "a:1": [[1]]}


@pytest.mark.parametrize("indices", [np.int64(2), np.array([[2]])])
def test_gather_of_one_by_its_number_pins_that_one(indices: object) -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    one = net.op("Gather", a, net.constant("at", indices), name="g", axis=1)
    found = groups_of(net.finish(net.conv(a, 2, "b"), one))
    assert [group.units for group in found.free] == [3]
    assert found.by_name["a[2:3]"].pinned == ("node 'g' (Gather) takes it by its number",)


def test_gather_hands_other_axes_on() -> None:
    net = Net("N", 5, 3)
    a = net.op("MatMul", net.x, net.weight("a.w", 3, 4), name="a")
    token = net.op("Gather", a, net.constant("first", np.int64(0)), name="token", axis=1)
    table = net.op("Gather", a, net.constant("two", [[0, 1]]), name="pair", axis=1)
    y, z = net.gemm(token, 2, "b"), net.op("MatMul", table, net.weight("c.w", 4, 2))
    (group,) = groups_of(net.finish(y, z)).free
    assert (index(group)["token:1"], index(group)["pair:3"]) == (each(4), each(4))


def test_gather_by_computed_indices_pins() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    best = net.op("ArgMax", net.op("ReduceMean", net.x, net.constant("all", [1, 2, 3]), keepdims=0), axis=0)
    y = net.op("Gather", a, best, name="g", axis=1)
    found = groups_of(net.finish(net.conv(y, 2, "b"))).by_name
    assert found["a"].pinned == ("node 'g' (Gather) chooses from it with computed indices",)


def test_the_rows_of_a_table() -> None:
    net = Net("N", 5)
    at = net.op("Cast", net.op("Abs", net.x), to=7)
    y = net.op("Gather", net.weight("table", 9, 4), at, name="words")
    y = net.op("Add", y, net.weight("place", 5, 4))
    (group,) = groups_of(net.finish(net.op("MatMul", y, net.weight("b.w", 4, 2)))).free
    assert group.name == "words"
    assert index(group) == {name: each(4) for name in ("table:1", "words:2", "place:1", "add:2", "b.w:0")}


def test_indices_that_have_channels_stay() -> None:
    net = Net("N", 3, 5, 5)
    limits = net.constant("zero", np.float32(0)), net.constant("eight", np.float32(8))
    at = net.op("Cast", net.op("Clip", net.conv(net.x, 4, "a"), *limits), to=7)
    y = net.op("Gather", net.weight("table", 9, 6), at, name="g")
    found = groups_of(net.finish(net.op("MatMul", y, net.weight("b.w", 6, 2)))).by_name
    assert found["a"].pinned == ("node 'g' (Gather) has no rule for channels there",)


@pytest.mark.parametrize("axes", [False, True])
def test_pad_around_channels(axes: bool) -> None:
    """ResNet's parameter-free shortcut: channels of zeros follow those that they meet."""
    net = Net("N", 3, 4, 4)
    a = net.conv(net.x, 4, "a")
    zero = net.constant("zero", np.float32(0))
    if axes:
        y = net.op("Pad", a, net.constant("pads", [2, 2]), zero, net.constant("axes", [-3]), name="p")
    else:
        y = net.op("Pad", a, net.constant("pads", [0, 2, 0, 0, 0, 2, 0, 0]), zero, name="p")
    found = groups_of(net.finish(net.conv(net.op("Add", y, net.conv(a, 8, "b")), 2, "c"))).by_name
    assert list(found) == ["a", "b", "c"]
    assert index(found["a"]) == {
        "a.w:0": each(4),
        "b.w:0": shifted(4, 2),
        "a:1": each(4),
        "p:1": shifted(4, 2),
        "b.w:1": each(4),
        "b:1": shifted(4, 2),
        "add:1": shifted(4, 2),
        "c.w:1": shifted(4, 2),
    }
    assert index(found["b"])["p:1"] == [[0], [1], [6], [7]]


def test_padding_pixels_hands_channels_on() -> None:
    net = Net("N", 3, 4, 4)
    y = net.op(
        "Pad", net.conv(net.x, 4, "a"), net.constant("pads", [0, 0, 1, 1, 0, 0, -1, 1]), name="p", mode="reflect"
    )
    (group,) = groups_of(net.finish(net.conv(y, 2, "b"))).free
    assert index(group)["p:1"] == each(4)


@pytest.mark.parametrize("mode, amounts", [("edge", [1, 1]), ("constant", [-1, 0]), ("reflect", [0, 1])])
def test_padding_that_repeats_or_crops_channels_pins(mode: str, amounts: list[int]) -> None:
    net = Net("N", 3, 4, 4)
    pads = net.constant("pads", [0, amounts[0], 0, 0, 0, amounts[1], 0, 0])
    y = net.op("Pad", net.conv(net.x, 4, "a"), pads, name="p", mode=mode)
    found = groups_of(net.finish(net.conv(y, 2, "b"))).by_name
    assert found["a"].pinned == ("node 'p' (Pad) repeats or crops it",)


def test_computed_pads_pin() -> None:
    net = Net("N", 3, 4, 4)
    pads = net.graph.add_input("pads", DType.INT64, (8,))
    y = net.op("Pad", net.conv(net.x, 4, "a"), pads, name="p")
    net.graph.set_type(y, DType.FLOAT, ("N", 4, 4, 4))
    found = groups_of(net.finish(net.conv(y, 2, "b"))).by_name
    assert found["a"].pinned == ("node 'p' (Pad) has computed pads",)


def test_a_pad_of_unknown_rank_does_not_stop_others() -> None:
    net = Net(2, 3, 4, 4)
    unknown = net.graph.add_input("u", DType.FLOAT, None)
    padded = net.op("Pad", unknown, net.constant("pads", [1, 1]), None, net.constant("axes", [-1]))
    found = find_groups(net.finish(net.conv(net.conv(net.x, 8, "a"), 2, "b"), padded))
    assert [group.name for group in found.free] == ["a"]
