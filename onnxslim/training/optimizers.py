"""Optimisers as ONNX ops: how a parameter and its moments follow a gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol, TypeAlias

import numpy as np
from pydantic import Field

from onnxslim.ir.graph import Graph, Value
from onnxslim.options import LARGEST, declared

__all__ = ["OPTIMIZERS", "AdamW", "Optimizer", "Rates", "Sgd"]


@dataclass(frozen=True)
class Rates:
    """Values of the update graph that all parameters share: the rate and the step, float32 scalars."""

    lr: Value
    step: Value


class Optimizer(Protocol):
    """How parameters follow their gradients. moments: names of what is kept a parameter."""

    name: ClassVar[str]

    @property
    def moments(self) -> tuple[str, ...]: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def clip_norm(self) -> float | None: ...

    def update(
        self, graph: Graph, parameter: Value, gradient: Value, moments: list[Value], rates: Rates, decays: bool
    ) -> tuple[Value, list[Value]]:
        """Adds the update of one parameter; returns its next value and its next moments."""
        ...


def _const(graph: Graph, number: float) -> Value:
    name = f"const/{number!r}"
    return graph.find(name) or graph.add_constant(name, np.float32(number))


LearningRate: TypeAlias = Annotated[
    float, Field(gt=0, le=LARGEST, description="The largest one; the schedule scales it.")
]
WeightDecay: TypeAlias = Annotated[float, Field(ge=0, le=LARGEST, description="On weights; never on biases and norms.")]
ClipNorm: TypeAlias = Annotated[
    float | None, Field(gt=0, le=LARGEST, description="Bound on the gradients' global norm. Default: none.")
]
Beta: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


@declared
class Sgd:
    """Stochastic gradient descent with momentum, as PyTorch defines it:

    g ← g + λ·w;  m ← μ·m + g;  w ← w − lr·(g + μ·m) with Nesterov's form, w − lr·m without.
    """

    momentum: Annotated[float, Field(ge=0, lt=1, description="How much of the last direction stays.")] = 0.9
    nesterov: Annotated[bool, Field(description="Nesterov's form of the momentum.")] = True
    weight_decay: WeightDecay = 5e-4
    clip_norm: ClipNorm = None
    learning_rate: LearningRate = 0.05
    name: ClassVar[str] = "sgd"
    moments: ClassVar[tuple[str, ...]] = ("momentum",)

    def update(
        self, graph: Graph, parameter: Value, gradient: Value, moments: list[Value], rates: Rates, decays: bool
    ) -> tuple[Value, list[Value]]:
        base = f"op/{parameter.name}"
        if decays and self.weight_decay:
            decay = graph.op("Mul", parameter, _const(graph, self.weight_decay), name=f"{base}/decay")
            gradient = graph.op("Add", gradient, decay, name=f"{base}/decayed")
        slowed = graph.op("Mul", moments[0], _const(graph, self.momentum), name=f"{base}/slowed")
        momentum = graph.op("Add", slowed, gradient, name=f"{base}/momentum")
        direction = momentum
        if self.nesterov:
            ahead = graph.op("Mul", momentum, _const(graph, self.momentum), name=f"{base}/ahead")
            direction = graph.op("Add", gradient, ahead, name=f"{base}/nesterov")
        change = graph.op("Mul", direction, rates.lr, name=f"{base}/change")
        return graph.op("Sub", parameter, change, name=f"{base}/moved"), [momentum]


@declared
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), as PyTorch defines it:

    w ← w − lr·λ·w;  m ← β₁m + (1 − β₁)g;  v ← β₂v + (1 − β₂)g²;
    w ← w − lr·m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε).
    """

    betas: Annotated[tuple[Beta, Beta], Field(strict=False, description="How much of the two moments stays.")] = (
        0.9,
        0.999,
    )
    epsilon: Annotated[float, Field(gt=0, le=1, description="Added to the root of the second moment.")] = 1e-8
    weight_decay: WeightDecay = 5e-4
    clip_norm: ClipNorm = None
    learning_rate: LearningRate = 0.05
    name: ClassVar[str] = "adamw"
    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    def update(
        self, graph: Graph, parameter: Value, gradient: Value, moments: list[Value], rates: Rates, decays: bool
    ) -> tuple[Value, list[Value]]:
        base = f"op/{parameter.name}"
        corrections = [self._correction(graph, rates, i) for i in (0, 1)]
        square = graph.op("Mul", gradient, gradient, name=f"{base}/square")
        news = []
        for moment, seen, beta, what in zip(moments, (gradient, square), self.betas, self.moments):
            kept = graph.op("Mul", moment, _const(graph, beta), name=f"{base}/{what}_kept")
            added = graph.op("Mul", seen, _const(graph, 1 - beta), name=f"{base}/{what}_added")
            news.append(graph.op("Add", kept, added, name=f"{base}/{what}"))
        mean, spread = (graph.op("Div", n, c, name=f"{base}/corrected") for n, c in zip(news, corrections))
        root = graph.op(
            "Add",
            graph.op("Sqrt", spread, name=f"{base}/root"),
            _const(graph, self.epsilon),
            name=f"{base}/denominator",
        )
        change = graph.op("Mul", graph.op("Div", mean, root, name=f"{base}/direction"), rates.lr, name=f"{base}/change")
        if decays and self.weight_decay:
            rate = graph.op("Mul", rates.lr, _const(graph, self.weight_decay), name=f"{base}/decay_rate")
            parameter = graph.op(
                "Sub", parameter, graph.op("Mul", parameter, rate, name=f"{base}/decay"), name=f"{base}/decayed"
            )
        return graph.op("Sub", parameter, change, name=f"{base}/moved"), news

    def _correction(self, graph: Graph, rates: Rates, which: int) -> Value:
        """1 − βᵗ, computed once for all parameters."""
        name = f"correction/{which}"
        known = graph.find(name)
        if known is not None:
            return known
        power = graph.op("Pow", _const(graph, self.betas[which]), rates.step, name=f"power/{which}")
        return graph.op("Sub", _const(graph, 1.0), power, name=name)


OPTIMIZERS: tuple[type[Optimizer], ...] = (Sgd, AdamW)
"""All there are; the first is taken where none is named."""
