"""Element by element: what meets is cut together, as axes broadcast from the back; grids of scales follow."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.ir.graph import Graph, Role, Value
from onnxslim.ir.rewrite import Context
from passes.quantize import InsertFakeQuant
from tests.analysis.channels.conftest import Net, each, groups_of, index
from tests.passes.quantize.conftest import ranges


def test_a_residual_sum_couples_what_it_adds() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    b = net.conv(a, 4, "b", 3)
    c = net.op("Add", a, b, name="c")
    (group,) = groups_of(net.finish(net.conv(c, 2, "d"))).free
    assert group.name == "a"
    assert [node.name for node in group.makers] == ["a", "b"]
    assert set(index(group)) == {"a.w:0", "b.w:0", "a:1", "b:1", "b.w:1", "c:1", "d.w:1"}
    assert group.width == 1


def test_a_sum_with_the_input_pins() -> None:
    net = Net("N", 3, 5, 5)
    found = groups_of(net.finish(net.conv(net.op("Add", net.x, net.conv(net.x, 3, "a")), 2, "b")))
    assert found.by_name["a"].pinned == ("node 'add' (Add) meets 'x' there, whose axis cannot be cut",)


def test_squeeze_and_excite() -> None:
    """The gate [N, C, 1, 1] is cut with what it scales."""
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 6, "a", 3)
    inner = net.op("Relu", net.conv(net.op("GlobalAveragePool", a), 2, "down", bias=True))
    gate = net.op("HardSigmoid", net.conv(inner, 6, "up", bias=True))
    found = groups_of(net.finish(net.conv(net.op("Mul", a, gate), 2, "b"))).by_name
    assert [node.name for node in found["a"].makers] == ["a", "up"]
    assert index(found["a"])["hardsigmoid:1"] == index(found["a"])["up.b:0"] == each(6)
    assert set(index(found["down"])) == {"down.w:0", "down:1", "down.b:0", "relu:1", "up.w:1"}


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (4, 5, 5)])
def test_constants_follow_where_they_have_the_axis(shape: tuple[int, ...]) -> None:
    net = Net("N", 3, 5, 5)
    y = net.conv(net.x, 4, "a")
    y = net.op("Add", y, net.weight("c", *shape))
    y = net.op("Mul", net.weight("s", 1), net.op("Sub", y, net.weight("row", 5)))
    y = net.op("PRelu", y, net.weight("slope", 4, 1, 1))
    (group,) = groups_of(net.finish(net.conv(y, 2, "b"))).free
    followed = {name for name in index(group) if ":" in name and name.split(":")[0] in ("c", "s", "row", "slope")}
    assert followed == {f"c:{len(shape) - 3}", "slope:0"}


def test_zero_is_no_divisor() -> None:
    """A constant that divides is cut, and left as it is by a mask."""
    net = Net("N", 3, 5, 5)
    a = net.op("Div", net.conv(net.x, 4, "a"), net.constant("c", np.full((4, 1, 1), 2, np.float32)))
    a = net.op("Pow", net.op("Abs", a), net.constant("p", np.full((4, 1, 1), -0.5, np.float32)))
    (group,) = groups_of(net.finish(net.conv(a, 2, "b"))).free
    assert index(group)["c:0"] == index(group)["p:0"] == each(4)


def test_several_operands_limits_and_masks() -> None:
    net = Net("N", 3, 5, 5)
    parts = [net.conv(net.x, 4, name) for name in "abc"]
    y = net.op("Max", net.op("Sum", *parts), parts[0])
    y = net.op("Clip", y, net.constant("low", np.float32(-1)), net.constant("high", np.float32(1)))
    y = net.op("Where", net.op("Greater", y, parts[1]), y, parts[2])
    y = net.op("Dropout", y, net.constant("ratio", np.float32(0.5)))
    (group,) = groups_of(net.finish(net.conv(y, 2, "d"))).free
    assert [node.name for node in group.makers] == ["a", "b", "c"]


def test_one_channel_that_is_stretched_over_many_stays() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    gate = net.op("Sigmoid", net.conv(a, 1, "gate"))
    found = groups_of(net.finish(net.conv(net.op("Mul", a, gate, name="m"), 2, "b"))).by_name
    assert found["gate"].pinned == ("node 'm' (Mul) stretches it",)
    assert not found["a"].pinned


def test_what_is_computed_of_constants_is_a_weight() -> None:
    net = Net("N", 3, 5, 5)
    w = net.op("Mul", net.weight("v", 4, 3, 1, 1), net.weight("g", 4, 1, 1, 1), name="normed")
    (group,) = groups_of(net.finish(net.conv(net.op("Conv", net.x, w, name="a"), 2, "b"))).free
    assert set(index(group)) == {"normed:0", "v:0", "g:0", "a:1", "b.w:1"}


def test_the_type_of_another_tensor_is_asked_for_without_pinning_it() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    like = net.op("CastLike", net.x, a)
    assert not groups_of(net.finish(net.conv(net.op("Relu", a), 2, "b"), like)).by_name["a"].pinned


def quantised(net: Net) -> Graph:
    graph = net.graph
    x = np.random.default_rng(0).normal(size=(8, 3, 5, 5)).astype(np.float32)
    step = InsertFakeQuant()
    InsertFakeQuant()(graph, Context(statistics=ranges(graph, list(step.requests(graph, Context())), x)))
    return graph


def test_scales_of_a_fake_quantised_weight_follow_it() -> None:
    net = Net("N", 3, 5, 5)
    net.finish(net.conv(net.op("Relu", net.conv(net.x, 4, "a", 3, bias=True)), 2, "b"))
    graph = quantised(net)
    found = groups_of(graph).by_name["a"]
    scales = [m for m in found.members if m.value.role is Role.SCALE]
    assert len(scales) == 2  # scale and zero point of a's weight; activations have one for all
    assert all(m.index.tolist() == each(4) for m in scales)


def grid(net: Net, name: str, shape: tuple[int, ...], axis: int) -> Value:
    """An int8 weight with a scale for each index of `axis`."""
    whole = net.constant(f"{name}.w", net.rng.integers(-100, 100, shape).astype(np.int8))
    scale = net.constant(f"{name}.scale", net.rng.uniform(0.01, 0.02, shape[axis]).astype(np.float32))
    zero = net.constant(f"{name}.zero", np.zeros(shape[axis], np.int8))
    return net.op("DequantizeLinear", whole, scale, zero, name=f"{name}.float", axis=axis)


def test_stored_integers_and_their_scales_are_cut() -> None:
    net = Net("N", 3, 5, 5)
    a = net.op("Conv", net.x, grid(net, "a", (4, 3, 1, 1), 0), name="a")
    steps = net.constant("step", np.float32(0.1)), net.constant("zp", np.int8(3))
    a = net.op("DequantizeLinear", net.op("QuantizeLinear", a, *steps), *steps)
    b = net.op("Conv", a, grid(net, "b", (6, 4, 1, 1), 1), name="b")
    c = net.op("MatMul", net.op("Transpose", b, perm=[0, 2, 3, 1]), grid(net, "c", (6, 2), 1), name="c")
    found = groups_of(net.finish(c)).by_name
    assert [key for key in index(found["a"]) if "scale" in key or "zero" in key] == [
        "a.scale:0",
        "a.zero:0",
        "b.scale:0",
        "b.zero:0",
    ]
    assert {"b.w:0", "b.float:0", "c.w:0", "c.float:0"} < set(index(found["b"]))
    assert {"c.w:1", "c.scale:0"} < set(index(found["c"]))


def test_scales_of_blocks_pin() -> None:
    net = Net("N", 3, 5, 5)
    net.graph.opsets[""] = 21
    scale, zero = (
        net.constant("scale", np.full((2, 3, 1, 1), 0.1, np.float32)),
        net.constant("zero", np.zeros((2, 3, 1, 1), np.int8)),
    )
    whole = net.constant("a.w", net.rng.integers(-100, 100, (4, 3, 1, 1)).astype(np.int8))
    w = net.op("DequantizeLinear", whole, scale, zero, name="w", axis=0, block_size=2)
    (group, _) = groups_of(net.finish(net.conv(net.op("Conv", net.x, w, name="a"), 2, "b"))).groups
    assert group.pinned == (
        "node 'a' (Conv) meets what node 'w' (DequantizeLinear) makes there, whose axis cannot be cut",
    )


@pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 4)])
def test_one_channel_meets_an_operand_of_lower_rank(shape: tuple[int, ...]) -> None:
    """An attention gate: one channel, computed with, which scales all of another group."""
    net = Net(2, 3, 4, 4)
    a = net.conv(net.x, 8, "a")
    gate = net.op("Mul", net.op("Sigmoid", net.conv(a, 1, "g")), net.constant("k", np.full(shape, 2, np.float32)))
    found = groups_of(net.finish(net.conv(net.op("Mul", a, gate, name="m"), 2, "o")))
    assert [group.name for group in found.free] == ["a"]


def test_weights_that_are_computed_with_a_number() -> None:
    net = Net(2, 3, 4, 4)
    w = net.op("Mul", net.weight("w", 6, 3, 1, 1), net.constant("k", np.float32(0.5)), name="scaled")
    y = net.op("Conv", net.x, w, name="a")
    assert groups_of(net.finish(net.conv(y, 2, "b"))).free
