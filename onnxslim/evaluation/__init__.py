"""Accuracy, latency and size of models; one, several side by side, or many variants."""

from onnxslim.evaluation.compare import CompareOptions, Row, compare
from onnxslim.evaluation.evaluate import Evaluation, evaluate
from onnxslim.evaluation.latency import Latency, measure_latency
from onnxslim.evaluation.many import Point, Variant, evaluate_many
from onnxslim.evaluation.metrics import Interval, McNemar, mcnemar, top_k, wilson_interval
from onnxslim.evaluation.models import ModelSource, digest_of, open_session, size_of
from onnxslim.evaluation.store import Entry, Result, Store
from onnxslim.evaluation.task import Task

__all__ = [
    "CompareOptions",
    "Entry",
    "Evaluation",
    "Interval",
    "Latency",
    "McNemar",
    "ModelSource",
    "Point",
    "Result",
    "Row",
    "Store",
    "Task",
    "Variant",
    "compare",
    "digest_of",
    "evaluate",
    "evaluate_many",
    "mcnemar",
    "measure_latency",
    "open_session",
    "size_of",
    "top_k",
    "wilson_interval",
]
