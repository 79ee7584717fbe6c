"""Learning-rate schedules: pure functions of the step, so that a resumed run follows the same course."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from onnxslim.errors import RecipeError

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """The learning rate over time.

    base: the largest rate. name: "constant"; "step" (times `factor` at each of `milestones`, in epochs);
    "cosine" (half a cosine to `final`·base; Loshchilov & Hutter 2017); "one_cycle" (a cosine up from
    base/25 until `peak` of the time, then down to `final`·base; Smith 2018). warmup_epochs: a linear rise from
    0 before, during which the course itself goes on.
    """

    base: float
    name: Literal["constant", "step", "cosine", "one_cycle"] = "cosine"
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = ()
    factor: float = 0.1
    final: float = 0.0
    peak: float = 0.3

    def __post_init__(self) -> None:
        if not self.base > 0:
            raise RecipeError(f"The learning rate must be above 0, got {self.base}")

    def rate(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The rate of a step, counted from 0 over the whole run."""
        total = max(steps_per_epoch * epochs, 1)
        rate = self.base * self._course((step + 0.5) / total, (step + 0.5) / steps_per_epoch)
        warmup = self.warmup_epochs * steps_per_epoch
        return rate * min((step + 1) / warmup, 1.0) if warmup else rate

    def _course(self, progress: float, epoch: float) -> float:
        if self.name == "constant":
            return 1.0
        if self.name == "step":
            return float(self.factor ** sum(epoch >= m for m in self.milestones))
        if self.name == "cosine":
            return _cosine(1.0, self.final, progress)
        start = 1 / 25
        if progress < self.peak:
            return _cosine(start, 1.0, progress / self.peak)
        return _cosine(1.0, self.final, (progress - self.peak) / (1 - self.peak))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
