"""What pruning can be told to judge by, by name; the first of each is taken where none is named."""

from __future__ import annotations

from onnxslim.options import classes_at, named
from onnxslim.pruning.criteria import Criterion
from onnxslim.pruning.metric import Function, Metric

__all__ = ["CRITERIA", "METRICS", "criterion_of", "metric_of"]

CRITERIA: tuple[type[Criterion], ...] = classes_at(
    "onnxslim.pruning.criteria.L1",
    "onnxslim.pruning.criteria.L2",
    "onnxslim.pruning.criteria.BatchnormScale",
    "onnxslim.pruning.criteria.GeometricMedian",
    "onnxslim.pruning.criteria.Taylor",
    "onnxslim.pruning.criteria.Chance",
)

METRICS: tuple[type[Metric], ...] = classes_at(
    "onnxslim.pruning.metric.Top1",
    "onnxslim.pruning.metric.Function",
)


def criterion_of(text: str) -> Criterion:
    """A criterion by its name, with its defaults."""
    found: Criterion = named(CRITERIA, text)
    return found


def metric_of(text: str) -> Metric:
    """A metric by its name, with its defaults, or a function as package.module:function."""
    if ":" in text:
        return Function(text)
    found: Metric = named([cls for cls in METRICS if cls is not Function], text, "package.module:function")
    return found
