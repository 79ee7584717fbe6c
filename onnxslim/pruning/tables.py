"""What pruning can be told to judge by, by name; the first is taken where none is named."""

from __future__ import annotations

from onnxslim.options import classes_at
from onnxslim.pruning.metric import Function, Metric

__all__ = ["METRICS", "metric_of"]

METRICS: tuple[type[Metric], ...] = classes_at(
    "onnxslim.pruning.metric.Top1",
    "onnxslim.pruning.metric.Function",
)


def metric_of(text: str) -> Metric:
    """A metric by its name, with its defaults, or a function as package.module:function."""
    if ":" in text:
        return Function(text)
    found = next((cls for cls in METRICS if cls.name == text and cls is not Function), None)
    if found is None:
        names = ", ".join(cls.name for cls in METRICS if cls is not Function)
        raise ValueError(f"package.module:function, or one of {names}")
    return found()
