"""`compare`: several models side by side, in accuracy, latency and size, each against the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxslim.brief import Brief
from onnxslim.data.dataset import Dataset, input_array
from onnxslim.data.fitting import fitted
from onnxslim.data.opening import check_fits
from onnxslim.data.progress import ProgressCallback
from onnxslim.data.transforms import Preprocess
from onnxslim.errors import DataError
from onnxslim.evaluation.evaluate import Evaluation, evaluate
from onnxslim.evaluation.foreign import foreign_target
from onnxslim.evaluation.latency import Latency, measure_latency
from onnxslim.evaluation.metrics import McNemar, mcnemar
from onnxslim.evaluation.models import ModelSource, only_input, open_session, size_of

__all__ = ["Row", "compare"]


@dataclass(frozen=True, repr=False)
class Row(Brief):
    """One model. bytes_ratio and mcnemar are against the first row, which has 1.0 and None;
    latency.ratio likewise. evaluation is None where the data are unlabelled. foreign: the target of an int8 model where
    that is not this machine: its answers are the integer evaluator's, its latency is not comparable."""

    name: str
    evaluation: Evaluation | None
    latency: Latency | None
    bytes: int
    bytes_ratio: float
    mcnemar: McNemar | None
    foreign: str | None = None


def compare(
    models: Mapping[str, ModelSource],
    dataset: Dataset,
    preprocess: Preprocess | None = None,
    *,
    batch: int | None = None,
    threads: int = 2,
    latency_batch: int = 1,
    latency_threads: int = 1,
    latency_repeats: int = 100,
    progress: ProgressCallback | None = None,
) -> tuple[Row, ...]:
    """A row per model, in order: top-1/top-5 with intervals, latency (0 repeats: not measured), bytes.

    Latency is measured on the first samples of the data, all models in one interleaved run. Raises
    what `evaluate` and `measure_latency` raise.
    """
    if not models:
        raise DataError("Nothing to compare: expected at least one model")
    preprocess = preprocess or Preprocess()
    evaluations: dict[str, Evaluation | None] = dict.fromkeys(models)
    if dataset.labelled:
        for name, model in models.items():
            evaluations[name] = evaluate(model, dataset, preprocess, batch=batch, threads=threads, progress=progress)
    latencies: dict[str, Latency] = {}
    if latency_repeats:
        rows = np.arange(min(latency_batch, len(dataset)), dtype=np.int64)
        source = only_input(open_session(next(iter(models.values()))))
        check_fits(dataset, source, None, preprocess)
        sample = preprocess(input_array(fitted(dataset, source, preprocess.layout).read(rows), source.name))
        latencies = measure_latency(
            models,
            batch=latency_batch,
            threads=latency_threads,
            repeats=latency_repeats,
            sample=sample,
            progress=progress,
        )
    sizes = {name: size_of(model) for name, model in models.items()}
    first = next(iter(models))
    return tuple(
        Row(
            name,
            evaluations[name],
            latencies.get(name),
            sizes[name],
            sizes[name] / sizes[first],
            None if name == first else _paired(evaluations[first], evaluations[name]),
            foreign_target(models[name]),
        )
        for name in models
    )


def _paired(first: Evaluation | None, other: Evaluation | None) -> McNemar | None:
    return None if first is None or other is None else mcnemar(first.correct, other.correct)
