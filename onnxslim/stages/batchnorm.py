"""Batch norms put back behind folded convolutions: what training, and a cut, want of a model as it is deployed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from onnxslim.analysis.batch import freed
from onnxslim.errors import DataError
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.rewrite import Context, Outcome, StatisticRequest
from onnxslim.runtime.statistics import gather
from onnxslim.stages.base import RunContext
from passes.quantize import ExpandFakeQuant
from passes.simplify import RestoreBatchnorm, takes_any_batch

__all__ = ["foresee_batchnorm", "restore_batchnorm"]


def restore_batchnorm(graph: Graph, batches: Iterable[Mapping[str, Array]], context: RunContext) -> Outcome:
    """`RestoreBatchnorm` in place, with statistics measured on `batches`, feeds by input name.

    Raises DataError where there is no batch, or one gives NaN or infinity.
    """
    step = RestoreBatchnorm()
    requests = step.requests(graph, Context(seed=context.seed))
    runnable = graph.copy()
    ExpandFakeQuant()(runnable)
    measured = freed(runnable) if takes_any_batch(runnable) else runnable
    found = gather(measured, requests, batches, context.progress, threads=context.workers)
    for request, moments in found.items():
        if not np.isfinite(moments).all():
            raise DataError(
                f"Statistics of '{request.value}' on data.train are NaN or infinite: look for such numbers in the data"
            )
    return step(graph, Context(statistics=found, seed=context.seed))


def foresee_batchnorm(graph: Graph) -> Outcome:
    """What `restore_batchnorm` makes of a graph, in place, with invented statistics: for who asks of its structure
    before data are looked at."""
    step = RestoreBatchnorm()
    invented: dict[StatisticRequest, Array] = {}
    for request in step.requests(graph, Context()):
        producer = graph.producer(graph.value(request.value))
        assert producer is not None
        channels = graph.operand(producer, 1).static_shape[0]
        invented[request] = np.stack([np.zeros(channels), np.ones(channels)]).astype(np.float32)
    return step(graph, Context(statistics=invented))
