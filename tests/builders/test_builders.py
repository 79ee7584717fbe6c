"""The builders' networks run in ONNX Runtime, have the parameters that hand counts say, and repeat byte for byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxslim.builders import (
    VGG16,
    InvertedStage,
    Network,
    csp_net,
    mlp,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    resnet,
    small_cnn,
    vgg,
)
from onnxslim.errors import ModelError
from onnxslim.ir.graph import Graph, Role
from onnxslim.ir.onnx_io import to_proto

Builder = Callable[..., Graph]

NARROW_V2 = partial(
    mobilenet_v2,
    stages=[
        InvertedStage(1, 8, 1, 1),
        InvertedStage(6, 16, 2, 2),
        InvertedStage(6, 24, 3, 2),
        InvertedStage(6, 40, 3, 1),
        InvertedStage(6, 56, 3, 2),
        InvertedStage(6, 96, 1, 1),
    ],
    stem=16,
    last=320,
)

NETWORKS = {
    "mobilenet_v1": partial(mobilenet_v1, 0.25),
    "mobilenet_v2": partial(mobilenet_v2, 0.25, last=64),
    "mobilenet_v3": partial(mobilenet_v3, 0.25, image_size=32, last=64, hidden=32),
    "csp_net": partial(csp_net, 8, (1, 2), image_size=16),
    "resnet": partial(resnet, 8, 8),
    "vgg": partial(vgg, (8, 0, 16, 0), hidden=(16,)),
    "small_cnn": small_cnn,
    "small_cnn_depthwise": partial(small_cnn, depthwise=True),
}


def parameters(graph: Graph) -> int:
    return sum(math.prod(v.static_shape) for v in graph.initializers() if v.role is Role.PARAMETER)


def conv(inside: int, outside: int, kernel: int, groups: int = 1) -> int:
    """Parameters of a convolution with bias, by hand."""
    return outside * (inside // groups) * kernel * kernel + outside


def run(graph: Graph, batch: int = 3) -> np.ndarray:
    model = to_proto(graph)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = [batch, *(graph.inputs[0].shape or ())[1:]]
    feed = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    (logits,) = session.run(None, {"image": feed})
    return np.asarray(logits)


@pytest.mark.parametrize("batchnorm", [True, False])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_runs_in_onnxruntime(name: str, batchnorm: bool) -> None:
    logits = run(NETWORKS[name](batchnorm=batchnorm))
    assert logits.shape == (3, 10)
    assert np.isfinite(logits).all()
    assert np.ptp(logits, axis=0).max() > 1e-3  # answers depend on the image


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_same_seed_same_bytes(name: str) -> None:
    build = NETWORKS[name]
    once, again, other = (to_proto(build(seed=seed)).SerializeToString(deterministic=True) for seed in (5, 5, 6))
    assert once == again
    assert once != other


def test_mlp_runs_and_has_hand_counted_parameters() -> None:
    graph = mlp((32, 16), classes=7)
    assert run(graph).shape == (3, 7)
    assert parameters(graph) == (64 * 32 + 32) + (32 * 16 + 16) + (16 * 7 + 7)


def test_mobilenet_v1_parameters() -> None:
    widths = [16, 32, 64, 64, 128, 128, *[256] * 6, 512, 512]
    by_hand = conv(3, 16, 3) + 512 * 10 + 10
    for inside, outside in pairwise(widths):
        by_hand += conv(inside, inside, 3, groups=inside) + conv(inside, outside, 1)
    assert by_hand == 818_250
    assert parameters(mobilenet_v1(0.5, batchnorm=False)) == by_hand


def test_mobilenet_v1_of_imagenet_has_the_published_parameters() -> None:
    # 4.2 million in the paper: 4,231,976 with batch norm's γ and β.
    assert parameters(mobilenet_v1(1.0, classes=1000, image_size=224)) == 4_231_976


def test_mobilenet_v2_of_imagenet_has_the_published_parameters() -> None:
    assert parameters(mobilenet_v2(1.0, classes=1000, image_size=224)) == 3_504_872


def test_mobilenet_v3_of_imagenet_has_the_published_parameters() -> None:
    assert parameters(mobilenet_v3(1.0, classes=1000)) == 2_542_856


def test_csp_net_parameters() -> None:
    def block(channels: int, depth: int) -> int:
        half = channels // 2
        bottleneck = conv(half, half, 1) + conv(half, half, 3)
        return 2 * conv(channels, half, 1) + depth * bottleneck + conv(channels, channels, 1)

    expected = conv(3, 8, 3) + conv(8, 16, 3) + block(16, 1) + conv(16, 32, 3) + block(32, 2) + 32 * 10 + 10
    assert parameters(csp_net(8, (1, 2), batchnorm=False)) == expected


def test_mobilenet_v2_parameters_of_given_stages() -> None:
    assert parameters(NARROW_V2(batchnorm=False)) == 280_762


def test_resnet20_parameters() -> None:
    by_hand = conv(3, 16, 3) + 64 * 10 + 10 + conv(16, 32, 1) + conv(32, 64, 1)
    by_hand += 6 * conv(16, 16, 3) + conv(16, 32, 3) + 5 * conv(32, 32, 3) + conv(32, 64, 3) + 5 * conv(64, 64, 3)
    assert by_hand == 271_690
    assert parameters(resnet(20, batchnorm=False)) == by_hand


def test_vgg9_and_vgg16_parameters() -> None:
    assert parameters(vgg(batchnorm=False)) == 2_571_210
    # VGG-16's thirteen convolutions hold 14,714,688 parameters.
    graph = vgg(VGG16, classes=10, hidden=(), batchnorm=False)
    assert parameters(graph) == 14_714_688 + 512 * 10 + 10


def test_batchnorm_replaces_biases() -> None:
    folded, unfolded = small_cnn((8, 16), batchnorm=False), small_cnn((8, 16))
    assert parameters(unfolded) - parameters(folded) == 8 + 16  # γ and β instead of the bias
    statistics = [v for v in unfolded.initializers() if v.role is Role.STATISTIC]
    assert sum(v.static_shape[0] for v in statistics) == 2 * (8 + 16)
    assert all(unfolded.find(v.owner) is not None for v in statistics)
    np.testing.assert_allclose(run(folded), run(unfolded), rtol=1e-4, atol=1e-5)


def test_roles_names_and_versions() -> None:
    graph = resnet(8)
    assert (graph.opset, graph.ir_version) == (18, 9)
    assert [v.name for v in graph.inputs] == ["image"]
    assert [v.name for v in graph.outputs] == ["logits"]
    assert graph.inputs[0].shape == ("N", 3, 32, 32)
    assert graph.value("stage2.0.conv1").shape == ("N", 32, 16, 16)
    assert all(v.shape is not None for v in graph.values())


def test_weights_have_the_variance_of_he() -> None:
    weight = resnet(8, 64).value("stage1.0.conv1.weight").array
    assert weight is not None
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight.var(), 2 / (64 * 9), rtol=0.03)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_resnet_refuses_other_depths(depth: int) -> None:
    with pytest.raises(ModelError, match=rf"6n \+ 2 .*not {depth}"):
        resnet(depth)


def test_too_small_an_image_is_named() -> None:
    with pytest.raises(ModelError, match="'conv3'.*too small"):
        vgg((8, 0, 8), image_size=1)


def test_groups_must_divide_the_channels() -> None:
    net = Network("odd", (3, 8, 8))
    with pytest.raises(ModelError, match="'c'.*2 groups"):
        net.conv(net.image, 8, name="c", groups=2)


def test_layers_check_the_rank() -> None:
    net = Network("flat", (3, 8, 8))
    with pytest.raises(ModelError, match="'c' takes"):
        net.conv(net.flatten(net.image), 8, name="c")
