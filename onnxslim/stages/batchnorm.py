"""Batch norms put back behind folded convolutions: what training, and a cut, want of a model as it is deployed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from onnxslim.analysis.batch import freed
from onnxslim.calibration import collect, gather, invented
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.rewrite import Context, Outcome
from onnxslim.ir.statistics import Statistic, Statistics
from onnxslim.stages.base import RunContext
from passes.quantize import ExpandFakeQuant
from passes.simplify import RestoreBatchnorm, takes_any_batch

__all__ = ["foresee_batchnorm", "restore_batchnorm"]


def restore_batchnorm(
    graph: Graph, batches: Callable[[], Iterable[Mapping[str, Array]]], context: RunContext
) -> Outcome:
    """`RestoreBatchnorm` in place, with statistics measured on `batches`, feeds by input name.

    Raises DataError where there is no batch, or the model makes NaN or infinity of one.
    """
    runnable = graph.copy()
    ExpandFakeQuant()(runnable)
    measured = freed(runnable) if takes_any_batch(runnable) else runnable

    def measure(statistics: Sequence[Statistic[Any]]) -> Statistics:
        return gather(measured, statistics, batches(), context.progress, threads=context.workers)

    step = RestoreBatchnorm()
    return step(graph, collect(step, graph, Context(seed=context.seed), measure))


def foresee_batchnorm(graph: Graph) -> Outcome:
    """What `restore_batchnorm` makes of a graph, in place, with invented statistics: for who asks of its structure
    before data are looked at."""
    step = RestoreBatchnorm()
    return step(graph, collect(step, graph, Context(), partial(invented, graph)))
