"""VGG-like networks (Simonyan & Zisserman 2014, arXiv 1409.1556): 3×3 convolutions, pools, fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.builders.network import Network
from onnxslim.ir.graph import Graph

__all__ = ["VGG9", "VGG11", "VGG13", "VGG16", "VGG19", "vgg"]

POOL = 0
"""Stands for a 2×2 pool in a list of channels."""

VGG9 = (32, 0, 64, 0, 128, 128, 0, 256, 256, 0, 256, 256)
VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)
VGG13 = (64, 64, 0, 128, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
VGG19 = (64, 64, 0, 128, 128, 0, *[256] * 4, 0, *[512] * 4, 0, *[512] * 4, 0)


def vgg(
    layers: Sequence[int] = VGG9,
    classes: int = 10,
    image_size: int = 32,
    *,
    hidden: Sequence[int] = (256,),
    seed: int = 0,
    batchnorm: bool = True,
) -> Graph:
    """image float32 [N, 3, S, S] → logits float32 [N, classes].

    layers: output channels of each 3×3 convolution, 0 for a 2×2 maximum pool.
    hidden: sizes of the fully connected layers before the last.
    """
    net = Network("vgg", (3, image_size, image_size), seed=seed, batchnorm=batchnorm)
    x = net.image
    for place, channels in enumerate(layers, start=1):
        x = net.max_pool(x, name=f"pool{place}") if channels == POOL else net.conv(x, channels, name=f"conv{place}")
    x = net.flatten(x)
    for place, features in enumerate(hidden, start=1):
        x = net.linear(x, features, name=f"hidden{place}", activation="relu")
    return net.finish(net.linear(x, classes, name="head"))
