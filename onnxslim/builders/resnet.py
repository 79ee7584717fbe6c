"""ResNet for CIFAR-size images (He et al. 2015, arXiv 1512.03385, section 4.2): depth 6n + 2."""

from __future__ import annotations

from onnxslim.builders.network import Network
from onnxslim.errors import ModelError
from onnxslim.ir.graph import Graph, Value

__all__ = ["resnet"]


def resnet(
    depth: int = 20, width: int = 16, classes: int = 10, image_size: int = 32, *, seed: int = 0, batchnorm: bool = True
) -> Graph:
    """Three stages of n basic blocks, of width, 2·width and 4·width channels; 1×1 convolutions where a
    shortcut changes shape. image float32 [N, 3, S, S] → logits float32 [N, classes].

    Without batch norm, the last convolution of each block starts smaller by the root of the number of
    blocks, so that the variance does not grow with depth.

    Raises ModelError where depth is not 6n + 2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ModelError(f"A CIFAR ResNet has 6n + 2 layers (8, 14, 20, 32, 44, 56, 110), not {depth}")
    net = Network(f"resnet{depth}", (3, image_size, image_size), seed=seed, batchnorm=batchnorm)
    gain = 2.0 if batchnorm else 2.0 / (3 * blocks)
    x = net.conv(net.image, width, name="stem")
    for stage in range(3):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            x = _basic_block(net, x, width << stage, stride, gain, f"stage{stage + 1}.{block}")
    return net.finish(net.linear(net.global_pool(x), classes, name="head"))


def _basic_block(net: Network, x: Value, channels: int, stride: int, gain: float, name: str) -> Value:
    y = net.conv(x, channels, name=f"{name}.conv1", stride=stride)
    y = net.conv(y, channels, name=f"{name}.conv2", activation=None, gain=gain)
    if stride != 1:
        x = net.conv(x, channels, 1, name=f"{name}.shortcut", stride=stride, activation=None)
    return net.activate(net.add(y, x, name=f"{name}.add"), "relu", name=f"{name}.relu")
