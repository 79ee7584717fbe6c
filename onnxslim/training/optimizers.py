"""Optimisers as ONNX ops: how a parameter and its moments follow a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, TypeAlias

from pydantic import Field

from onnxslim.ir.graph import Value
from onnxslim.options import LARGEST, declared
from onnxslim.training.update import Optimizer, UpdateBuilder

__all__ = ["AdamW", "Optimizer", "Sgd"]


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
    nesterov: Annotated[bool, Field(description="Whether the momentum has Nesterov's form.")] = True
    weight_decay: WeightDecay = 5e-4
    clip_norm: ClipNorm = None
    learning_rate: LearningRate = 0.05
    name: ClassVar[str] = "sgd"
    moments: ClassVar[tuple[str, ...]] = ("momentum",)

    def update(
        self, builder: UpdateBuilder, parameter: Value, gradient: Value, moments: Sequence[Value], decays: bool
    ) -> tuple[Value, list[Value]]:
        op, const = builder.op, builder.const
        if decays and self.weight_decay:
            gradient = op("Add", gradient, op("Mul", parameter, const(self.weight_decay)))
        momentum = op("Add", op("Mul", moments[0], const(self.momentum)), gradient)
        direction = op("Add", gradient, op("Mul", momentum, const(self.momentum))) if self.nesterov else momentum
        return op("Sub", parameter, op("Mul", direction, builder.rate)), [momentum]


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
        self, builder: UpdateBuilder, parameter: Value, gradient: Value, moments: Sequence[Value], decays: bool
    ) -> tuple[Value, list[Value]]:
        op, const = builder.op, builder.const
        corrections = [self._correction(builder, beta) for beta in self.betas]
        news = [
            op("Add", op("Mul", moment, const(beta)), op("Mul", seen, const(1 - beta)))
            for moment, seen, beta in zip(moments, (gradient, op("Mul", gradient, gradient)), self.betas)
        ]
        mean, spread = (op("Div", new, correction) for new, correction in zip(news, corrections))
        direction = op("Div", mean, op("Add", op("Sqrt", spread), const(self.epsilon)))
        change = op("Mul", direction, builder.rate)
        if decays and self.weight_decay:
            rate = op("Mul", builder.rate, const(self.weight_decay))
            parameter = op("Sub", parameter, op("Mul", parameter, rate))
        return op("Sub", parameter, change), news

    def _correction(self, builder: UpdateBuilder, beta: float) -> Value:
        """1 − βᵗ, computed once for all parameters."""

        def make() -> Value:
            return builder.op("Sub", builder.const(1.0), builder.op("Pow", builder.const(beta), builder.step))

        return builder.once(("correction", beta), make)
