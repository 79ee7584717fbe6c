"""Calibration: statistics of values over data, gathered in streamed runs, and the ranges of grids that follow."""

from onnxslim.calibration.calibrators import CALIBRATORS, Calibrator
from onnxslim.calibration.gathering import Measure, collect, gather, invented, not_finite
from onnxslim.calibration.min_max import MinMax
from onnxslim.calibration.statistics import ChannelMoments, Extremes, Moments, Range

__all__ = [
    "CALIBRATORS",
    "Calibrator",
    "ChannelMoments",
    "Extremes",
    "Measure",
    "MinMax",
    "Moments",
    "Range",
    "collect",
    "gather",
    "invented",
    "not_finite",
]
