"""`Calibrator`: how the range of an activation's grid follows from what was measured of it.

`CALIBRATORS` is the list of all of them; a new one is a module here and a line there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from onnxslim.calibration.statistics import Extremes
from onnxslim.ir.statistics import Statistic, Statistics
from onnxslim.options import classes_at

__all__ = ["CALIBRATORS", "Calibrator"]


class Calibrator(ABC):
    """What it takes is declared in its fields (`onnxslim.options.declared`); a recipe tells it by its name."""

    name: ClassVar[str]

    @abstractmethod
    def requests(self, value: str, known: Statistics) -> Sequence[Statistic[Any]]:
        """What is to be measured of a value, given what was: it is asked again in each phase, until all that it asks
        for is known."""

    @abstractmethod
    def range(self, value: str, bits: int, known: Statistics) -> Extremes:
        """What a grid of 2 to the power of `bits` integers has to cover, once all that was asked for is known."""


CALIBRATORS: tuple[type[Calibrator], ...] = classes_at(
    "onnxslim.calibration.min_max.MinMax",
)
"""All there are; the first is taken where none is named."""
