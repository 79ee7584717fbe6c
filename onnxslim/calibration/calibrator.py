"""`Calibrator`: how the range of an activation's grid follows from what was measured of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxslim.calibration.statistics import Extremes, Range
from onnxslim.ir.statistics import Statistic, Statistics

__all__ = ["Calibrator", "MinMax"]


@dataclass(frozen=True)
class Calibrator(ABC):
    """A frozen dataclass, its fields its options."""

    @abstractmethod
    def requests(self, value: str, known: Statistics) -> Sequence[Statistic[Any]]:
        """What is to be measured of a value, given what was: it is asked again in each phase, until all that it asks
        for is known."""

    @abstractmethod
    def range(self, value: str, bits: int, known: Statistics) -> Extremes:
        """What a grid of 2 to the power of `bits` integers has to cover."""


@dataclass(frozen=True)
class MinMax(Calibrator):
    """All that was seen: nothing is clipped."""

    def requests(self, value: str, known: Statistics) -> Sequence[Statistic[Any]]:
        return [Range(value)]

    def range(self, value: str, bits: int, known: Statistics) -> Extremes:
        return known[Range(value)]
