"""Batch norms put back behind folded convolutions: what training, and a cut, want of a model as it is deployed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from onnxslim.analysis.batch import freed
from onnxslim.calibration import collect, gather, invented
from onnxslim.data import ProgressCallback
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.rewrite import Context, Outcome, Pass
from onnxslim.ir.statistics import Statistic, Statistics
from passes.quantize import ExpandFakeQuant
from passes.simplify import RestoreBatchnorm

__all__ = ["RestoreMeasured", "foresee_batchnorm"]

_STEP = RestoreBatchnorm()


@dataclass(frozen=True)
class RestoreMeasured(Pass):
    """`RestoreBatchnorm`, with the statistics that it asks for measured on data.

    batches: feeds by input name. free: whether a batch size that is written into the graph may be changed, see
    `takes_any_batch`. Raises DataError where there is no batch, or the model makes NaN or infinity of one.
    """

    batches: Callable[[], Iterable[Mapping[str, Array]]] = field(hash=False)
    free: bool = True
    threads: int = 2
    progress: ProgressCallback | None = field(default=None, hash=False)
    name: ClassVar[str] = "restore_measured"

    def __call__(self, graph: Graph, context: Context | None = None) -> Outcome:
        """`run`: what it measures for is verified and checked under its own name."""
        return self.run(graph, context or Context())

    def run(self, graph: Graph, context: Context) -> Outcome:
        runnable = graph.copy()
        ExpandFakeQuant()(runnable)
        measured = freed(runnable) if self.free else runnable

        def measure(statistics: Sequence[Statistic[Any]]) -> Statistics:
            return gather(measured, statistics, self.batches(), self.progress, threads=self.threads)

        return _STEP(graph, collect(_STEP, graph, context, measure))


def foresee_batchnorm(graph: Graph) -> Outcome:
    """What `RestoreMeasured` makes of a graph, in place, with invented statistics: for who asks of its structure
    before data are looked at."""
    return _STEP(graph, collect(_STEP, graph, Context(), partial(invented, graph)))
