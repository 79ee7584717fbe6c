"""`Network`: adds layers to a graph, one method a layer; what the builders are written in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from onnxslim.errors import ModelError
from onnxslim.ir.graph import Array, DType, Graph, Role, Value

__all__ = ["Activation", "Network", "divisible"]

Activation: TypeAlias = Literal["relu", "relu6", "hard_swish", "silu"]


def divisible(channels: float, by: int = 8) -> int:
    """The multiple of `by` nearest to `channels`, at most 10 % below it (as MobileNet's authors round)."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded if rounded >= 0.9 * channels else rounded + by


class Network:
    """A graph under construction.

    Weights are drawn from one seeded stream in the order of the calls: normal with standard deviation
    sqrt(2 / fan_in) before a rectifier (He et al. 2015), sqrt(1 / fan_in) elsewhere; biases are zero.
    With `batchnorm`, a convolution has no bias and is followed by a BatchNormalization with γ = 1, β = 0,
    mean 0 and variance 1; without, it has a bias.

    Every value's shape is known but for the batch axis, named `N`.
    """

    def __init__(self, name: str, image: Sequence[int], *, seed: int = 0, batchnorm: bool = True) -> None:
        """image: (channels, height, width) of the one input, `image`, float32."""
        self.graph = Graph(name, opset=18, ir_version=9)
        self.image = self.graph.add_input("image", DType.FLOAT, ("N", *image))
        self.batchnorm = batchnorm
        self._random = np.random.default_rng(seed)

    def conv(
        self,
        x: Value,
        channels: int,
        kernel: int = 3,
        *,
        name: str,
        stride: int = 1,
        groups: int = 1,
        activation: Activation | None = "relu",
        gain: float | None = None,
    ) -> Value:
        """Convolution [+ batch norm] [+ activation], padded so that stride 1 keeps the size (kernels are odd).

        x: [N, C, H, W] → [N, channels, ceil(H/stride), ceil(W/stride)]. gain: the variance gain of the
        initialisation, by default 2 before an activation and 1 elsewhere.
        """
        _, inside, height, width = self._image_shape(x, name)
        if inside % groups or channels % groups:
            raise ModelError(f"Layer '{name}': {inside} and {channels} channels do not divide into {groups} groups")
        shape = (channels, inside // groups, kernel, kernel)
        if gain is None:
            gain = 2.0 if activation else 1.0
        weight = self._parameter(f"{name}.weight", self._normal(shape, gain / math.prod(shape[1:])))
        bias = None if self.batchnorm else self._parameter(f"{name}.bias", np.zeros(channels, np.float32))
        y = self.graph.op(
            "Conv",
            *([x, weight] if bias is None else [x, weight, bias]),
            name=name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=groups if groups > 1 else None,
        )
        self._typed(y, ("N", channels, -(-height // stride), -(-width // stride)))
        if self.batchnorm:
            y = self._batchnorm(y, channels, f"{name}.norm")
        return y if activation is None else self.activate(y, activation, name=f"{name}.{activation}")

    def depthwise(
        self, x: Value, kernel: int = 3, *, name: str, stride: int = 1, activation: Activation | None = "relu"
    ) -> Value:
        """A convolution of each channel by itself; shapes as in `conv`."""
        channels = self._image_shape(x, name)[1]
        return self.conv(x, channels, kernel, name=name, stride=stride, groups=channels, activation=activation)

    def linear(self, x: Value, features: int, *, name: str, activation: Activation | None = None) -> Value:
        """x: [N, K] → x · Wᵀ + b: [N, features], the weight stored as [features, K]."""
        inside = self._static(x, name)[1]
        scale = (2.0 if activation else 1.0) / inside
        weight = self._parameter(f"{name}.weight", self._normal((features, inside), scale))
        bias = self._parameter(f"{name}.bias", np.zeros(features, np.float32))
        y = self._typed(self.graph.op("Gemm", x, weight, bias, name=name, transB=1), ("N", features))
        return y if activation is None else self.activate(y, activation, name=f"{name}.{activation}")

    def activate(self, x: Value, activation: Activation, *, name: str) -> Value:
        """relu: max(x, 0); relu6: min(max(x, 0), 6); silu: x · σ(x); hard_swish: x · relu6(x + 3) / 6."""
        if activation == "relu":
            y = self.graph.op("Relu", x, name=name)
        elif activation == "hard_swish":
            y = self.graph.op("HardSwish", x, name=name)
        elif activation == "silu":
            gate = self._typed(self.graph.op("Sigmoid", x, name=f"{name}.gate"), x.shape or ())
            y = self.graph.op("Mul", x, gate, name=name)
        else:
            y = self.graph.op("Clip", x, self._scalar("zero", 0.0), self._scalar("six", 6.0), name=name)
        return self._typed(y, x.shape or ())

    def add(self, a: Value, b: Value, *, name: str) -> Value:
        """The sum of two values of equal shape: a residual connection."""
        return self._typed(self.graph.op("Add", a, b, name=name), a.shape or ())

    def concat(self, *parts: Value, name: str) -> Value:
        """[N, C_i, H, W] side by side along the channels."""
        channels = sum(self._image_shape(part, name)[1] for part in parts)
        _, _, height, width = self._image_shape(parts[0], name)
        return self._typed(self.graph.op("Concat", *parts, name=name, axis=1), ("N", channels, height, width))

    def squeeze_excite(self, x: Value, channels: int, *, name: str) -> Value:
        """Each channel of x times a gate in 0 … 1 that the means of all give: two 1×1 convolutions with biases, with
        `channels` between them (Hu et al. 2018, arXiv 1709.01507; the gate is MobileNetV3's hard sigmoid)."""
        inside = self._image_shape(x, name)[1]
        y = self._typed(self.graph.op("GlobalAveragePool", x, name=f"{name}.pool"), ("N", inside, 1, 1))
        for part, width, gain in (("squeeze", channels, 2.0), ("excite", inside, 1.0)):
            before = channels if part == "excite" else inside
            weight = self._parameter(f"{name}.{part}.weight", self._normal((width, before, 1, 1), gain / before))
            bias = self._parameter(f"{name}.{part}.bias", np.zeros(width, np.float32))
            y = self._typed(self.graph.op("Conv", y, weight, bias, name=f"{name}.{part}"), ("N", width, 1, 1))
            if part == "squeeze":
                y = self.activate(y, "relu", name=f"{name}.relu")
        y = self._typed(self.graph.op("HardSigmoid", y, name=f"{name}.gate", alpha=1 / 6, beta=0.5), y.shape or ())
        return self._typed(self.graph.op("Mul", x, y, name=name), x.shape or ())

    def max_pool(self, x: Value, size: int = 2, *, name: str) -> Value:
        """The maximum of each size × size window, windows side by side."""
        _, channels, height, width = self._image_shape(x, name)
        y = self.graph.op("MaxPool", x, name=name, kernel_shape=[size, size], strides=[size, size])
        return self._typed(y, ("N", channels, height // size, width // size))

    def global_pool(self, x: Value, *, name: str = "pool") -> Value:
        """[N, C, H, W] → the mean of each channel, [N, C]."""
        channels = self._image_shape(x, name)[1]
        y = self._typed(self.graph.op("GlobalAveragePool", x, name=name), ("N", channels, 1, 1))
        return self.flatten(y, name=f"{name}.flat")

    def flatten(self, x: Value, *, name: str = "flat") -> Value:
        """[N, …] → [N, product of the rest]."""
        features = math.prod(self._static(x, name)[1:])
        return self._typed(self.graph.op("Flatten", x, name=name, axis=1), ("N", features))

    def finish(self, logits: Value) -> Graph:
        """Makes `logits` the network's one output, under that name, and returns the graph."""
        self.graph.rename(logits, "logits")
        self.graph.add_output(logits)
        return self.graph

    # ------------------------------------------------------------------ private

    def _batchnorm(self, x: Value, channels: int, name: str) -> Value:
        ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        scale, bias = self._parameter(f"{name}.scale", ones), self._parameter(f"{name}.bias", zeros)
        mean = self.graph.add_constant(f"{name}.mean", zeros, role=Role.STATISTIC, owner=x.name)
        variance = self.graph.add_constant(f"{name}.var", ones, role=Role.STATISTIC, owner=x.name)
        y = self.graph.op("BatchNormalization", x, scale, bias, mean, variance, name=name, epsilon=1e-5)
        return self._typed(y, x.shape or ())

    def _parameter(self, name: str, array: Array) -> Value:
        return self.graph.add_constant(name, array, role=Role.PARAMETER)

    def _normal(self, shape: tuple[int, ...], variance: float) -> Array:
        drawn = self._random.standard_normal(shape, dtype=np.float32)
        return drawn * np.float32(math.sqrt(variance))

    def _scalar(self, name: str, number: float) -> Value:
        return self.graph.find(name) or self.graph.add_constant(name, np.float32(number))

    def _typed(self, value: Value, shape: Sequence[int | str | None]) -> Value:
        self.graph.set_type(value, DType.FLOAT, shape)
        return value

    def _static(self, x: Value, name: str) -> tuple[int, ...]:
        shape = x.shape or ()
        sizes = tuple(size for size in shape[1:] if isinstance(size, int) and size > 0)
        if not sizes or len(sizes) + 1 != len(shape):
            raise ModelError(f"Layer '{name}': its input '{x.name}' has shape {x.shape}; too small an image?")
        return (1, *sizes)

    def _image_shape(self, x: Value, name: str) -> tuple[int, int, int, int]:
        shape = self._static(x, name)
        if len(shape) != 4:
            raise ModelError(f"Layer '{name}' takes [N, C, H, W], but its input '{x.name}' has shape {x.shape}")
        return shape[0], shape[1], shape[2], shape[3]
