"""The rules by which the state follows a step: the optimiser, moving averages, observed ranges, largest values."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from onnxslim.ir.graph import Shape, Value
from onnxslim.ir.quant_math import SCALE_FLOOR, qrange
from onnxslim.training.ports import Port
from onnxslim.training.update import Rule, Sizes, UpdateBuilder

__all__ = ["MOMENTUM", "FollowBatchnorm", "FollowMaximum", "FollowRange", "Optimise"]

MOMENTUM = 0.9
"""new = old + (1 − momentum)·(batch − old), of observed ranges, and of running statistics whose batch norm says no
other."""


@dataclass(frozen=True)
class Optimise(Rule):
    """value, moments ← the optimiser's update by the gradient.

    decays: whether weight decay applies (not on biases and norms).
    """

    value: Port
    shape: Sizes
    decays: bool
    in_pieces: ClassVar[bool] = True

    @property
    def learns(self) -> Mapping[Port, Sizes]:
        return {self.value: self.shape}

    @property
    def moves(self) -> Mapping[Port, Sizes]:
        return self.learns

    @property
    def reads(self) -> Mapping[Port, Sizes]:
        return {self.value.gradient: self.shape}

    @property
    def alike(self) -> Hashable:
        return type(self), self.decays

    def on_rows(self, rules: Sequence[Rule], row: Callable[[str], Port]) -> Rule:
        return replace(self, value=row("value"), shape=("n",))

    def build(self, builder: UpdateBuilder) -> None:
        optimizer = builder.plan.optimizer
        gradient, value = builder.gradient(self.value, self.shape), builder.input(self.value, self.shape)
        moments = [builder.input(self.value.moment(name), self.shape) for name in optimizer.moments]
        following, news = optimizer.update(builder, value, gradient, moments, self.decays)
        builder.set_next(self.value, following, self.shape)
        for name, new in zip(optimizer.moments, news):
            builder.set_next(self.value.moment(name), new, self.shape)


@dataclass(frozen=True)
class FollowBatchnorm(Rule):
    """mean, var ← moved towards those of the whole batch: mean = Σ s·mᵢ, var = Σ s·(vᵢ + mᵢ²) − mean².

    Float32 [channels]. momentum: the batch norm's own, one a channel where several lie in one row.
    """

    mean: Port
    var: Port
    channels: int
    momentum: float | tuple[float, ...] = MOMENTUM

    @property
    def moves(self) -> Mapping[Port, Sizes]:
        return {self.mean: (self.channels,), self.var: (self.channels,)}

    @property
    def reads(self) -> Mapping[Port, Sizes]:
        return {self.mean.batch: (self.channels,), self.var.batch: (self.channels,)}

    @property
    def alike(self) -> Hashable:
        return type(self)

    def on_rows(self, rules: Sequence[Rule], row: Callable[[str], Port]) -> Rule:
        each = [m for rule in rules if isinstance(rule, FollowBatchnorm) for m in rule._of_channels()]
        return FollowBatchnorm(
            row("mean"), row("var"), len(each), each[0] if len(set(each)) == 1 else tuple(each)
        )  # fmt: skip

    def _of_channels(self) -> Sequence[float]:
        return self.momentum if isinstance(self.momentum, tuple) else [self.momentum] * self.channels

    def build(self, builder: UpdateBuilder) -> None:
        shape = (self.channels,)
        means, variances = builder.parts(self.mean.batch, shape), builder.parts(self.var.batch, shape)
        if len(means) == 1:
            mean, var = means[0], variances[0]
        else:
            mean = builder.weighted(means)
            raw = builder.weighted([builder.op("Add", v, builder.op("Mul", m, m)) for m, v in zip(means, variances)])
            var = builder.op("Sub", raw, builder.op("Mul", mean, mean))
        for port, batch in ((self.mean, mean), (self.var, var)):
            builder.set_next(port, builder.moved(builder.input(port, shape), batch, self._share_of_new(builder)), shape)

    def _share_of_new(self, builder: UpdateBuilder) -> Value:
        """1 − momentum, of all channels or of each."""
        if isinstance(self.momentum, float):
            return builder.const(1 - self.momentum)
        return builder.array((1 - np.array(self.momentum)).astype(np.float32))


@dataclass(frozen=True)
class FollowRange(Rule):
    """range ← moved towards the batch's; scale, zero point ← quant_math.affine_from_range of it.

    An activation's observed range, float32 [2], and the grid that follows it; or those of `count` of them, in rows
    (float32 [2·count]). Workers' ranges are joined: the lowest end, the highest end.
    """

    range: Port
    scale: Port
    zero_point: Port
    bits: int
    signed: bool
    count: int = 1

    @property
    def _sizes(self) -> Sizes:
        """Of scale and zero point."""
        return () if self.count == 1 else (self.count,)

    @property
    def moves(self) -> Mapping[Port, Sizes]:
        return {self.range: (2 * self.count,), self.scale: self._sizes, self.zero_point: self._sizes}

    @property
    def reads(self) -> Mapping[Port, Sizes]:
        return {self.range.batch: (2 * self.count,)}

    @property
    def alike(self) -> Hashable:
        return type(self), self.bits, self.signed

    def on_rows(self, rules: Sequence[Rule], row: Callable[[str], Port]) -> Rule:
        ports = {what: row(what) for what in ("range", "scale", "zero_point")}
        return FollowRange(**ports, bits=self.bits, signed=self.signed, count=len(rules))

    def build(self, builder: UpdateBuilder) -> None:
        op, size = builder.op, 2 * self.count
        parts = builder.parts(self.range.batch, (size,))
        batch = parts[0]
        if len(parts) > 1:
            # Ends are merged as (−lo, hi), so that one maximum serves both.
            sign = builder.array(np.tile(np.array([-1, 1], np.float32), self.count))
            batch = op("Mul", op("Max", *(op("Mul", part, sign) for part in parts)), sign)
        moved = builder.moved(builder.input(self.range, (size,)), batch, builder.const(1 - MOMENTUM))
        ends = [np.array(end) if self.count == 1 else np.arange(end, size, 2) for end in (0, 1)]
        lowest, highest = (op("Gather", moved, builder.array(end), axis=0) for end in ends)
        low, high = op("Min", lowest, builder.const(0.0)), op("Max", highest, builder.const(0.0))
        qmin, qmax = qrange(self.bits, self.signed)
        width = op("Div", op("Sub", high, low), builder.const(qmax - qmin))
        scale = op("Max", width, builder.const(float(SCALE_FLOOR)))
        offset = op("Sub", builder.const(qmin), op("Div", low, scale))
        zero_point = op("Clip", op("Round", offset), builder.const(qmin), builder.const(qmax))
        builder.set_next(self.range, moved, (size,))
        builder.set_next(self.scale, scale, self._sizes)
        builder.set_next(self.zero_point, zero_point, self._sizes)


@dataclass(frozen=True)
class FollowMaximum(Rule):
    """scale ← max|w| / qmax, floored: quant_math.weight_scale of the weight as it was just updated.

    shape: the weight's. The scale is symmetric: per channel along `axis`, or one where that is None.
    """

    weight: Port
    shape: tuple[int, ...]
    scale: Port
    axis: int | None
    bits: int

    @property
    def moves(self) -> Mapping[Port, Sizes]:
        return {self.scale: () if self.axis is None else (self.shape[self.axis],)}

    @property
    def reads(self) -> Mapping[Port, Sizes]:
        return {}

    def build(self, builder: UpdateBuilder) -> None:
        size = builder.op("Abs", builder.updated(self.weight, self.shape))
        if self.axis is None:
            largest = builder.op("ReduceMax", size, keepdims=0)
        else:
            axis = self.axis % len(self.shape)
            blocks = (math.prod(self.shape[:axis]), self.shape[axis], math.prod(self.shape[axis + 1 :]))
            cut = builder.op("Reshape", size, builder.ints(*blocks))
            largest = builder.op("ReduceMax", cut, builder.ints(0, 2), keepdims=0)
        qmax = qrange(self.bits, True, narrow=True)[1]
        step = builder.op("Div", largest, builder.const(qmax))
        scale = builder.op("Max", step, builder.const(float(SCALE_FLOOR)))
        shape: Shape = () if self.axis is None else (self.shape[self.axis],)
        builder.set_next(self.scale, scale, tuple(d for d in shape if isinstance(d, int)))
