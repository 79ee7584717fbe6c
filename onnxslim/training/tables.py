"""What training can be told to use, by name; the first of each is taken where none is named."""

from __future__ import annotations

from onnxslim.options import classes_at
from onnxslim.training.optimizers import Optimizer
from onnxslim.training.scales import Scales
from onnxslim.training.schedules import Schedule

__all__ = ["OPTIMIZERS", "SCALES", "SCHEDULES"]

OPTIMIZERS: tuple[type[Optimizer], ...] = classes_at(
    "onnxslim.training.optimizers.Sgd",
    "onnxslim.training.optimizers.AdamW",
)

SCALES: tuple[type[Scales], ...] = classes_at(
    "onnxslim.training.scales.Followed",
)

SCHEDULES: tuple[type[Schedule], ...] = classes_at(
    "onnxslim.training.schedules.Cosine",
    "onnxslim.training.schedules.Constant",
    "onnxslim.training.schedules.Step",
    "onnxslim.training.schedules.OneCycle",
)
