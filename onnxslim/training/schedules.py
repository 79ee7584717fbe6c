"""Learning-rate schedules: pure functions of the step, so that a resumed run follows the same course."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, TypeAlias

from pydantic import Field

from onnxslim.options import LARGEST, declared

__all__ = ["Constant", "Cosine", "OneCycle", "Schedule", "Step"]

WarmupEpochs: TypeAlias = Annotated[float, Field(ge=0, le=LARGEST, description="Epochs of a linear rise before it.")]
Final: TypeAlias = Annotated[float, Field(ge=0, le=1, description="The last one, as a fraction.")]


class Schedule(ABC):
    """The learning rate over time: a course, and before it `warmup_epochs` of a linear rise from 0, during which the
    course itself goes on."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def warmup_epochs(self) -> float: ...

    @abstractmethod
    def course(self, progress: float, epoch: float) -> float:
        """The rate as a fraction of the largest one, where a fraction `progress` of all steps, and so many epochs, are
        done."""

    def rate(self, largest: float, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The rate of a step, counted from 0 over the whole run. largest: the optimiser's learning rate."""
        total = max(steps_per_epoch * epochs, 1)
        rate = largest * self.course((step + 0.5) / total, (step + 0.5) / steps_per_epoch)
        warmup = self.warmup_epochs * steps_per_epoch
        return rate * min((step + 1) / warmup, 1.0) if warmup else rate


@declared
class Constant(Schedule):
    """The largest rate throughout."""

    warmup_epochs: WarmupEpochs = 0.0
    name: ClassVar[str] = "constant"

    def course(self, progress: float, epoch: float) -> float:
        return 1.0


@declared
class Step(Schedule):
    """Times `factor` at each of `milestones`."""

    milestones: Annotated[
        tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False, description="Epochs at which it falls.")
    ] = ()
    factor: Annotated[float, Field(gt=0, le=1, description="What it falls by.")] = 0.1
    warmup_epochs: WarmupEpochs = 0.0
    name: ClassVar[str] = "step"

    def course(self, progress: float, epoch: float) -> float:
        return float(self.factor ** sum(epoch >= milestone for milestone in self.milestones))


@declared
class Cosine(Schedule):
    """Half a cosine down to `final` (Loshchilov & Hutter 2017)."""

    final: Final = 0.0
    warmup_epochs: WarmupEpochs = 0.0
    name: ClassVar[str] = "cosine"

    def course(self, progress: float, epoch: float) -> float:
        return _cosine(1.0, self.final, progress)


@declared
class OneCycle(Schedule):
    """A cosine up from 1/25 until `peak` of the time, then down to `final` (Smith 2018)."""

    peak: Annotated[float, Field(gt=0, lt=1, description="Where the top is, as a fraction of the time.")] = 0.3
    final: Final = 0.0
    warmup_epochs: WarmupEpochs = 0.0
    name: ClassVar[str] = "one_cycle"

    def course(self, progress: float, epoch: float) -> float:
        if progress < self.peak:
            return _cosine(1 / 25, 1.0, progress / self.peak)
        return _cosine(1.0, self.final, (progress - self.peak) / (1 - self.peak))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
