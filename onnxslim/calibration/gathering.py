"""`gather`: statistics in one streamed run over data; `collect`: all that a pass asks for, phase by phase."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from onnxslim.errors import DataError
from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.rewrite import Context, Pass
from onnxslim.ir.statistics import Measured, Statistic, Statistics
from onnxslim.runtime.batches import in_batches_of
from onnxslim.runtime.session import Session

__all__ = ["Measure", "collect", "gather", "invented", "not_finite"]

_PHASES = 16  # more than any calibrator has a use for: each is a run over the data

Measure: TypeAlias = Callable[[Sequence[Statistic[Any]]], Statistics]
"""Measures statistics, each of them once, in one run."""


def collect(step: Pass, graph: Graph, context: Context, measure: Measure) -> Context:
    """The context with all the statistics that a pass, or the passes of a pipeline, ask for.

    In each phase `step` is asked what it wants, given what was measured so far: first ranges, then histograms inside
    of them. What all ask for in a phase is measured together. The graph is not changed.

    Raises DataError naming a value whose statistic is NaN or infinite.
    """
    for _ in range(_PHASES):
        missing = [s for s in step.requests(graph, context) if s not in context.statistics]
        if not missing:
            return context
        found = measure(list(dict.fromkeys(missing)))
        for statistic in found:
            if not found[statistic].finite:
                raise not_finite(statistic.what, statistic.value, found[statistic])
        context = replace(context, statistics=context.statistics | found)
    raise RuntimeError(f"Pass '{step.name}' still asks for statistics after {_PHASES} runs over the data")


def not_finite(what: str, value: str, found: Measured) -> DataError:
    """That a statistic of a value is NaN or infinite."""
    return DataError(
        f"The {what} of '{value}' on these data: {found}, though the data are finite: the model itself gives NaN or "
        "infinity there"
    )


def gather(
    graph: Graph,
    statistics: Sequence[Statistic[Any]],
    batches: Iterable[Mapping[str, Array]],
    progress: Callable[[str, int, int], None] | None = None,
    *,
    threads: int = 2,
    total: int = 0,
) -> Statistics:
    """The statistics, each measured once, in one run over the data.

    `batches` are feeds by input name, of any sizes (a graph that takes one size only gets that); `total` is how many,
    for the progress. The graph is not changed, and must be executable (FakeQuant expanded).

    Raises DataError where there is no batch, or a statistic is of no value of the graph, of one that is not float, or
    of one that has not the axes for it.
    """
    wanted = list(dict.fromkeys(statistics))
    if not wanted:
        return Statistics()
    watched = graph.copy()
    for value in watched.outputs:
        watched.remove_output(value)
    names = [_reduced(watched, statistic) for statistic in wanted]
    session = Session(watched, threads=threads, fuse_qdq=False)
    results: list[Any] = []
    count = 0
    for feeds in in_batches_of(watched, batches):
        found = session.run(feeds)
        parts = [s.of([found[name] for name in outputs]) for s, outputs in zip(wanted, names)]
        results = [s.add(one, other) for s, one, other in zip(wanted, results, parts)] if count else parts
        count += 1
        if progress is not None:
            progress("calibrating", count, max(total, count))
    if not count:
        raise DataError("Calibration needs at least one batch of data, got none")
    return Statistics(dict(zip(wanted, results)))


def invented(graph: Graph, statistics: Sequence[Statistic[Any]]) -> Statistics:
    """The statistics as data might give them: for who asks of structure before data are looked at."""
    return Statistics({statistic: statistic.invented(graph) for statistic in statistics})


def _reduced(graph: Graph, statistic: Statistic[Any]) -> list[str]:
    """The outputs that a statistic is computed from, added to the graph."""
    value = _watchable(graph, statistic.value)
    outputs = statistic.reduce(graph, value, f"statistic/{value.name}")
    for output in outputs:
        graph.add_output(output)
    return [output.name for output in outputs]


def _watchable(graph: Graph, name: str) -> Value:
    value = graph.find(name)
    if value is None:
        raise DataError(f"A statistic of '{name}' was asked for, but graph '{graph.name}' has no such value")
    if value.dtype not in (DType.FLOAT, DType.DOUBLE, DType.UNDEFINED):
        raise DataError(f"A statistic of '{name}' was asked for, but it is {value.dtype.name}, not a float")
    return value
