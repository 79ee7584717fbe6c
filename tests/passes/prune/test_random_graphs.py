"""Networks at random, of every layer that couples channels in a way of its own: cut ≡ masked."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.analysis.channels import find_groups
from onnxslim.ir.graph import Value
from onnxslim.runtime.checker import random_feeds
from tests.passes.prune.conftest import Net, cut_errors, some_units

SIDE = 4
"""Height and width, which no block changes."""
SPREAD = 0.1
"""Added to variances that are divided by: what is all but alike is not blown up, and float32's last bits with it."""


def _size(value: Value) -> int:
    size = (value.shape or ())[1]
    assert isinstance(size, int)
    return size


def plain(net: Net, x: Value, name: str) -> Value:
    return net.op("Relu", net.conv(x, 6, name, 3, bias=True))


def residual(net: Net, x: Value, name: str) -> Value:
    return net.op("Add", x, net.conv(net.op("Relu", net.conv(x, 4, f"{name}.in")), _size(x), f"{name}.out"))


def concat(net: Net, x: Value, name: str) -> Value:
    return net.op("Concat", x, net.conv(x, 4, name), axis=1)


def split(net: Net, x: Value, name: str) -> Value:
    """The first half goes through a layer, and the halves change places."""
    size = _size(x)
    parts = net.results("Split", x, net.constant(f"{name}.sizes", [size // 2, size - size // 2]), axis=1, outputs=2)
    return net.op("Concat", parts[1], net.conv(parts[0], 4, name), axis=1)


def depthwise(net: Net, x: Value, name: str) -> Value:
    return net.conv(x, 2 * _size(x), name, 3, group=_size(x))


def grouped(net: Net, x: Value, name: str) -> Value:
    return net.conv(net.conv(x, 8, f"{name}.in"), 6, name, 3, group=2)


def excited(net: Net, x: Value, name: str) -> Value:
    inner = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), 3, f"{name}.down", bias=True))
    return net.op("Mul", x, net.op("Sigmoid", net.conv(inner, _size(x), f"{name}.up", bias=True)))


def shuffled(net: Net, x: Value, name: str) -> Value:
    x = net.conv(x, 8, name)
    y = net.op("Reshape", x, net.constant(f"{name}.there", [0, 2, 4, SIDE, SIDE]))
    y = net.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    return net.op("Reshape", y, net.constant(f"{name}.back", [0, 8, SIDE, SIDE]))


def transposed(net: Net, x: Value, name: str) -> Value:
    w, b = net.weight(f"{name}.w", _size(x), 6, 2, 2), net.weight(f"{name}.b", 6)
    y = net.op("ConvTranspose", x, w, b, name=name, strides=[2, 2])
    return net.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])


def padded(net: Net, x: Value, name: str) -> Value:
    """A shortcut without parameters."""
    pads = net.constant(f"{name}.pads", [0, 1, 0, 0, 0, 2, 0, 0])
    return net.op("Add", net.op("Pad", x, pads), net.conv(x, _size(x) + 3, name))


def normed(net: Net, x: Value, name: str) -> Value:
    vectors = [net.rng.uniform(0.5, 2, _size(x)).astype(np.float32) for _ in range(4)]
    y = net.op("BatchNormalization", x, *(net.constant(f"{name}.{i}", v) for i, v in enumerate(vectors)))
    return net.op("HardSwish", y)


def turned(net: Net, x: Value, name: str) -> Value:
    """Channels last, a product with a matrix, a slice, and back."""
    y = net.op("MatMul", net.op("Transpose", x, perm=[0, 2, 3, 1]), net.weight(f"{name}.w", _size(x), 7), name=name)
    y = net.op("Slice", y, *(net.constant(f"{name}.{k}", [v]) for k, v in (("s", -6), ("e", 99), ("x", -1))))
    return net.op("Transpose", y, perm=[0, 3, 1, 2])


def summed(net: Net, x: Value, name: str) -> Value:
    """Beside the channels, what all of them say together."""
    total = net.op("ReduceSum", x, net.constant(f"{name}.axes", [1]))
    return net.op("Mul", net.conv(x, 5, name), net.op("Tanh", total))


def group_normed(net: Net, x: Value, name: str) -> Value:
    scale, shift = (net.constant(f"{name}.{i}", net.rng.uniform(0.5, 2, 3).astype(np.float32)) for i in range(2))
    return net.op("GroupNormalization", net.conv(x, 6, name, 3), scale, shift, num_groups=3, epsilon=SPREAD)


def image_normed(net: Net, x: Value, name: str) -> Value:
    """Each channel by itself, over height and width: once with a scale a channel, once with one a place."""
    vectors = (net.constant(f"{name}.{i}", net.rng.uniform(0.5, 2, _size(x)).astype(np.float32)) for i in range(2))
    y = net.op("Tanh", net.op("InstanceNormalization", x, *vectors, epsilon=SPREAD))
    return net.op("LayerNormalization", y, net.weight(f"{name}.places", SIDE, SIDE), axis=2, epsilon=SPREAD)


def channel_normed(net: Net, x: Value, name: str) -> Value:
    """Over the channels, which must stay, and a layer that makes others of them."""
    y, scale = net.op("Transpose", x, perm=[0, 2, 3, 1]), net.weight(f"{name}.g", _size(x))
    y = net.op("LayerNormalization", y, scale, epsilon=SPREAD)
    y = net.op("MatMul", y, net.weight(f"{name}.w", _size(x), 6), name=name)
    return net.op("Transpose", y, perm=[0, 3, 1, 2])


def recurrent(net: Net, x: Value, name: str, op: str = "LSTM", gates: int = 4) -> Value:
    """Rows of the image one after the other, forwards and backwards, to weigh what a layer makes."""
    rows = net.op("Transpose", net.op("ReduceSum", x, net.constant(f"{name}.across", [3]), keepdims=0), perm=[2, 0, 1])
    operands = [net.weight(f"{name}.{k}", 2, gates * 3, size) for k, size in (("w", _size(x)), ("r", 3))]
    operands.append(net.weight(f"{name}.b", 2, 2 * gates * 3))
    y = net.op(op, rows, *operands, name=name, hidden_size=3, direction="bidirectional")
    y = net.op("Reshape", net.op("Transpose", y, perm=[2, 1, 3, 0]), net.constant(f"{name}.both", [0, 6, SIDE, 1]))
    return net.op("Mul", net.conv(x, 6, f"{name}.beside"), y)


def gated(net: Net, x: Value, name: str) -> Value:
    return recurrent(net, x, name, "GRU", 3)


def attended(net: Net, x: Value, name: str) -> Value:
    """Places attend to each other."""
    net.graph.opsets["com.microsoft"] = 1
    y = net.op("Reshape", x, net.constant(f"{name}.places", [0, _size(x), SIDE * SIDE]))
    y = net.op("Transpose", y, perm=[0, 2, 1])
    operands = [net.weight(f"{name}.w", _size(x), 18), net.weight(f"{name}.b", 18)]
    y = net.op("Attention", y, *operands, name=name, domain="com.microsoft", num_heads=3)
    y = net.op("Transpose", y, perm=[0, 2, 1])
    return net.op("Reshape", y, net.constant(f"{name}.image", [0, 6, SIDE, SIDE]))


BLOCKS = [
    plain,
    residual,
    concat,
    split,
    depthwise,
    grouped,
    excited,
    shuffled,
    transposed,
    padded,
    normed,
    turned,
    summed,
    group_normed,
    image_normed,
    channel_normed,
    recurrent,
    gated,
    attended,
]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(BLOCKS), min_size=2, max_size=5), st.booleans(), st.integers(0, 2**16))
def test_cut_is_masked(blocks: list, flat: bool, seed: int) -> None:
    net = Net("N", 3, SIDE, SIDE, seed=seed)
    x = net.conv(net.x, 6, "stem")
    for place, block in enumerate(blocks):
        x = block(net, x, f"block{place}")
    x = net.op("Flatten", x if flat else net.op("GlobalAveragePool", x))
    graph = net.finish(net.gemm(x, 3, "head"))
    groups = find_groups(graph)
    assert groups.free
    feeds = [random_feeds(graph, seed=batch, batch=batch) for batch in (1, 3)]
    rng = np.random.default_rng(seed)
    assert max(cut_errors(graph, some_units(groups, rng), feeds, groups)) <= 1e-5
    lone = rng.choice([group.name for group in groups.free if group.units > 1])
    units = groups.by_name[lone].units
    assert max(cut_errors(graph, {str(lone): [int(rng.integers(units))]}, feeds, groups)) <= 1e-5
