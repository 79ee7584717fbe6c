"""`compare`: several models side by side, in accuracy, latency and size, each against the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from onnxslim.brief import Brief
from onnxslim.budget import MOST_BATCH, MOST_EPOCHS, MOST_THREADS
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
from onnxslim.options import Options, made_of, takes

__all__ = ["CompareOptions", "Row", "compare"]


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


class CompareOptions(Options):
    """How models are measured."""

    batch: int | None = Field(
        default=None,
        ge=1,
        le=MOST_BATCH,
        description="Images per run while measuring accuracy. Default: 200, fewer where they take more than 1 GB.",
    )
    latency_repeats: int = Field(
        default=100, ge=0, le=MOST_EPOCHS, description="Timed runs of each model; 0 measures no latency."
    )
    latency_batch: int = Field(default=1, ge=1, le=MOST_BATCH, description="Images per timed run.")
    latency_threads: int = Field(default=1, ge=1, le=MOST_THREADS, description="Threads of a timed run.")


@takes(CompareOptions)
def compare(
    models: Mapping[str, ModelSource],
    dataset: Dataset,
    preprocess: Preprocess | None = None,
    *,
    threads: int = 2,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> tuple[Row, ...]:
    """A row per model, in order: top-1/top-5 with intervals, latency (0 repeats: not measured), bytes.

    options: of `CompareOptions`, such as latency_repeats=0. threads: batches at a time while measuring accuracy.
    Latency is measured on the first samples of the data, all models in one interleaved run. Raises OptionError for
    options that are wrong, and what `evaluate` and `measure_latency` raise.
    """
    how = made_of(CompareOptions, options)
    if not models:
        raise DataError("Nothing to compare: expected at least one model")
    preprocess = preprocess or Preprocess()
    evaluations: dict[str, Evaluation | None] = dict.fromkeys(models)
    if dataset.labelled:
        for name, model in models.items():
            evaluations[name] = evaluate(
                model, dataset, preprocess, batch=how.batch, threads=threads, progress=progress
            )
    latencies: dict[str, Latency] = {}
    if how.latency_repeats:
        rows = np.arange(min(how.latency_batch, len(dataset)), dtype=np.int64)
        source = only_input(open_session(next(iter(models.values()))))
        check_fits(dataset, source, None, preprocess)
        sample = preprocess(input_array(fitted(dataset, source, preprocess.layout).read(rows), source.name))
        latencies = measure_latency(
            models,
            batch=how.latency_batch,
            threads=how.latency_threads,
            repeats=how.latency_repeats,
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
