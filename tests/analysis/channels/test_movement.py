"""What moves elements: channels are followed through reshapes, transposes and the like."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.ir.graph import Value
from tests.analysis.channels.conftest import Net, each, groups_of, index


def test_transpose() -> None:
    net = Net("N", 3, 5, 5)
    y = net.op("Transpose", net.conv(net.x, 4, "a"), perm=[0, 2, 3, 1], name="t")
    y = net.op("MatMul", y, net.weight("b.w", 4, 6), name="b")
    y = net.op("Transpose", y, name="back")  # without perm: reversed
    found = groups_of(net.finish(net.op("MatMul", net.weight("c.w", 2, 5), y))).by_name
    assert index(found["a"]) == {"a.w:0": each(4), "a:1": each(4), "t:3": each(4), "b.w:0": each(4)}
    assert index(found["b"]) == {"b.w:1": each(6), "b:3": each(6), "back:0": each(6), "matmul:0": each(6)}
    assert found["b"].pinned == ("'matmul' is an output of the graph",)


@pytest.mark.parametrize("op", ["Flatten", "Reshape"])
def test_flatten_takes_each_channels_pixels_along(op: str) -> None:
    net = Net("N", 3, 2, 3)
    a = net.conv(net.x, 4, "a")
    y = (
        net.op("Flatten", a, name="f")
        if op == "Flatten"
        else net.op("Reshape", a, net.constant("s", [-1, 24]), name="f")
    )
    (group,) = groups_of(net.finish(net.gemm(y, 2, "b"))).free
    assert index(group) == {"a.w:0": each(4), "a:1": each(4), "f:1": each(4, 6), "b.w:1": each(4, 6)}


def test_flatten_of_channels_that_come_last() -> None:
    net = Net("N", 3, 2, 3)
    y = net.op("Transpose", net.conv(net.x, 4, "a"), perm=[0, 2, 3, 1])
    (group,) = groups_of(net.finish(net.gemm(net.op("Flatten", y, name="f"), 2, "b"))).free
    assert index(group)["f:1"] == index(group)["b.w:1"] == each(4, 6, step=4)


def test_features_become_an_image() -> None:
    net = Net("N", 5)
    y = net.op("Reshape", net.gemm(net.x, 24, "a"), net.constant("s", [0, 4, 2, 3]), name="r")
    (group,) = groups_of(net.finish(net.conv(y, 2, "b"))).free
    assert index(group) == {
        "a.w:0": each(4, 6),
        "a:1": each(4, 6),
        "a.b:0": each(4, 6),
        "r:1": each(4),
        "b.w:1": each(4),
    }
    assert (group.units, group.width, group.channels) == (4, 6, 24)


def test_features_that_become_pixels_stay() -> None:
    """Height would be cut, which no convolution sums over."""
    net = Net("N", 5)
    y = net.op("Reshape", net.gemm(net.x, 6, "a"), net.constant("s", [0, 1, 2, 3]), name="r")
    found = groups_of(net.finish(net.conv(y, 2, "b"))).by_name
    assert found["a"].pinned == ("node 'b' (Conv) has no rule for channels there",)


def shuffled(net: Net, x: Value, groups: int) -> Value:
    _, channels, height, width = x.shape or ()
    assert isinstance(channels, int)
    y = net.op("Reshape", x, net.constant("s", [0, groups, channels // groups, height, width]), name="split")
    y = net.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    return net.op("Reshape", y, net.constant("merged", [0, channels, height, width]), name="shuffled")


def test_a_channel_shuffle() -> None:
    """Channel 3g + c goes to 2c + g: what is cut in one group is cut in the other."""
    net = Net("N", 3, 4, 5)
    y = shuffled(net, net.conv(net.x, 6, "a"), 2)
    (group,) = groups_of(net.finish(net.conv(y, 2, "b"))).free
    assert index(group) == {
        "a.w:0": each(3, 2, step=3),
        "a:1": each(3, 2, step=3),
        "split:2": each(3),
        "transpose:1": each(3),
        "shuffled:1": each(3, 2),
        "b.w:1": each(3, 2),
    }


def test_pixel_shuffle_written_out() -> None:
    net = Net("N", 3, 4, 5)
    y = net.op("Reshape", net.conv(net.x, 8, "a"), net.constant("split", [0, 2, 2, 2, 4, 5]), name="split")
    y = net.op("Transpose", y, perm=[0, 1, 4, 2, 5, 3])
    y = net.op("Reshape", y, net.constant("merged", [0, 2, 8, 10]), name="merged")
    (group,) = groups_of(net.finish(net.conv(y, 2, "b"))).free
    assert index(group)["a.w:0"] == each(2, 4)
    assert index(group)["b.w:1"] == each(2)


def attention(net: Net, heads: int, size: int) -> dict[str, Value]:
    """Softmax(q · kᵀ) · v of x [N, S, C], each of `heads` heads of `size` features; then a projection."""
    made = {}
    for name in "qkv":
        y = net.op("MatMul", net.x, net.weight(f"{name}.w", 5, heads * size), name=name)
        y = net.op("Add", y, net.weight(f"{name}.b", heads * size), name=f"{name}.sum")
        y = net.op("Reshape", y, net.constant(f"{name}.s", [0, 0, heads, size]), name=f"{name}.heads")
        made[name] = net.op("Transpose", y, perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3])
    scores = net.op("Softmax", net.op("MatMul", made["q"], made["k"], name="scores"), axis=-1)
    y = net.op("Transpose", net.op("MatMul", scores, made["v"], name="mixed"), perm=[0, 2, 1, 3])
    y = net.op("Reshape", y, net.constant("s", [0, 0, heads * size]), name="joined")
    return {"y": net.op("MatMul", y, net.weight("o.w", heads * size, 2), name="o")}


def test_attention_is_cut_by_whole_heads() -> None:
    net = Net("N", 7, 5)
    (group, last) = groups_of(net.finish(attention(net, 3, 4)["y"])).groups
    found = index(group)
    assert (group.units, group.width, group.pinned) == (3, 4, ())
    assert [node.name for node in group.makers] == ["q", "k", "v"]
    for name in ("q.w:1", "k.w:1", "v.w:1", "q.b:0", "k.b:0", "v.b:0", "joined:2", "o.w:0"):
        assert found[name] == each(3, 4)
    for name in ("q.heads:2", "scores:1", "softmax:1", "mixed:1"):
        assert found[name] == each(3)
    assert last.name == "o"
    assert last.pinned


def test_attention_whose_three_parts_are_made_at_once() -> None:
    """[N, S, 3 · h · d] → [N, S, 3, h, d]: a head of each of the three."""
    net = Net("N", 7, 5)
    y = net.op("MatMul", net.x, net.weight("qkv.w", 5, 24), name="qkv")
    y = net.op("Reshape", y, net.constant("s", [0, 0, 3, 2, 4]), name="heads")
    y = net.op("Transpose", y, perm=[2, 0, 3, 1, 4])
    q, k, v = (net.op("Gather", y, net.constant(f"at{i}", np.int64(i)), name=f"part{i}", axis=0) for i in range(3))
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    y = net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = net.op("Reshape", y, net.constant("t", [0, 0, 8]), name="joined")
    (group, _) = groups_of(net.finish(net.op("MatMul", y, net.weight("o.w", 8, 2), name="o"))).groups
    assert not group.pinned
    assert index(group)["qkv.w:1"] == [[u * 4 + d + 8 * part for part in range(3) for d in range(4)] for u in range(2)]
    assert index(group)["o.w:0"] == each(2, 4)


def test_axes_that_merge_and_split_at_once_pin() -> None:
    net = Net("N", 3, 2, 6)
    y = net.op("Reshape", net.conv(net.x, 4, "a"), net.constant("s", [0, 3, 16]), name="r")
    found = groups_of(net.finish(net.conv(y, 2, "b"))).by_name
    assert found["a"].pinned == ("node 'r' (Reshape) merges and splits it at once",)


def test_axes_of_unknown_size_pin_only_what_goes_into_them() -> None:
    net = Net("N", 3, "H", "W")
    y = net.op("Reshape", net.conv(net.x, 4, "a"), net.constant("s", [0, 4, -1]), name="kept")
    y = net.conv(y, 6, "b")
    y = net.op("Reshape", y, net.constant("t", [0, -1]), name="lost")
    found = groups_of(net.finish(net.op("Relu", y))).by_name
    assert index(found["a"]) == {"a.w:0": each(4), "a:1": each(4), "kept:1": each(4), "b.w:1": each(4)}
    assert found["b"].pinned == ("node 'lost' (Reshape) gives its elements to axes of unknown size",)


def test_a_result_that_holds_fewer_elements_pins() -> None:
    """As a damaged file may say."""
    net = Net("N", 3, 1, 1)
    y = net.op("Reshape", net.conv(net.x, 4, "a"), net.constant("s", [0, 1]), name="r")
    net.graph.set_type(y, y.dtype, ("N", 1))
    found = groups_of(net.finish(y)).by_name
    assert found["a"].pinned == ("node 'r' (Reshape) has no place for it in its result",)


def test_squeeze_and_unsqueeze() -> None:
    net = Net("N", 3, 5, 5)
    y = net.op("GlobalAveragePool", net.conv(net.x, 4, "a"))
    y = net.op(
        "Unsqueeze", net.op("Squeeze", y, net.constant("hw", [2, -1]), name="s"), net.constant("front", [0]), name="u"
    )
    y = net.op("MatMul", y, net.weight("b.w", 4, 6), name="b")
    found = groups_of(
        net.finish(net.op("MatMul", net.op("Squeeze", y, net.constant("n", [0])), net.weight("c.w", 6, 2)))
    ).by_name
    assert (index(found["a"])["s:1"], index(found["a"])["u:2"]) == (each(4), each(4))
    assert index(found["b"])["squeeze:1"] == each(6)


def test_the_one_channel_that_is_squeezed_away_stays() -> None:
    net = Net(2, 3, 5, 5)
    y = net.op("Squeeze", net.conv(net.x, 1, "a"), net.constant("c", [1]), name="s")
    assert groups_of(net.finish(y)).by_name["a"].pinned == ("node 's' (Squeeze) takes its axis away",)
    net = Net(2, 3, 5, 5)
    y = net.op("Squeeze", net.conv(net.x, 1, "a"), name="s")
    assert groups_of(net.finish(y)).by_name["a"].pinned == ("node 's' (Squeeze) takes its axis away",)


def test_expand_and_tile() -> None:
    net = Net("N", 3, 5, 5)
    y = net.op("GlobalAveragePool", net.conv(net.x, 4, "a"))
    y = net.op("Expand", y, net.constant("to", [4, 3, 2]), name="e")
    y = net.op("Tile", y, net.constant("times", [1, 1, 2, 2]), name="t")
    y = net.op("Tile", net.conv(y, 6, "b"), net.constant("twice", [1, 2, 1, 1]), name="u")
    found = groups_of(net.finish(net.conv(y, 2, "c"))).by_name
    assert index(found["a"])["e:1"] == index(found["a"])["t:1"] == each(4)
    assert found["b"].pinned == ("node 'u' (Tile) repeats it",)


def test_one_channel_that_is_expanded_to_many_stays() -> None:
    net = Net("N", 3, 5, 5)
    y = net.op("Expand", net.conv(net.x, 1, "a"), net.constant("to", [1, 4, 5, 5]), name="e")
    found = groups_of(net.finish(net.conv(y, 2, "b"))).by_name
    assert found["a"].pinned == ("node 'e' (Expand) stretches it",)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    net = Net("N", 3, 4, 4)
    y = net.op("DepthToSpace", net.conv(net.x, 12, "a"), name="d", blocksize=2, mode=mode)
    (group,) = groups_of(net.finish(net.conv(y, 2, "b"))).free
    four = each(3, 4, step=3) if mode == "DCR" else each(3, 4)
    assert index(group) == {"a.w:0": four, "a:1": four, "d:1": each(3), "b.w:1": each(3)}


def test_space_to_depth() -> None:
    net = Net("N", 3, 4, 4)
    y = net.op("SpaceToDepth", net.conv(net.x, 3, "a"), name="s", blocksize=2)
    (group,) = groups_of(net.finish(net.conv(y, 2, "b"))).free
    four = each(3, 4, step=3)
    assert index(group) == {"a.w:0": each(3), "a:1": each(3), "s:1": four, "b.w:1": four}
