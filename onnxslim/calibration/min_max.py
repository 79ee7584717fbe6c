"""`MinMax`: grids that cover all that was seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from onnxslim.calibration.calibrators import Calibrator
from onnxslim.calibration.statistics import Extremes, Range
from onnxslim.ir.statistics import Statistic, Statistics
from onnxslim.options import declared

__all__ = ["MinMax"]


@declared
class MinMax(Calibrator):
    """From the least to the largest number: nothing that was seen is clipped."""

    name: ClassVar[str] = "min_max"

    def requests(self, value: str, known: Statistics) -> Sequence[Statistic[Any]]:
        return [Range(value)]

    def range(self, value: str, bits: int, known: Statistics) -> Extremes:
        return known[Range(value)]
