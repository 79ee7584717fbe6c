"""Norms, pools and resizing: each channel by itself hands it on, a mixture of channels pins them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.channels.conftest import Net, each, groups_of, index


def test_a_batch_norm_has_five_vectors() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    vectors = [net.constant(f"n.{k}", net.rng.uniform(0.5, 2, 4).astype(np.float32)) for k in "sbmv"]
    y = net.op("Relu", net.op("BatchNormalization", a, *vectors, name="n"))
    (group,) = groups_of(net.finish(net.conv(y, 2, "b"))).free
    assert index(group) == {
        name: each(4) for name in ("a.w:0", "a:1", "n:1", "n.s:0", "n.b:0", "n.m:0", "n.v:0", "relu:1", "b.w:1")
    }


def test_a_batch_norm_hands_on_other_axes() -> None:
    net = Net("N", 3, 5)
    a = net.op("MatMul", net.x, net.weight("a.w", 5, 4), name="a")
    vectors = [net.constant(f"n.{k}", net.rng.uniform(0.5, 2, 3).astype(np.float32)) for k in "sbmv"]
    y = net.op("BatchNormalization", a, *vectors, name="n")
    (group,) = groups_of(net.finish(net.op("MatMul", y, net.weight("b.w", 4, 2)))).free
    assert index(group)["n:2"] == each(4)


def test_a_batch_norm_in_training_mixes_other_axes() -> None:
    net = Net("N", 3, 5)
    a = net.op("MatMul", net.x, net.weight("a.w", 5, 4), name="a")
    vectors = [net.constant(f"n.{k}", net.rng.uniform(0.5, 2, 3).astype(np.float32)) for k in "sbmv"]
    y = net.op("BatchNormalization", a, *vectors, name="n", outputs=3, training_mode=1)
    (group,) = groups_of(net.finish(net.op("MatMul", y, net.weight("b.w", 4, 2)))).groups[:1]
    assert group.pinned == ("node 'n' (BatchNormalization) normalises over it",)


@pytest.mark.parametrize(("used", "free"), [(True, 0), (False, 1)])
def test_places_of_maxima_are_counted_over_all_channels(used: bool, free: int) -> None:
    net = Net("N", 3, 4, 4)
    p = net.op("MaxPool", net.conv(net.x, 8, "a"), name="p", outputs=2, kernel_shape=[2, 2])
    node = net.graph.producer(p)
    assert node is not None
    places = net.op("Cast", net.graph.result(node, 1), to=1) if used else p
    found = groups_of(net.finish(net.conv(p, 2, "b"), net.conv(places, 2, "c")))
    assert len(found.free) == free
    if not used:
        assert {"p:1", "p_o1:1"} < set(index(found.free[0]))
    else:
        assert found.groups[0].pinned[0] == "node 'p' (MaxPool) counts places over all channels"


@pytest.mark.parametrize(("scale", "free"), [(1.1, 0), (1.0, 1)])
def test_a_scale_of_channels_mixes_them(scale: float, free: int) -> None:
    net = Net(2, 3, 4, 4)
    scales = net.constant("scales", np.array([1, scale, 2, 2], np.float32))
    y = net.op("Resize", net.conv(net.x, 8, "a"), None, scales, name="r", mode="linear")
    assert len(groups_of(net.finish(net.conv(y, 2, "b"))).free) == free


def test_an_instance_norm_is_each_channels_own() -> None:
    net = Net("N", 3, 5, 5)
    y = net.op("InstanceNormalization", net.conv(net.x, 4, "a"), net.weight("s", 4), net.weight("b", 4), name="n")
    (group,) = groups_of(net.finish(net.conv(y, 2, "c"))).free
    assert index(group) == {name: each(4) for name in ("a.w:0", "a:1", "n:1", "s:0", "b:0", "c.w:1")}


def test_an_instance_norm_over_channels_pins() -> None:
    net = Net("N", 3, 5)
    a = net.op("MatMul", net.x, net.weight("a.w", 5, 4), name="a")
    y = net.op("InstanceNormalization", a, net.weight("s", 3), net.weight("b", 3), name="n")
    (group,) = groups_of(net.finish(net.op("MatMul", y, net.weight("b.w", 4, 2)))).groups[:1]
    assert group.pinned == ("node 'n' (InstanceNormalization) has no rule for channels there",)


def test_a_triangle_of_pixels_hands_channels_on() -> None:
    net = Net("N", 3, 5, 5)
    y = net.op("Trilu", net.conv(net.x, 4, "a"), name="n")
    (group,) = groups_of(net.finish(net.conv(y, 2, "b"))).free
    assert group.units == 4
    net = Net("N", 3, 5)
    y = net.op("Trilu", net.op("MatMul", net.x, net.weight("a.w", 5, 4), name="a"), name="n")
    (group,) = groups_of(net.finish(net.op("MatMul", y, net.weight("b.w", 4, 2)))).groups[:1]
    assert group.pinned == ("node 'n' (Trilu) cuts a triangle out of it",)


PINNING = {
    "LayerNormalization": ({"axis": 1}, [("s", (4, 5, 5)), ("b", (4, 5, 5))], "normalises over it"),
    "Softmax": ({"axis": 1}, [], "normalises over it"),
    "LogSoftmax": ({"axis": -3}, [], "normalises over it"),
    "Hardmax": ({"axis": 1}, [], "normalises over it"),
    "LpNormalization": ({"axis": 1}, [], "normalises over it"),
    "MeanVarianceNormalization": ({"axes": [1, 2, 3]}, [], "normalises over it"),
    "GroupNormalization": ({"num_groups": 1}, [("s", (1,)), ("b", (1,))], "normalises over all channels"),
    "LRN": ({"size": 3}, [], "normalises over neighbouring channels"),
}


@pytest.mark.parametrize("op", PINNING)
def test_what_mixes_channels_pins_them(op: str) -> None:
    attributes, weights, why = PINNING[op]
    net = Net("N", 3, 5, 5)
    y = net.op(op, net.conv(net.x, 4, "a"), *(net.weight(n, *s) for n, s in weights), name="n", **attributes)
    (group,) = groups_of(net.finish(y)).groups
    assert group.pinned == (f"node 'n' ({op}) {why}",)


@pytest.mark.parametrize("opset", [18, 21])
def test_a_group_norm_keeps_or_loses_whole_groups(opset: int) -> None:
    net = Net("N", 3, 5, 5)
    net.graph.opsets[""] = opset
    size = 2 if opset == 18 else 6
    y = net.op(
        "GroupNormalization",
        net.conv(net.x, 6, "a"),
        net.weight("s", size),
        net.weight("b", size),
        name="n",
        num_groups=2,
    )
    (group,) = groups_of(net.finish(net.conv(y, 2, "c"))).free
    vector = each(2, size // 2)
    assert index(group) == {
        "a.w:0": each(2, 3), "a:1": each(2, 3), "n:1": each(2, 3), "s:0": vector, "b:0": vector, "c.w:1": each(2, 3),
    }  # fmt: skip


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_group_norm_of_reshapes_and_an_instance_norm(dynamic: bool) -> None:
    """As exporters write it where the opset has none."""
    net = Net("N", 3, *("HW" if dynamic else (5, 4)))
    a = net.conv(net.x, 6, "a")
    flat = net.op("Reshape", a, net.constant("to", np.array([0, 2, -1])), name="flat")
    norm = net.op("InstanceNormalization", flat, net.weight("s", 2), net.weight("b", 2), name="n")
    y = net.op("Reshape", norm, net.op("Shape", a), name="back")
    y = net.op("Mul", y, net.weight("scale", 6, 1, 1))
    (group,) = groups_of(net.finish(net.conv(y, 2, "c"))).free
    found = index(group)
    for name in ("a.w:0", "a:1", "back:1", "scale:0", "c.w:1"):
        assert found[name] == each(2, 3)
    for name in ("flat:1", "n:1", "s:0", "b:0"):
        assert found[name] == each(2)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "MeanVarianceNormalization"])
def test_what_mixes_another_axis_hands_channels_on(op: str) -> None:
    net = Net("N", 3, 5, 5)
    attributes = {"axes": [2, 3]} if op.startswith("Mean") else {"axis": 3}
    y = net.op(op, net.conv(net.x, 4, "a"), name="n", **attributes)
    (group,) = groups_of(net.finish(net.conv(y, 2, "b"))).free
    assert index(group) == {"a.w:0": each(4), "a:1": each(4), "n:1": each(4), "b.w:1": each(4)}


def test_a_layer_norm_hands_on_the_axes_before() -> None:
    net = Net("N", 3, 5, 5)
    norm = net.results("LayerNormalization", net.conv(net.x, 4, "a"), net.weight("s", 5), outputs=3)
    y = net.op("Mul", net.op("Add", norm[0], norm[1]), norm[2])
    (group,) = groups_of(net.finish(net.conv(y, 2, "b"))).free
    assert sum(name.startswith("layernorm") for name in index(group)) == 3


POOLS = {
    "AveragePool": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    "LpPool": {"kernel_shape": [3, 3]},
    "MaxPool": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "GlobalAveragePool": {},
    "GlobalLpPool": {},
    "GlobalMaxPool": {},
}


@pytest.mark.parametrize("op", POOLS)
def test_pools_hand_channels_on(op: str) -> None:
    net = Net("N", 3, 5, 5)
    y = net.op(op, net.conv(net.x, 4, "a", bias=True), name="p", **POOLS[op])
    (group,) = groups_of(net.finish(net.conv(y, 2, "b"))).free
    assert index(group)["p:1"] == each(4)


def test_a_pool_over_channels_pins_them() -> None:
    net = Net("N", 3, 5, 5)
    turned = net.op("Transpose", net.conv(net.x, 4, "a"), perm=[0, 3, 1, 2])
    found = groups_of(net.finish(net.conv(net.op("MaxPool", turned, name="p", kernel_shape=[2, 2]), 2, "b")))
    assert found.by_name["a"].pinned == ("node 'p' (MaxPool) has no rule for channels there",)


def resized(net: Net, y, *operands, **attributes: object):
    return net.op("Resize", y, None, *operands, name="r", mode="nearest", nearest_mode="floor", **attributes)


def test_resize_by_scales_and_by_sizes() -> None:
    net = Net("N", 3, 5, 5)
    y = resized(net, net.conv(net.x, 4, "a"), net.constant("scales", np.array([1, 1, 2, 2], np.float32)))
    y = net.conv(y, 6, "b")
    sizes = net.constant("sizes", [2, 6, 20, 20])
    y = net.op("Resize", y, None, None, sizes, mode="linear")
    y = net.conv(net.op("Resize", y, None, None, net.constant("two", [7, 7]), axes=[2, 3]), 5, "c")
    y = net.op("Resize", y, None, None, net.constant("three", [7, 5, 6]), axes=[3, 1, 2])
    found = groups_of(net.finish(net.conv(y, 2, "d")))
    assert [group.units for group in found.free] == [4, 6, 5]
    assert index(found.by_name["a"])["r:1"] == each(4)


def test_resizing_channels_pins_them() -> None:
    net = Net("N", 3, 5, 5)
    y = resized(net, net.conv(net.x, 4, "a"), net.constant("scales", np.array([1, 2, 1, 1], np.float32)))
    found = groups_of(net.finish(net.conv(y, 2, "b"))).by_name
    assert found["a"].pinned[0] == "node 'r' (Resize) resizes it"


def test_a_grid_to_sample_at_is_no_channel() -> None:
    net = Net("N", 3, 5, 5)
    where = net.op("Transpose", net.conv(net.x, 2, "where"), perm=[0, 2, 3, 1])
    y = net.op("GridSample", net.conv(net.x, 4, "a"), where, name="g")
    found = groups_of(net.finish(net.conv(y, 2, "b"))).by_name
    assert found["where"].pinned == ("node 'g' (GridSample) has no rule for channels there",)
    assert index(found["a"])["g:1"] == each(4)
