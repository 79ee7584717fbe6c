"""`Tape`: what a gradient rule sees of one node, and the short words rules are written in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from onnxslim.errors import GradientError
from onnxslim.ir.graph import DType, Graph, Node, Value

__all__ = ["GradientOptions", "Rule", "Tape"]


_SHORT, _LONG = 16, 1024  # taps of a kernel: fewer do not repay the call, more lose digits
_STEEP = 2.0**100  # differences of numbers above 1e-23 are above 1e-30


@dataclass(frozen=True)
class GradientOptions:
    """training_kernels: rules may use the training wheel's kernels (ConvGrad, MaxPoolGrad) where those
    are the faster way; lanes: the width of the runtime's blocked kernels, which they may use too (0: none).
    Without either, every rule is plain ONNX."""

    training_kernels: bool = False
    lanes: int = 0


class Tape:
    """One node on the way back: its inputs `x`, outputs `y` and the gradients `dy` of its outputs.

    A rule returns one gradient an input slot, None where there is none. `wants(slot)` tells
    whether anything will read it. Values that a rule adds are named after the node's output.
    """

    def __init__(
        self, graph: Graph, node: Node, dys: Sequence[Value | None], wanted: Sequence[bool], options: GradientOptions
    ) -> None:
        self.graph, self.node, self.options = graph, node, options
        self._dys, self._wanted = dys, wanted
        self.inputs = graph.node_inputs(node)
        self.outputs = graph.node_outputs(node)
        self._name = "grad/" + next((v.name for v in self.outputs if v is not None), node.op)

    @property
    def dy(self) -> Value:
        """The gradient of the first output."""
        dy = self._dys[0]
        if dy is None:
            raise GradientError(f"{self.node}: only a further output is differentiated, which has no rule")
        return dy

    def dys(self) -> Sequence[Value | None]:
        """The gradients of the node's outputs, by slot; None where nothing depends on one."""
        return self._dys

    def has(self, slot: int) -> bool:
        """Whether an optional input is given."""
        return slot < len(self.inputs) and self.inputs[slot] is not None

    def x(self, slot: int = 0) -> Value:
        """An input of the node."""
        return self.graph.operand(self.node, slot)

    def y(self, slot: int = 0) -> Value:
        """An output of the node."""
        return self.graph.result(self.node, slot)

    def shape(self, slot: int = 0) -> tuple[int, ...]:
        """The static shape of an input."""
        return self.x(slot).static_shape

    def wants(self, slot: int) -> bool:
        """Whether a gradient is wanted of the input in a slot."""
        return slot < len(self._wanted) and self._wanted[slot]

    # ------------------------------------------------------------------ words

    def op(self, op: str, *inputs: Value | None, domain: str = "", outputs: int = 1, **attributes: Any) -> Value:
        """A node of the gradient: what it makes."""
        return self.graph.op(op, *inputs, name=f"{self._name}/{op}", domain=domain, outputs=outputs, **attributes)

    def node_of(
        self,
        op: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[str | None],
        domain: str = "",
        **attributes: Any,
    ) -> Node:
        """A node of which only the named outputs are wanted."""
        names = [None if o is None else f"{self._name}/{op}/{o}" for o in outputs]
        return self.graph.add_node(op, inputs, names, attributes, domain=domain)

    def const(self, array: Any, dtype: Any = np.float32) -> Value:
        """A constant of the gradient."""
        return self.graph.add_constant(f"{self._name}/const", np.asarray(array, dtype))

    def ints(self, *numbers: int) -> Value:
        """A constant of whole numbers, int64."""
        return self.const(numbers, np.int64)

    def add(self, a: Value, b: Value) -> Value:
        """a + b."""
        return self.op("Add", a, b)

    def sub(self, a: Value, b: Value) -> Value:
        """a − b."""
        return self.op("Sub", a, b)

    def mul(self, a: Value, b: Value) -> Value:
        """a · b."""
        return self.op("Mul", a, b)

    def scale(self, a: Value, factor: float) -> Value:
        """a · factor."""
        return a if factor == 1 else self.mul(a, self.const(factor))

    def div(self, a: Value, b: Value) -> Value:
        """a / b."""
        return self.op("Div", a, b)

    def neg(self, a: Value) -> Value:
        """−a."""
        return self.op("Neg", a)

    def as_float(self, condition: Value) -> Value:
        """A bool as 0 or 1."""
        return self.op("Cast", condition, to=int(DType.FLOAT))

    def above(self, a: Value, bound: float = 0.0) -> Value:
        """1 where a > bound, else 0: a hard sigmoid so steep that no float32 lies on its slope, which ONNX
        Runtime computes in one vectorised pass, where a comparison and a Cast take three times as long.
        The bound's product with a power of two is exact."""
        return self.op("HardSigmoid", a, alpha=_STEEP, beta=-bound * _STEEP)

    def below(self, a: Value, bound: float) -> Value:
        """1 where a < bound, else 0."""
        return self.op("HardSigmoid", a, alpha=-_STEEP, beta=bound * _STEEP)

    def exceeds(self, a: Value, b: Value) -> Value:
        """1 where a > b, else 0; one of them may be a scalar. Where the runtime has blocked kernels, a scalar is
        taken off inside of one: one pass over memory instead of two."""
        lanes = self.options.lanes
        x, scalar, sign = (a, b, 1) if b.shape == () else (b, a, -1)
        sizes = [d for d in x.shape or () if isinstance(d, int)]
        known, size = x.shape is not None and len(sizes) == len(x.shape), math.prod(sizes)
        if not lanes or not known or scalar.shape != () or size % lanes:
            return self.above(self.sub(a, b))
        image = self.reshape(x, [1, lanes, 1, size // lanes])
        bias = self.mul(scalar, self.const(np.full(lanes, -sign)))
        made = self.op(
            "Conv", image, self.const(np.full((lanes, 1, 1, 1), sign)), bias, domain="com.microsoft.nchwc",
            group=lanes, kernel_shape=[1, 1], pads=[0] * 4, strides=[1, 1], dilations=[1, 1],
            activation="HardSigmoid", activation_params=[_STEEP, 0.0],
        )  # fmt: skip
        self.graph.set_type(made, DType.FLOAT, [1, lanes, 1, size // lanes])
        return self.reshape(made, sizes)

    def sum(self, a: Value, axes: Sequence[int], keepdims: bool = False) -> Value:
        """Σ over axes; the value itself where there are none."""
        return self.op("ReduceSum", a, self.ints(*axes), keepdims=int(keepdims)) if axes else a

    def dots(self, a: Value, b: Value, rows: int, length: int) -> Value:
        """Σ a·b over each of `rows` rows of memory, float32 [rows].

        The blocked convolution of a with b for its kernel reads both once and writes next to nothing: half the
        time of a product that is summed up afterwards.
        """
        lanes = self.options.lanes
        if not lanes or length % lanes or length // lanes < _SHORT:
            return self.sum(self.reshape(self.mul(a, b), [rows, length]), [1])
        parts = next(k for k in range(-(-length // lanes // _LONG), length + 1) if length // lanes % k == 0)
        taps, planes = length // lanes // parts, rows * parts * lanes
        image, kernel = self.reshape(a, [1, planes, 1, taps]), self.reshape(b, [planes, 1, 1, taps])
        made = self.op(
            "Conv", image, kernel, domain="com.microsoft.nchwc", group=planes, kernel_shape=[1, taps],
            pads=[0] * 4, strides=[1, 1], dilations=[1, 1],
        )  # fmt: skip
        self.graph.set_type(made, DType.FLOAT, [1, planes, 1, 1])
        return self.sum(self.reshape(made, [rows, parts * lanes]), [1])

    def add_scaled(self, a: Value, b: Value, factors: Value, shape: Sequence[int]) -> Value:
        """a + b·factors, one of them a channel of [N, C, ...]. The blocked convolution reads what it is added to: one
        pass over memory less."""
        (batch, channels), length, lanes = shape[:2], math.prod(shape[2:]), self.options.lanes
        if not lanes or length % lanes or length // lanes < _SHORT:
            return self.add(a, self.mul(b, self.reshape(factors, [1, channels] + [1] * (len(shape) - 2))))
        planes = batch * channels * lanes
        weights = self.op("Expand", self.reshape(factors, [1, channels, 1]), self.ints(batch, channels, lanes))
        image = [1, planes, 1, length // lanes]
        made = self.op(
            "Conv", self.reshape(b, image), self.reshape(weights, [planes, 1, 1, 1]), None, self.reshape(a, image),
            domain="com.microsoft.nchwc", group=planes, kernel_shape=[1, 1], pads=[0] * 4, strides=[1, 1],
            dilations=[1, 1],
        )  # fmt: skip
        self.graph.set_type(made, DType.FLOAT, image)
        return self.reshape(made, shape)

    def reshape(self, a: Value, shape: Sequence[int]) -> Value:
        """The same numbers in another shape."""
        return self.op("Reshape", a, self.ints(*shape))

    def split(self, a: Value, parts: int, size: int, axis: int) -> list[Value]:
        """Equal parts along an axis."""
        names = [str(i) for i in range(parts)]
        made = self.node_of("Split", [a, self.ints(*[size] * parts)], names, axis=axis)
        return [self.graph.result(made, i) for i in range(parts)]

    def unbroadcast(self, gradient: Value, slot: int) -> Value:
        """The gradient of the output summed back to the shape of an input that was broadcast."""
        full, target = self.y().static_shape, self.shape(slot)
        extra = len(full) - len(target)
        axes = [a for a in range(len(full)) if a < extra or (target[a - extra] == 1 and full[a] != 1)]
        if not axes:
            return gradient
        summed = self.sum(gradient, axes, keepdims=extra == 0)
        return summed if extra == 0 else self.reshape(summed, target)


Rule: TypeAlias = Callable[[Tape], Sequence[Value | None]]
