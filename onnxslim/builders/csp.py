"""A cross-stage-partial network with SiLU (Wang et al. 2020, arXiv 1911.11929), as detectors use it for a backbone."""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.builders.network import Network
from onnxslim.ir.graph import Graph, Value

__all__ = ["csp_net"]


def csp_net(
    width: int = 16,
    depths: Sequence[int] = (1, 2, 2),
    classes: int = 10,
    image_size: int = 64,
    *,
    seed: int = 0,
    batchnorm: bool = True,
) -> Graph:
    """A stem of `width` channels, and for each depth a stage that halves the image and doubles the channels, with that
    many bottlenecks on half of them. image float32 [N, 3, S, S] → logits float32 [N, classes].
    """
    net = Network("csp_net", (3, image_size, image_size), seed=seed, batchnorm=batchnorm)
    x = net.conv(net.image, width, name="stem", stride=2 if image_size > 64 else 1, activation="silu")
    for stage, depth in enumerate(depths, start=1):
        width *= 2
        x = net.conv(x, width, name=f"stage{stage}.down", stride=2, activation="silu")
        x = _csp_block(net, x, width, depth, f"stage{stage}")
    return net.finish(net.linear(net.global_pool(x), classes, name="head"))


def _csp_block(net: Network, x: Value, channels: int, depth: int, name: str) -> Value:
    """One half of the channels goes by the bottlenecks, the other past them."""
    half = channels // 2
    y = net.conv(x, half, 1, name=f"{name}.through", activation="silu")
    for place in range(depth):
        inner = net.conv(y, half, 1, name=f"{name}.{place}.conv1", activation="silu")
        inner = net.conv(inner, half, name=f"{name}.{place}.conv2", activation="silu")
        y = net.add(y, inner, name=f"{name}.{place}.add")
    past = net.conv(x, half, 1, name=f"{name}.past", activation="silu")
    return net.conv(net.concat(y, past, name=f"{name}.concat"), channels, 1, name=f"{name}.out", activation="silu")
