"""Small networks for benchmarks/fuzz.py, one of each kind that rules are written for; random weights, 5 classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["CLASSES", "networks"]

CLASSES = 5


class Maker:
    """Writes nodes one after the other; weights are drawn in that order."""

    def __init__(self, name: str, shape: tuple[Any, ...], opset: int) -> None:
        self.name, self.shape, self.opset = name, shape, opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self._chance = np.random.default_rng(len(name))

    def constant(self, array: Any, name: str = "") -> str:
        name = name or f"k{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        scale = (2 / max(1, int(np.prod(shape[1:])))) ** 0.5
        return self.constant((self._chance.standard_normal(shape) * scale).astype(np.float32), f"w{len(self.weights)}")

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        number = len(self.nodes)
        names = [f"{kind.lower()}{number}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=f"n{number}", **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, *, axes: int = 2, **given: Any) -> str:
        group = given.get("group", 1)
        w, b = self.weight(outputs, inputs // group, *[kernel] * axes), self.weight(outputs)
        given = {"pads": [kernel // 2] * 2 * axes, "kernel_shape": [kernel] * axes, **given}
        result: str = self.op("Conv", x, w, b, **given)
        return result

    def reduced(self, kind: str, x: str, *axes: int) -> str:
        """Over the axes, which an attribute names before opset 18."""
        given = {"axes": list(axes)} if self.opset < 18 else {}
        inputs = () if given else (self.ints(*axes),)
        result: str = self.op(kind, x, *inputs, keepdims=0, **given)
        return result

    def norm(self, x: str, channels: int) -> str:
        ones = [self.constant(np.linspace(0.5, 1.5, channels, dtype=np.float32)) for _ in range(4)]
        result: str = self.op("BatchNormalization", x, *ones)
        return result

    def head(self, x: str, features: int) -> onnx.ModelProto:
        """A mean over the image's axes, and the classes."""
        flat = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self.finish(self.op("Gemm", flat, self.weight(CLASSES, features), self.weight(CLASSES), transB=1))

    def finish(self, y: str) -> onnx.ModelProto:
        infos = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape),
            helper.make_tensor_value_info(y, TensorProto.FLOAT, [self.shape[0], CLASSES]),
        ]
        graph = helper.make_graph(self.nodes, self.name, infos[:1], infos[1:], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def plain(m: Maker) -> onnx.ModelProto:
    x = m.op("Relu", m.conv("x", 3, 8))
    x = m.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return m.head(m.op("Relu", m.conv(x, 8, 16)), 16)


def residual(m: Maker) -> onnx.ModelProto:
    x = m.op("Relu", m.norm(m.conv("x", 3, 8), 8))
    y = m.norm(m.conv(m.op("Relu", m.norm(m.conv(x, 8, 8), 8)), 8, 8), 8)
    x = m.op("Relu", m.op("Add", x, y))
    x = (
        m.op("ReduceMean", x, axes=[2, 3], keepdims=0)
        if m.opset < 18
        else m.op("ReduceMean", x, m.ints(2, 3), keepdims=0)
    )
    return m.finish(m.op("Add", m.op("MatMul", x, m.weight(8, CLASSES)), m.weight(CLASSES)))


def depthwise(m: Maker) -> onnx.ModelProto:
    low, high = m.constant(np.float32(0)), m.constant(np.float32(6))
    x = m.op("Clip", m.conv("x", 3, 8, strides=[2, 2]), low, high)
    x = m.op("Clip", m.conv(x, 8, 8, group=8), low, high)
    x = m.op("AveragePool", m.conv(x, 8, 16, 1), kernel_shape=[2, 2], strides=[2, 2])
    x = m.op("Reshape", x, m.ints(0, -1))
    return m.finish(m.op("Gemm", x, m.weight(64, CLASSES), m.weight(CLASSES)))


def shuffled(m: Maker) -> onnx.ModelProto:
    a, b = m.op("Split", m.conv("x", 3, 8), m.ints(4, 4), outputs=2, axis=1)
    x = m.op("Concat", m.op("Relu", m.conv(a, 4, 4)), b, axis=1)
    x = m.op("Transpose", m.op("Reshape", x, m.ints(-1, 2, 4, 8, 8)), perm=[0, 2, 1, 3, 4])
    return m.head(m.conv(m.op("Reshape", x, m.ints(-1, 8, 8, 8)), 8, 8, group=2), 8)


def squeezed(m: Maker) -> onnx.ModelProto:
    x = m.op("HardSwish", m.conv("x", 3, 8)) if m.opset > 13 else m.op("Relu", m.conv("x", 3, 8))
    gate = m.op("HardSigmoid", m.conv(m.op("Relu", m.conv(m.op("GlobalAveragePool", x), 8, 8, 1)), 8, 8, 1), alpha=0.2)
    x = m.op("Mul", x, gate)
    return m.head(m.op("Mul", x, m.op("Sigmoid", x)), 8)


def attention(m: Maker) -> onnx.ModelProto:
    x = m.op(
        "Transpose",
        m.op("Reshape", m.conv("x", 3, 8, 2, strides=[2, 2], pads=[0] * 4), m.ints(0, 8, 16)),
        perm=[0, 2, 1],
    )
    y = m.op("LayerNormalization", x, m.weight(8), m.weight(8), axis=-1) if m.opset > 16 else x
    heads = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        one = m.op("Add", m.op("MatMul", y, m.weight(8, 8)), m.weight(8))
        heads.append(m.op("Transpose", m.op("Reshape", one, m.ints(0, 0, 2, 4)), perm=perm))
    scores = m.op("Softmax", m.op("Div", m.op("MatMul", heads[0], heads[1]), m.constant(np.float32(2))), axis=-1)
    y = m.op("Reshape", m.op("Transpose", m.op("MatMul", scores, heads[2]), perm=[0, 2, 1, 3]), m.ints(0, 0, 8))
    x = m.op("Add", x, y)
    half, root, one = (m.constant(np.float32(n)) for n in (0.5, 2**0.5, 1))
    x = m.op("Mul", m.op("Mul", x, m.op("Add", m.op("Erf", m.op("Div", x, root)), one)), half)
    x = m.reduced("ReduceMean", x, 1)
    return m.finish(m.op("MatMul", x, m.weight(8, CLASSES)))


def shapes(m: Maker) -> onnx.ModelProto:
    """Shape arithmetic as exporters write it, padding, slices, resizing."""
    x = m.op("Pad", "x", m.ints(0, 0, 1, 1, 0, 0, 1, 1))
    x = m.op("Relu", m.conv(x, 3, 8, pads=[0, 0, 0, 0]))
    x = m.op("Slice", x, m.ints(1, 1), m.ints(7, 7), m.ints(2, 3))
    x = m.op("Resize", x, "", m.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    batch = m.op("Gather", m.op("Shape", x), m.constant(np.int64(0)), axis=0)
    target = m.op("Concat", m.op("Unsqueeze", batch, m.ints(0)), m.ints(8, -1), axis=0)
    x = m.op("Reshape", x, target)
    ones = m.op("ConstantOfShape", m.op("Shape", x), value=helper.make_tensor("v", TensorProto.FLOAT, [1], [2.0]))
    x = m.op("Where", m.op("Greater", x, m.constant(np.float32(0))), m.op("Mul", x, ones), x)
    x = m.reduced("ReduceMax", x, 2)
    return m.finish(m.op("Gemm", x, m.weight(8, CLASSES), m.weight(CLASSES), alpha=0.5, beta=2.0))


def sequence(m: Maker) -> onnx.ModelProto:
    """Convolutions over one axis, instance norm, a leaky and a learnt ReLU."""
    x = m.op("InstanceNormalization", m.conv("x", 3, 8, axes=1), m.weight(8), m.weight(8))
    x = m.op("PRelu", m.op("LeakyRelu", x, alpha=0.1), m.weight(8, 1))
    return m.head(m.op("Tanh", m.conv(x, 8, 8, axes=1, dilations=[2], pads=[2, 2])), 8)


def upsampled(m: Maker) -> onnx.ModelProto:
    x = m.op(
        "ConvTranspose",
        m.op("Elu", m.conv("x", 3, 8, strides=[2, 2])),
        m.weight(8, 4, 2, 2),
        m.weight(4),
        strides=[2, 2],
    )
    x = m.op("GlobalMaxPool", m.op("Softplus", m.op("Add", x, m.weight(4, 1, 1))))
    return m.finish(m.op("Gemm", m.op("Flatten", x), m.weight(4, CLASSES)))


def recurrent(m: Maker) -> onnx.ModelProto:
    x = m.op("Transpose", "x", perm=[2, 0, 1])
    y = m.op("LSTM", x, m.weight(1, 24, 3), m.weight(1, 24, 6), m.weight(1, 48), hidden_size=6)
    y = m.op(
        "GRU",
        m.op("Squeeze", y, m.ints(1)),
        m.weight(2, 12, 6),
        m.weight(2, 12, 4),
        hidden_size=4,
        direction="bidirectional",
    )
    y = m.op("Reshape", m.op("Transpose", y, perm=[0, 2, 1, 3]), m.ints(0, 0, -1))
    y = m.op("Squeeze", m.op("Slice", y, m.ints(-1), m.ints(9999), m.ints(0)), m.ints(0))
    return m.finish(m.op("MatMul", y, m.weight(8, CLASSES)))


def folded(m: Maker) -> onnx.ModelProto:
    """Much that depends on constants alone."""
    steps = m.op("Range", m.constant(np.int64(0)), m.constant(np.int64(6)), m.constant(np.int64(2)))
    picked = m.op("Gather", m.weight(8, 3), m.op("Cast", steps, to=6), axis=0)
    tiled = m.op("Tile", m.op("Unsqueeze", picked, m.ints(1)), m.ints(1, 4, 1))
    rows = m.op("Reshape", tiled, m.ints(12, 3))
    hot = m.op("OneHot", m.ints(0, 2, 1, 2), m.constant(np.int64(3)), m.constant(np.array([0, 1], np.float32)))
    w = m.op("Concat", rows, hot, axis=0)
    w = m.op("Expand", m.op("Reshape", w, m.ints(16, 3, 1, 1)), m.ints(16, 3, 3, 3))
    x = m.op("Conv", "x", w)
    y = m.op(
        "Mul",
        m.op("Add", x, m.constant(np.zeros((16, 1, 1), np.float32))),
        m.constant(np.full((1, 16, 1, 1), 0.5, np.float32)),
    )
    return m.head(m.op("Dropout", y), 16)


def dense(m: Maker) -> onnx.ModelProto:
    x = m.op("Gemm", "x", m.weight(16, 12), m.weight(16), transB=1)
    x = m.op("Mul", x, m.op("Sigmoid", x))
    for _ in range(2):
        x = m.op("Relu", m.op("Add", m.op("MatMul", x, m.weight(16, 16)), m.weight(16)))
    return m.finish(m.op("Sub", m.op("MatMul", x, m.weight(16, CLASSES)), m.weight(CLASSES)))


IMAGES: tuple[Callable[[Maker], onnx.ModelProto], ...] = (
    plain, residual, depthwise, shuffled, squeezed, attention, shapes, upsampled, folded,
)  # fmt: skip


def networks() -> Iterator[onnx.ModelProto]:
    """Each in two opsets, with a free batch, and with one of 3."""
    for opset in (13, 18):
        for batch in ("N", 3):
            for make in IMAGES:
                yield make(Maker(f"{make.__name__}-{opset}-{batch}", (batch, 3, 8, 8), opset))
            for make in (sequence, recurrent):
                yield make(Maker(f"{make.__name__}-{opset}-{batch}", (batch, 3, 8), opset))
            yield dense(Maker(f"dense-{opset}-{batch}", (batch, 12), opset))
