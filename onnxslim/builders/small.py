"""Small networks for small images: what the demo and many tests train."""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.builders.network import Network
from onnxslim.ir.graph import Graph

__all__ = ["mlp", "small_cnn"]


def small_cnn(
    channels: Sequence[int] = (8, 16),
    classes: int = 10,
    image: Sequence[int] = (1, 8, 8),
    *,
    depthwise: bool = False,
    seed: int = 0,
    batchnorm: bool = True,
) -> Graph:
    """3×3 convolutions, each but the first halving the image; global mean; one linear layer.

    image: (C, H, W) of the input float32 [N, C, H, W]; output: logits float32 [N, classes].
    depthwise: every convolution but the first is a depthwise 3×3 and a 1×1.
    """
    net = Network("small_cnn", image, seed=seed, batchnorm=batchnorm)
    x = net.image
    for place, size in enumerate(channels, start=1):
        stride = 1 if place == 1 else 2
        if depthwise and place > 1:
            x = net.depthwise(x, name=f"conv{place}.depthwise", stride=stride)
            x = net.conv(x, size, 1, name=f"conv{place}.pointwise")
        else:
            x = net.conv(x, size, name=f"conv{place}", stride=stride)
    return net.finish(net.linear(net.global_pool(x), classes, name="head"))


def mlp(hidden: Sequence[int] = (32,), classes: int = 10, image: Sequence[int] = (1, 8, 8), *, seed: int = 0) -> Graph:
    """Flatten, then fully connected layers with ReLU between. image float32 [N, C, H, W] → logits [N, classes]."""
    net = Network("mlp", image, seed=seed, batchnorm=False)
    x = net.flatten(net.image)
    for place, features in enumerate(hidden, start=1):
        x = net.linear(x, features, name=f"hidden{place}", activation="relu")
    return net.finish(net.linear(x, classes, name="head"))
