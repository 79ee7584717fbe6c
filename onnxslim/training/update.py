"""`build_update`: an ONNX graph that turns a step's results into the next state.

    w0/…, w1/… (each worker's step outputs), state, lr, step  →  <state>.next

Gradients are weighted by each worker's share and summed in the workers' order. Observers lag one
step: a step quantised with the state of the one before; weight scales follow the weight that was
just updated, so that weight and scale of a state always belong together.

Every array is seen as one row of numbers, whatever its shape elsewhere: ONNX Runtime multiplies
[O, I, 1, 1] by a scalar thirty times slower than it does [O·I].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxslim.ir.graph import DType, Graph, Role, Shape, Value
from onnxslim.ir.quant_math import SCALE_FLOOR, qrange
from onnxslim.ir.verify import verify
from onnxslim.training.optimizers import Optimizer, Rates

__all__ = [
    "BatchNormSpec",
    "ObserverSpec",
    "ParameterSpec",
    "UpdatePlan",
    "WeightScaleSpec",
    "build_norm",
    "build_update",
]

MOMENTUM = 0.9
"""new = old + (1 − momentum)·(batch − old), of observed ranges, and of running statistics whose batch norm says no
other."""


@dataclass(frozen=True)
class ParameterSpec:
    """decays: whether weight decay applies (not on biases and norms). shape: ("n",) means a row of any length."""

    name: str
    shape: tuple[int | str, ...]
    decays: bool


@dataclass(frozen=True)
class BatchNormSpec:
    """A batch norm's running mean and variance, float32 [channels]. momentum: its own, one a channel where several
    batch norms lie in one row."""

    mean: str
    var: str
    channels: int
    momentum: float | tuple[float, ...] = MOMENTUM


@dataclass(frozen=True)
class ObserverSpec:
    """An activation's observed range (float32 [2]) and the grid that follows it; or those of `count` of them, in rows
    (float32 [2·count])."""

    range: str
    scale: str
    zero_point: str
    bits: int
    signed: bool
    count: int = 1


@dataclass(frozen=True)
class WeightScaleSpec:
    """A weight's symmetric scale: per channel along `axis`, or one where it is None."""

    parameter: str
    scale: str
    axis: int | None
    bits: int


@dataclass(frozen=True)
class UpdatePlan:
    """What is updated, and how. shares: each worker's fraction of the batch. read: parameters that are not updated
    here, but whose scales are. scaled: whether gradients are multiplied by an input, `factor`, because their norm is
    taken elsewhere (`build_norm`), over more of them."""

    parameters: tuple[ParameterSpec, ...]
    batchnorms: tuple[BatchNormSpec, ...]
    observers: tuple[ObserverSpec, ...]
    weights: tuple[WeightScaleSpec, ...]
    shares: tuple[float, ...]
    optimizer: Optimizer
    read: tuple[ParameterSpec, ...] = ()
    scaled: bool = False


def build_update(plan: UpdatePlan) -> Graph:
    """The update graph. Scalar output beside the next state: `grad_norm`, where gradients are clipped."""
    graph = _Builder(plan).build()
    verify(graph)
    return graph


def build_norm(names: Sequence[str], plan: UpdatePlan) -> Graph:
    """w0/grad.<name>, w1/… of every name  →  grad_norm, and the `factor` that clipping multiplies gradients by."""
    graph = _Builder(plan).build_norm(names)
    verify(graph)
    return graph


class _Builder:
    def __init__(self, plan: UpdatePlan) -> None:
        self.plan = plan
        self.graph = Graph("update")
        self.shapes = {spec.name: spec.shape for spec in (*plan.read, *plan.parameters)}

    def build(self) -> Graph:
        graph, plan = self.graph, self.plan
        rates = Rates(graph.add_input("lr", DType.FLOAT, ()), graph.add_input("step", DType.FLOAT, ()))
        gradients = [self._merged(f"grad.{spec.name}", _row(spec)) for spec in plan.parameters]
        if plan.scaled:
            factor = graph.add_input("factor", DType.FLOAT, ())
            gradients = [self.op("Mul", g, factor, name="norm/clipped") for g in gradients]
        elif gradients and plan.optimizer.clip_norm is not None:
            factor = self._factor(gradients, plan.optimizer.clip_norm)
            gradients = [self.op("Mul", g, factor, name="norm/clipped") for g in gradients]
        updated = {}
        for spec, gradient in zip(plan.parameters, gradients):
            parameter = self._input(spec.name, _row(spec))
            moments = [self._input(f"{spec.name}.{moment}", _row(spec)) for moment in plan.optimizer.moments]
            updated[spec.name], new = plan.optimizer.update(graph, parameter, gradient, moments, rates, spec.decays)
            self._next(spec.name, updated[spec.name], _row(spec))
            for moment, value in zip(plan.optimizer.moments, new):
                self._next(f"{spec.name}.{moment}", value, _row(spec))
        for batchnorm in plan.batchnorms:
            self._running(batchnorm)
        for observer in plan.observers:
            self._observed(observer)
        rows = {spec.name: _row(spec) for spec in plan.read}
        for weight in plan.weights:
            self._weight_scale(
                weight, updated.get(weight.parameter) or self._input(weight.parameter, rows[weight.parameter])
            )
        return graph

    def build_norm(self, names: Sequence[str]) -> Graph:
        bound = self.plan.optimizer.clip_norm
        assert bound is not None
        factor = self._factor([self._merged(f"grad.{name}", (name,)) for name in names], bound)
        self.graph.rename(factor, "factor")
        self.graph.set_type(factor, DType.FLOAT, ())
        self.graph.add_output(factor)
        return self.graph

    # ------------------------------------------------------------------ words

    def op(self, op: str, *inputs: Value, name: str, **attributes: Any) -> Value:
        """Under a name that no input has, whichever comes first."""
        return self.graph.op(op, *inputs, name=f"op/{name}", **attributes)

    def const(self, number: float) -> Value:
        name = f"const/{float(number)!r}"
        return self.graph.find(name) or self.graph.add_constant(name, np.float32(number))

    def _input(self, name: str, shape: Shape) -> Value:
        return self.graph.find(name) or self.graph.add_input(name, DType.FLOAT, shape)

    def _next(self, name: str, value: Value, shape: Shape) -> None:
        self.graph.rename(value, f"{name}.next")
        self.graph.set_type(value, DType.FLOAT, shape)
        self.graph.set_role(value, Role.ACTIVATION)
        self.graph.add_output(value)

    def _parts(self, name: str, shape: Shape) -> list[Value]:
        return [self._input(f"w{i}/{name}", shape) for i in range(len(self.plan.shares))]

    def _weighted(self, parts: list[Value], name: str) -> Value:
        """Σ shareᵢ · partᵢ; equal shares are multiplied once."""
        shares = self.plan.shares
        if len(set(shares)) > 1:
            parts = [self.op("Mul", p, self.const(s), name=f"{name}/share") for p, s in zip(parts, shares)]
        total = parts[0]
        for part in parts[1:]:  # Add by Add: the order of a Sum is the kernel's own
            total = self.op("Add", total, part, name=f"{name}/sum")
        if len(set(shares)) == 1 and len(shares) > 1:
            total = self.op("Mul", total, self.const(shares[0]), name=f"{name}/mean")
        return total

    def _merged(self, name: str, shape: Shape) -> Value:
        return self._weighted(self._parts(name, shape), name)

    # ------------------------------------------------------------------ what is updated

    def _factor(self, gradients: list[Value], bound: float) -> Value:
        """min(1, bound / (‖g‖ + 1e-6)), the norm over all gradients."""
        squares = [self.op("ReduceSumSquare", g, name="norm/square", keepdims=0) for g in gradients]
        total = self.op("Sum", *squares, name="norm/total")
        norm = self.op("Sqrt", total, name="norm")
        self.graph.rename(norm, "grad_norm")
        self.graph.set_type(norm, DType.FLOAT, ())
        self.graph.add_output(norm)
        ratio = self.op(
            "Div", self.const(bound), self.op("Add", norm, self.const(1e-6), name="norm/safe"), name="norm/ratio"
        )
        return self.op("Min", ratio, self.const(1.0), name="norm/factor")

    def _running(self, spec: BatchNormSpec) -> None:
        """Running statistics follow the whole batch's: mean = Σ s·mᵢ, var = Σ s·(vᵢ + mᵢ²) − mean²."""
        shape = (spec.channels,)
        means = self._parts(f"batch_mean.{spec.mean}", shape)
        variances = self._parts(f"batch_var.{spec.mean}", shape)
        if len(means) == 1:
            mean, var = means[0], variances[0]
        else:
            mean = self._weighted(means, f"{spec.mean}/batch")
            squares = [
                self.op("Add", v, self.op("Mul", m, m, name=f"{spec.var}/square"), name=f"{spec.var}/raw")
                for m, v in zip(means, variances)
            ]
            raw = self._weighted(squares, f"{spec.var}/batch")
            var = self.op(
                "Sub", raw, self.op("Mul", mean, mean, name=f"{spec.var}/mean_square"), name=f"{spec.var}/total"
            )
        share = self._share_of_new(spec)
        for name, batch in ((spec.mean, mean), (spec.var, var)):
            self._next(name, self._moved(self._input(name, shape), batch, share), shape)

    def _share_of_new(self, spec: BatchNormSpec) -> Value:
        """1 − momentum, of all channels or of each."""
        if isinstance(spec.momentum, float):
            return self.const(1 - spec.momentum)
        return self.graph.add_constant(f"{spec.mean}/share", (1 - np.array(spec.momentum)).astype(np.float32))

    def _moved(self, old: Value, new: Value, share: Value) -> Value:
        """old + share·(new − old): what does not change stays as it is, to the last bit."""
        change = self.op("Mul", self.op("Sub", new, old, name=f"{old.name}/off"), share, name=f"{old.name}/change")
        return self.op("Add", old, change, name=f"{old.name}/moved")

    def _observed(self, spec: ObserverSpec) -> None:
        """The range moves towards the batch's; scale and zero point by quant_math.affine_from_range."""
        name, size = spec.range, 2 * spec.count
        parts = self._parts(f"observed.{name}", (size,))
        batch = parts[0]
        if len(parts) > 1:
            # Ends are merged as (−lo, hi), so that one maximum serves both.
            sign = self.graph.add_constant(f"op/{name}/sign", np.tile(np.array([-1, 1], np.float32), spec.count))
            outward = [self.op("Mul", part, sign, name=f"{name}/outward") for part in parts]
            batch = self.op("Mul", self.op("Max", *outward, name=f"{name}/widest"), sign, name=f"{name}/batch")
        moved = self._moved(self._input(name, (size,)), batch, self.const(1 - MOMENTUM))
        ends = [np.array(end) if spec.count == 1 else np.arange(end, size, 2) for end in (0, 1)]
        lowest, highest = (
            self.op("Gather", moved, self.graph.add_constant(f"op/{name}/ends", end), name=f"{name}/end", axis=0)
            for end in ends
        )
        low = self.op("Min", lowest, self.const(0.0), name=f"{name}/low")
        high = self.op("Max", highest, self.const(0.0), name=f"{name}/high")
        self._next(name, moved, (size,))
        qmin, qmax = qrange(spec.bits, spec.signed)
        width = self.op(
            "Div", self.op("Sub", high, low, name=f"{name}/width"), self.const(qmax - qmin), name=f"{name}/step"
        )
        scale = self.op("Max", width, self.const(float(SCALE_FLOOR)), name=f"{name}/scale")
        offset = self.op(
            "Sub", self.const(qmin), self.op("Div", low, scale, name=f"{name}/below"), name=f"{name}/offset"
        )
        zero_point = self.op(
            "Clip",
            self.op("Round", offset, name=f"{name}/round"),
            self.const(qmin),
            self.const(qmax),
            name=f"{name}/zero",
        )
        shape: Shape = () if spec.count == 1 else (spec.count,)
        self._next(spec.scale, scale, shape)
        self._next(spec.zero_point, zero_point, shape)

    def _weight_scale(self, spec: WeightScaleSpec, weight: Value) -> None:
        """max|w| / qmax, floored: quant_math.weight_scale of the updated weight."""
        shape = tuple(d for d in self.shapes[spec.parameter] if isinstance(d, int))
        size = self.op("Abs", weight, name=f"{spec.scale}/abs")
        if spec.axis is None:
            largest = self.op("ReduceMax", size, name=f"{spec.scale}/largest", keepdims=0)
        else:
            axis = spec.axis % len(shape)
            blocks = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
            cut = self.op("Reshape", size, self._ints(*blocks), name=f"{spec.scale}/channels")
            largest = self.op("ReduceMax", cut, self._ints(0, 2), name=f"{spec.scale}/largest", keepdims=0)
        qmax = qrange(spec.bits, True, narrow=True)[1]
        step = self.op("Div", largest, self.const(qmax), name=f"{spec.scale}/step")
        scale = self.op("Max", step, self.const(float(SCALE_FLOOR)), name=f"{spec.scale}/floored")
        self._next(spec.scale, scale, () if spec.axis is None else (shape[spec.axis],))

    def _ints(self, *numbers: int) -> Value:
        name = f"ints/{'_'.join(map(str, numbers))}"
        return self.graph.find(name) or self.graph.add_constant(name, np.array(numbers, np.int64))


def _row(spec: ParameterSpec) -> Shape:
    sizes = [d for d in spec.shape if isinstance(d, int)]
    return (math.prod(sizes),) if len(sizes) == len(spec.shape) else ("n",)
