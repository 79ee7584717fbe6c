"""Where channels begin and end: convolutions, products, sums, recurrent inputs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.channels.conftest import Net, each, groups_of, index


def test_a_convolution_makes_channels_and_the_next_one_ends_them() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a", 3, bias=True)
    found = groups_of(net.finish(net.conv(net.op("Relu", a), 2, "b")))
    first, last = found.groups
    assert (first.name, first.units, first.width, first.channels, first.pinned) == ("a", 4, 1, 4, ())
    assert index(first) == {"a.w:0": each(4), "a:1": each(4), "a.b:0": each(4), "relu:1": each(4), "b.w:1": each(4)}
    assert [node.name for node in first.makers] == ["a"]
    assert last.pinned == ("'b' is an output of the graph",)
    assert [group.name for group in found.free] == ["a"]


def test_a_grouped_convolution_stays_equally_wide_in_every_group() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 6, "a")
    b = net.conv(a, 4, "b", 3, group=2)
    found = groups_of(net.finish(net.conv(b, 2, "c"))).by_name
    assert index(found["a"]) == {"a.w:0": each(3, 2, step=3), "a:1": each(3, 2, step=3), "b.w:1": each(3)}
    assert index(found["b"]) == {"b.w:0": each(2, 2, step=2), "b:1": each(2, 2, step=2), "c.w:1": each(2, 2, step=2)}
    assert (found["a"].units, found["a"].width, found["a"].channels) == (3, 2, 6)


def test_a_depthwise_convolution_hands_each_channel_on() -> None:
    net = Net("N", 3, 5, 5)
    b = net.conv(net.conv(net.x, 3, "a"), 3, "b", 3, group=3, bias=True)
    (group,) = groups_of(net.finish(net.conv(b, 2, "c"))).free
    assert list(index(group)) == ["a.w:0", "b.w:0", "a:1", "b:1", "b.b:0", "c.w:1"]
    assert set(map(str, index(group).values())) == {str(each(3))}
    assert [node.name for node in group.makers] == ["a", "b"]


def test_a_depthwise_convolution_with_a_multiplier_makes_several_of_each() -> None:
    net = Net("N", 3, 5, 5)
    b = net.conv(net.conv(net.x, 3, "a"), 6, "b", 3, group=3)
    (group,) = groups_of(net.finish(net.conv(b, 2, "c"))).free
    assert index(group) == {
        "a.w:0": each(3),
        "b.w:0": each(3, 2),
        "a:1": each(3),
        "b:1": each(3, 2),
        "c.w:1": each(3, 2),
    }


def test_a_depthwise_convolution_of_the_input_is_pinned() -> None:
    net = Net("N", 3, 5, 5)
    found = groups_of(net.finish(net.conv(net.conv(net.x, 6, "a", 3, group=3), 2, "b"))).by_name
    assert found["a"].pinned == ("node 'a' (Conv) meets 'x' there, whose axis cannot be cut",)


def test_transposed_convolutions() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    b = net.op("ConvTranspose", a, net.weight("b.w", 4, 6, 2, 2), net.weight("b.b", 6), name="b", strides=[2, 2])
    c = net.op("ConvTranspose", b, net.weight("c.w", 6, 4, 1, 1), net.weight("c.b", 8), name="c", group=2)
    d = net.op("ConvTranspose", c, net.weight("d.w", 8, 2, 1, 1), net.weight("d.b", 16), name="d", group=8)
    found = groups_of(net.finish(net.conv(d, 2, "e"))).by_name
    assert index(found["a"]) == {"a.w:0": each(4), "a:1": each(4), "b.w:0": each(4)}
    three = each(3, 2, step=3)
    assert index(found["b"]) == {"b.w:1": three, "b:1": three, "b.b:0": three, "c.w:0": three}
    four, out = each(4, 2, step=4), [[2 * u, 2 * u + 1, 2 * u + 8, 2 * u + 9] for u in range(4)]
    assert index(found["c"]) == {
        "c.w:1": each(4),
        "d.w:0": four,
        "c:1": four,
        "c.b:0": four,
        "d:1": out,
        "d.b:0": out,
        "e.w:1": out,
    }
    assert [node.name for node in found["c"].makers] == ["c", "d"]


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int) -> None:
    net = Net("N", 4)
    w = net.weight("a.w", *((6, 4) if transposed else (4, 6)))
    a = net.op("Gemm", net.x, w, net.weight("a.b", 1, 6), name="a", transB=transposed)
    turned = net.op("Transpose", a, perm=[1, 0])
    b = net.op("Gemm", turned, net.weight("b.w", 6, 3), net.weight("b.b", 3), name="b", transA=1)
    found = groups_of(net.finish(b)).by_name
    assert index(found["a"]) == {
        f"a.w:{1 - transposed}": each(6),
        "a:1": each(6),
        "a.b:1": each(6),
        "transpose:0": each(6),
        "b.w:0": each(6),
    }
    assert found["b"].pinned


def test_a_weight_may_stand_on_the_left() -> None:
    net = Net(4, 5)
    a = net.op("Gemm", net.weight("a.w", 6, 4), net.x, net.weight("a.b", 6, 1), name="a")
    found = groups_of(net.finish(net.op("MatMul", net.weight("b.w", 2, 6), a, name="b"))).by_name
    assert index(found["a"]) == {"a.w:0": each(6), "a:0": each(6), "a.b:0": each(6), "b.w:1": each(6)}


def test_matmul_with_a_matrix_and_with_batches() -> None:
    net = Net("N", 7, 4)
    a = net.op("MatMul", net.x, net.weight("a.w", 4, 6), name="a")
    b = net.op("MatMul", a, net.weight("b.w", 1, 6, 5), name="b")
    found = groups_of(net.finish(net.op("MatMul", b, net.weight("c.w", 5, 2), name="c"))).by_name
    assert index(found["a"]) == {"a.w:1": each(6), "a:2": each(6), "b.w:1": each(6)}
    assert index(found["b"]) == {"b.w:2": each(5), "b:2": each(5), "c.w:0": each(5)}


def test_a_product_of_two_activations_ends_both() -> None:
    net = Net("N", 7, 4)
    q = net.op("MatMul", net.x, net.weight("q.w", 4, 6), name="q")
    k = net.op("MatMul", net.x, net.weight("k.w", 4, 6), name="k")
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]), name="scores")
    (group,) = groups_of(net.finish(net.op("Softmax", scores))).groups
    assert index(group) == {"q.w:1": each(6), "k.w:1": each(6), "q:2": each(6), "k:2": each(6), "transpose:1": each(6)}
    assert not group.pinned


def test_vectors_are_not_followed() -> None:
    net = Net("N", 4)
    a = net.gemm(net.x, 3, "a")
    found = groups_of(net.finish(net.op("MatMul", a, net.weight("v", 3), name="b")))
    assert found.by_name["a"].pinned == ("node 'b' (MatMul) does not multiply matrices of known rank",)


def test_einsum_follows_letters() -> None:
    net = Net("N", 7, 4)
    a = net.op("Einsum", net.x, net.weight("a.w", 4, 6), name="a", equation="bsi, io -> bso")
    b = net.op("Einsum", a, net.weight("b.w", 5, 6), name="b", equation="bso,po->bp")
    found = groups_of(net.finish(net.gemm(b, 2, "c"))).by_name
    assert index(found["a"]) == {"a.w:1": each(6), "a:2": each(6), "b.w:1": each(6)}
    assert index(found["b"]) == {"b.w:0": each(5), "b:1": each(5), "c.w:1": each(5)}


def test_einsum_ends_a_letter_that_one_operand_has_alone() -> None:
    """A constant beside it masks nothing."""
    net = Net("N", 4)
    a = net.gemm(net.x, 6, "a")
    b = net.op("Einsum", a, net.weight("b.w", 5), name="b", equation="bi,o->bo")
    found = groups_of(net.finish(net.gemm(b, 2, "c"))).by_name
    assert index(found["a"]) == {"a.w:0": each(6), "a:1": each(6), "a.b:0": each(6)}
    assert index(found["b"]) == {"b.w:0": each(5), "b:1": each(5), "c.w:1": each(5)}


@pytest.mark.parametrize("equation", ["...i,io->...o", "bi,io"])
def test_other_equations_pin(equation: str) -> None:
    net = Net("N", 4)
    a = net.gemm(net.x, 6, "a")
    b = net.op("Einsum", a, net.weight("b.w", 6, 2), name="b", equation=equation)
    (group,) = groups_of(net.finish(b)).groups
    assert group.pinned == (f"node 'b' (Einsum) has no rule for channels with the equation '{equation}'",)


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_sums_end_channels(op: str, keepdims: int) -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a", bias=True)
    (group,) = groups_of(net.finish(net.op(op, a, net.constant("axes", [1, -1]), keepdims=keepdims))).groups
    assert index(group) == {"a.w:0": each(4), "a:1": each(4), "a.b:0": each(4)}
    assert not group.pinned


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp"])
def test_other_reductions_pin_what_they_reduce_and_hand_on_the_rest(op: str) -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    spatial = net.op(op, a, net.constant("hw", [2, 3]), name="spatial", keepdims=0)
    b = net.gemm(spatial, 6, "b")
    found = groups_of(net.finish(net.op(op, b, net.constant("c", [1]), name="last"))).by_name
    assert index(found["a"]) == {"a.w:0": each(4), "a:1": each(4), "spatial:1": each(4), "b.w:1": each(4)}
    assert not found["a"].pinned
    assert found["b"].pinned == (f"node 'last' ({op}) reduces over it",)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_argmax(keepdims: int) -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    over, other = net.op("ArgMax", a, name="over", axis=1), net.op("ArgMax", a, name="other", axis=2, keepdims=keepdims)
    (group,) = groups_of(net.finish(over, other)).groups
    assert "node 'over' (ArgMax) reduces over it" in group.pinned
    assert index(group)["other:1"] == each(4)


def test_reduced_axes_that_are_computed_pin() -> None:
    net = Net("N", 3, 5, 5)
    a = net.conv(net.x, 4, "a")
    axes = net.op("Slice", net.op("Shape", net.x), net.constant("s", [1]), net.constant("e", [2]), name="axes")
    (group,) = groups_of(net.finish(net.op("ReduceSum", a, net.op("Sub", axes, net.constant("two", [2]))))).groups
    assert group.pinned == ("node 'reducesum' (ReduceSum) reduces axes that are not known",)


@pytest.mark.parametrize("op, gates", [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_the_features_of_a_recurrent_input_end_in_its_weight(op: str, gates: int) -> None:
    net = Net(5, "N", 4)
    a = net.op("MatMul", net.x, net.weight("a.w", 4, 6), name="a")
    w, r = net.weight("r.w", 1, gates * 3, 6), net.weight("r.r", 1, gates * 3, 3)
    y = net.op(op, a, w, r, name="r", hidden_size=3)
    found = groups_of(net.finish(net.op("MatMul", y, net.weight("b.w", 3, 2), name="b"))).by_name
    assert index(found["a"]) == {"a.w:1": each(6), "a:2": each(6), "r.w:2": each(6)}


def test_other_axes_of_a_recurrent_input_stay() -> None:
    net = Net(5, "N", 4)
    a = net.op("Transpose", net.op("MatMul", net.x, net.weight("a.w", 4, 6), name="a"), perm=[2, 1, 0])
    y = net.op("GRU", a, net.weight("r.w", 1, 9, 5), net.weight("r.r", 1, 9, 3), name="r", hidden_size=3)
    found = groups_of(net.finish(y)).by_name
    assert found["a"].pinned == ("node 'r' (GRU) has no rule for channels there",)
    assert found["r"].pinned == ("'r' is an output of the graph",)


def test_a_weight_may_be_computed_from_the_input() -> None:
    net = Net(1, 4, 5, 5)
    a = net.conv(net.x, 6, "a")
    w = net.op("Reshape", net.conv(net.op("GlobalAveragePool", net.x), 6, "w"), net.constant("shape", [1, 6, 1, 1]))
    found = groups_of(net.finish(net.op("Conv", a, w, name="b"))).by_name
    assert not found["a"].pinned
    assert [node.name for node in found["a"].makers] == ["a", "w"]
    assert index(found["a"])["w.w:0"] == each(6)


def test_channels_that_begin_in_an_image_of_unknown_size() -> None:
    net = Net("N", 3, "H", "W")
    b = net.conv(net.conv(net.x, 4, "a", 3), 2, "b", strides=[2, 2])
    assert index(groups_of(net.finish(b)).by_name["a"]) == {"a.w:0": each(4), "a:1": each(4), "b.w:1": each(4)}


def test_nothing_is_made_of_weights_that_are_handed_in() -> None:
    net = Net("N", 3, 5, 5)
    w = net.graph.add_input("w", net.x.dtype, (4, 3, 1, 1))
    a = net.op("Conv", net.x, w, name="a")
    found = groups_of(net.finish(net.conv(a, 2, "b"))).by_name
    assert found["a"].pinned == ("node 'a' (Conv) meets 'w' there, whose axis cannot be cut",)
    assert np.array_equal(found["a"].members[0].index, each(4))
