"""MACs, parameters and bytes equal counts made by hand, grouped and transposed convolutions included."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.analysis.cost import cost
from onnxslim.ir.graph import DType, Graph, Role
from onnxslim.ir.onnx_io import read

# Networks by their published structure: (kernel, in, out, size of the output, depthwise)


def _mobilenet_v1() -> tuple[int, int]:
    """MobileNetV1 × 0.5 on 32×32: stride 1 first, then 13 separable blocks."""
    blocks = [(32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), *[(256, 1)] * 5, (512, 2), (512, 1)]
    macs, params, channels, size = 9 * 3 * 16 * 32 * 32, 9 * 3 * 16 + 16, 16, 32
    for width, stride in blocks:
        size //= stride
        macs += 9 * channels * size * size + channels * width * size * size
        params += 9 * channels + channels + channels * width + width
        channels = width
    return macs + 512 * 10, params + 512 * 10 + 10


def _resnet20() -> tuple[int, int]:
    """Three stages of three blocks, 16, 32, 64 wide; a 1×1 convolution where the width doubles."""
    macs, params, channels = 9 * 3 * 16 * 32 * 32, 9 * 3 * 16 + 16, 16
    for width, size in ((16, 32), (32, 16), (64, 8)):
        for block in range(3):
            first = 9 * channels * width
            shortcut = channels * width if block == 0 and channels != width else 0
            macs += (first + 9 * width * width + shortcut) * size * size
            params += first + width + 9 * width * width + width + shortcut + (width if shortcut else 0)
            channels = width
    return macs + 64 * 10, params + 64 * 10 + 10


def _vgg9() -> tuple[int, int]:
    layers = [
        (3, 32, 32),
        (32, 64, 16),
        (64, 128, 8),
        (128, 128, 8),
        (128, 256, 4),
        (256, 256, 4),
        *[(256, 256, 2)] * 2,
    ]
    macs = sum(9 * i * o * s * s for i, o, s in layers) + 1024 * 256 + 256 * 10
    return macs, sum(9 * i * o + o for i, o, _ in layers) + 1024 * 256 + 256 + 256 * 10 + 10


@pytest.mark.parametrize(
    "name, counted",
    [("mobilenet_v1", _mobilenet_v1()), ("resnet20", _resnet20()), ("vgg9", _vgg9())],
    ids=lambda p: str(p),
)
def test_known_networks(name: str, counted: tuple[int, int], shared: Path) -> None:
    graph = read(shared / "models" / f"{name}.onnx")
    found = cost(graph)
    assert (found.macs, found.params) == counted
    assert found.bytes == 4 * found.params + sum(
        v.array.nbytes for v in graph.initializers() if v.array is not None and not v.dtype.is_float
    )
    assert found.unknown == ()
    assert sum(row.macs for row in found.by_node) == found.macs
    assert sum(row.params for row in found.by_node) == found.params


def test_two_exporters_count_the_same(shared: Path) -> None:
    for name in ("resnext", "shufflenet_v2", "unet", "densenet", "mobilenet_v3_small"):
        macs = [
            cost(read(shared / "models" / "structures" / f"{name}.{e}.onnx")).macs for e in ("torchscript", "dynamo")
        ]
        assert macs[0] == macs[1] > 0  # dynamo wrote a batch of 2 into the file


@settings(deadline=None, max_examples=40)
@given(
    group=st.integers(1, 4),
    ins=st.integers(1, 3),
    outs=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    batch=st.sampled_from(["n", 1, 4]),
    transposed=st.booleans(),
)
def test_convolutions(
    group: int, ins: int, outs: int, kernel: tuple[int, int], batch: int | str, transposed: bool
) -> None:
    """Counted by going over every product."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (batch, group * ins, 7, 6))
    shape = (group * ins, outs, *kernel) if transposed else (group * outs, ins, *kernel)
    weight = graph.add_constant("w", np.zeros(shape, np.float32))
    graph.add_output(
        graph.op("ConvTranspose" if transposed else "Conv", x, weight, group=group, strides=[2, 1], name="conv")
    )
    positions = 7 * 6 if transposed else ((7 - kernel[0]) // 2 + 1) * (6 - kernel[1] + 1)
    products = 0
    for _ in range(group):
        for _ in range(ins):
            for _ in range(outs):
                products += positions * kernel[0] * kernel[1]
    found = cost(graph)
    assert found.macs == products
    assert found.params == group * ins * outs * kernel[0] * kernel[1]
    assert (found.by_node[0].name, found.by_node[0].op) == ("conv", "ConvTranspose" if transposed else "Conv")


@pytest.mark.parametrize("trans_a, trans_b", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(trans_a: int, trans_b: int) -> None:
    graph = Graph()
    a = graph.add_constant("a", np.zeros((3, 5) if trans_a else (5, 3), np.float32))
    b = graph.add_input("b", DType.FLOAT, (7, 3) if trans_b else (3, 7))
    bias = graph.add_constant("c", np.zeros(7, np.float32))
    graph.set_role(b, Role.PARAMETER)
    graph.add_output(graph.op("Gemm", a, b, bias, transA=trans_a, transB=trans_b))
    assert cost(graph).macs == 5 * 3 * 7
    assert cost(graph).params == 15 + 7


@pytest.mark.parametrize(
    "a, b, macs",
    [
        ((4, 3), (3, 5), 60),
        ((2, 4, 3), (3, 5), 120),
        ((2, 1, 4, 3), (6, 3, 5), 720),
        ((3,), (3,), 3),
        ((4, 3), (3,), 12),
    ],
)
def test_matmul_broadcasts(a: tuple[int, ...], b: tuple[int, ...], macs: int) -> None:
    graph = Graph()
    values = [graph.add_constant("a", np.zeros(a, np.float32)), graph.add_constant("b", np.zeros(b, np.float32))]
    graph.add_output(graph.op("MatMul", *values))
    assert cost(graph).macs == macs


def test_a_shared_weight_counts_once_and_every_use_multiplies() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ("n", 4))
    weight = graph.add_constant("w", np.zeros((4, 4), np.float32))
    graph.add_output(graph.op("MatMul", graph.op("Relu", graph.op("MatMul", x, weight)), weight))
    found = cost(graph)
    assert (found.macs, found.params, found.bytes) == (32, 16, 64)
    assert [row.params for row in found.by_node] == [16, 0, 0]


def test_quantised_and_normalised_models() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ("n", 4, 8, 8))
    integers = graph.add_constant("w", np.zeros((6, 4, 1, 1), np.int8))
    scale = graph.add_constant("s", np.ones(6, np.float32))
    zero = graph.add_constant("z", np.zeros(6, np.int8))
    y = graph.op("Conv", x, graph.op("DequantizeLinear", integers, scale, zero, axis=0))
    numbers = [graph.add_constant(n, np.ones(6, np.float32)) for n in ("gamma", "beta", "mean", "var")]
    graph.add_output(graph.op("BatchNormalization", y, *numbers))
    found = cost(graph)
    assert found.macs == 6 * 4 * 64
    assert found.params == 24 + 12  # running statistics and scales are none
    assert found.bytes == 24 + 6 + 24 + 4 * 24
    assert found.unknown == ()


def test_packed_bytes_and_strings() -> None:
    graph = Graph()
    graph.add_output(graph.add_constant("n", np.zeros(5, ml_dtypes.int4)))
    graph.add_output(graph.add_constant("t", np.array([b"abc", b""], object)))
    graph.add_output(graph.add_constant("h", np.zeros(5, np.float16)))
    assert cost(graph).bytes == 3 + 3 + 10


def test_what_cannot_be_known_is_named() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ("n", 3, "height", 8))
    weight = graph.add_constant("w", np.zeros((4, 3, 3, 3), np.float32))
    y = graph.op("Conv", x, weight, name="conv")
    graph.add_output(graph.op("Odd", y, domain="com.example", name="odd"))
    found = cost(graph)
    assert found.unknown == ("conv", "odd")
    assert found.macs is None
    known = cost(graph, {"height": 8})
    assert known.unknown == ("odd",)
    assert known.macs == 6 * 6 * 4 * 3 * 9


def test_recurrent_cells() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (7, 2, 5))  # steps, batch, features
    graph.set_role(x, Role.CONSTANT)
    w = graph.add_constant("w", np.zeros((1, 4 * 3, 5), np.float32))
    r = graph.add_constant("r", np.zeros((1, 4 * 3, 3), np.float32))
    graph.add_output(graph.op("LSTM", x, w, r, hidden_size=3))
    assert cost(graph).macs == 7 * 2 * (12 * 5 + 12 * 3)


@pytest.mark.parametrize(
    ("attributes", "sizes"),
    [
        ({}, (2, 5, 4)),
        ({"transA": 1}, (2, 4, 5)),
        ({"transBatchA": 1}, (5, 2, 4)),
        ({"transBatchA": 1, "transA": 1}, (4, 2, 5)),
    ],
)
def test_a_fused_product_whose_sides_are_turned(attributes: dict[str, int], sizes: tuple[int, ...]) -> None:
    """Two products [5, 4] · [4, 3], however the first side lies."""
    graph = Graph()
    graph.opsets["com.microsoft"] = 1
    a = graph.add_input("a", DType.FLOAT, sizes)
    graph.set_role(a, Role.CONSTANT)
    b = graph.add_constant("b", np.zeros((4, 3), np.float32))
    graph.add_output(graph.op("FusedMatMul", a, b, domain="com.microsoft", **attributes))
    assert cost(graph).macs == 2 * 5 * 4 * 3


def test_the_graph_is_left_as_it_was(model_path: Path) -> None:
    graph = read(model_path)
    mark = graph.mark()
    assert cost(graph).macs > 0
    assert graph.mark() == mark
