"""A calibrator that needs no data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxslim.calibration import Calibrator, Extremes
from onnxslim.ir.statistics import Statistic, Statistics


@dataclass(frozen=True)
class FixedRange(Calibrator):
    """The same range for every activation."""

    low: float
    high: float

    def requests(self, value: str, known: Statistics) -> Sequence[Statistic[Any]]:
        return ()

    def range(self, value: str, bits: int, known: Statistics) -> Extremes:
        return Extremes(self.low, self.high)
