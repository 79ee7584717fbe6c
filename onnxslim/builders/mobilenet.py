"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861), V2 (Sandler et al. 2018, arXiv 1801.04381) and V3 (Howard et al.
2019, arXiv 1905.02244)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from onnxslim.builders.network import Activation, Network, divisible
from onnxslim.ir.graph import Graph, Value

__all__ = ["GatedBlock", "InvertedStage", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3"]

_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class InvertedStage(NamedTuple):
    """A row of MobileNetV2's table: `repeat` inverted residual blocks, the first of them with the stride."""

    expansion: int
    channels: int
    repeat: int
    stride: int


_V2 = (
    InvertedStage(1, 16, 1, 1),
    InvertedStage(6, 24, 2, 2),
    InvertedStage(6, 32, 3, 2),
    InvertedStage(6, 64, 4, 2),
    InvertedStage(6, 96, 3, 1),
    InvertedStage(6, 160, 3, 2),
    InvertedStage(6, 320, 1, 1),
)


class GatedBlock(NamedTuple):
    """A row of MobileNetV3's table: an inverted residual block of `expansion` channels inside, perhaps with a
    squeeze-and-excite gate."""

    kernel: int
    expansion: int
    channels: int
    gated: bool
    activation: Activation
    stride: int


_V3_SMALL = (
    GatedBlock(3, 16, 16, True, "relu", 2),
    GatedBlock(3, 72, 24, False, "relu", 2),
    GatedBlock(3, 88, 24, False, "relu", 1),
    GatedBlock(5, 96, 40, True, "hard_swish", 2),
    *[GatedBlock(5, 240, 40, True, "hard_swish", 1)] * 2,
    GatedBlock(5, 120, 48, True, "hard_swish", 1),
    GatedBlock(5, 144, 48, True, "hard_swish", 1),
    GatedBlock(5, 288, 96, True, "hard_swish", 2),
    *[GatedBlock(5, 576, 96, True, "hard_swish", 1)] * 2,
)


def _stem_stride(image_size: int) -> int:
    # Images of CIFAR's size are not halved at the entrance, else the last layers see one pixel.
    return 2 if image_size > 64 else 1


def mobilenet_v1(
    width: float = 1.0, classes: int = 10, image_size: int = 32, *, seed: int = 0, batchnorm: bool = True
) -> Graph:
    """13 depthwise-separable blocks. image float32 [N, 3, S, S] → logits float32 [N, classes].

    width: multiplies the channels of every layer, rounded to multiples of 8.
    """
    net = Network("mobilenet_v1", (3, image_size, image_size), seed=seed, batchnorm=batchnorm)
    x = net.conv(net.image, divisible(32 * width), name="stem", stride=_stem_stride(image_size))
    for place, (channels, stride) in enumerate(_V1, start=1):
        x = net.depthwise(x, name=f"block{place}.depthwise", stride=stride)
        x = net.conv(x, divisible(channels * width), 1, name=f"block{place}.pointwise")
    return net.finish(net.linear(net.global_pool(x), classes, name="head"))


def mobilenet_v2(
    width: float = 1.0,
    classes: int = 10,
    image_size: int = 32,
    *,
    stages: Sequence[InvertedStage] = _V2,
    stem: int = 32,
    last: int = 1280,
    seed: int = 0,
    batchnorm: bool = True,
) -> Graph:
    """Inverted residual blocks with linear bottlenecks. image float32 [N, 3, S, S] → logits float32 [N, classes].

    width: multiplies the channels of the stem and the stages (not of the last layer, unless above 1).
    """
    net = Network("mobilenet_v2", (3, image_size, image_size), seed=seed, batchnorm=batchnorm)
    x = net.conv(net.image, divisible(stem * width), name="stem", stride=_stem_stride(image_size), activation="relu6")
    for row, stage in enumerate(stages, start=1):
        for turn in range(stage.repeat):
            stride = stage.stride if turn == 0 else 1
            x = _inverted_block(
                net, x, divisible(stage.channels * width), stage.expansion, stride, f"stage{row}.{turn}"
            )
    x = net.conv(x, divisible(last * max(1.0, width)), 1, name="last", activation="relu6")
    return net.finish(net.linear(net.global_pool(x), classes, name="head"))


def _inverted_block(net: Network, x: Value, channels: int, expansion: int, stride: int, name: str) -> Value:
    shape = x.shape or ()
    inside = shape[1]
    assert isinstance(inside, int)
    y = x
    if expansion != 1:
        y = net.conv(y, inside * expansion, 1, name=f"{name}.expand", activation="relu6")
    y = net.depthwise(y, name=f"{name}.depthwise", stride=stride, activation="relu6")
    y = net.conv(y, channels, 1, name=f"{name}.project", activation=None)
    return net.add(x, y, name=f"{name}.add") if stride == 1 and inside == channels else y


def mobilenet_v3(
    width: float = 1.0,
    classes: int = 10,
    image_size: int = 224,
    *,
    blocks: Sequence[GatedBlock] = _V3_SMALL,
    stem: int = 16,
    last: int = 576,
    hidden: int = 1024,
    seed: int = 0,
    batchnorm: bool = True,
) -> Graph:
    """MobileNetV3, by default the small one: hard swish, squeeze-and-excite. image float32 [N, 3, S, S] → logits
    float32 [N, classes].

    width: multiplies the channels of stem, blocks and last convolution, rounded to multiples of 8.
    """
    net = Network("mobilenet_v3", (3, image_size, image_size), seed=seed, batchnorm=batchnorm)
    stride = _stem_stride(image_size)
    x = net.conv(net.image, divisible(stem * width), name="stem", stride=stride, activation="hard_swish")
    for place, block in enumerate(blocks, start=1):
        x = _gated_block(net, x, block, width, f"block{place}")
    x = net.conv(x, divisible(last * width), 1, name="last", activation="hard_swish")
    x = net.linear(net.global_pool(x), hidden, name="hidden", activation="hard_swish")
    return net.finish(net.linear(x, classes, name="head"))


def _gated_block(net: Network, x: Value, block: GatedBlock, width: float, name: str) -> Value:
    inside, expansion, channels = (
        (x.shape or ())[1],
        divisible(block.expansion * width),
        divisible(block.channels * width),
    )
    y = x
    if expansion != inside:
        y = net.conv(y, expansion, 1, name=f"{name}.expand", activation=block.activation)
    y = net.depthwise(y, block.kernel, name=f"{name}.depthwise", stride=block.stride, activation=block.activation)
    if block.gated:
        y = net.squeeze_excite(y, divisible(expansion / 4), name=f"{name}.gate")
    y = net.conv(y, channels, 1, name=f"{name}.project", activation=None)
    return net.add(x, y, name=f"{name}.add") if block.stride == 1 and inside == channels else y
