"""Feeds for models into which a batch size is written: regrouped to just that many samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from onnxslim.analysis.batch import fixed_batch
from onnxslim.ir.graph import Array, Graph

__all__ = ["in_batches_of"]


def in_batches_of(graph: Graph, batches: Iterable[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
    """The same samples in the same order, as many at a time as the graph takes: as they come where its batch is free,
    else in its own, the last one filled up with samples from its beginning."""
    size = fixed_batch(graph)
    if size is None:
        yield from batches
        return
    rest: dict[str, Array] = {}
    for feeds in batches:
        whole = {name: np.concatenate([rest[name], array]) if rest else array for name, array in feeds.items()}
        count = len(next(iter(whole.values())))
        full = count - count % size
        for start in range(0, full, size):
            yield {name: array[start : start + size] for name, array in whole.items()}
        rest = {name: array[full:] for name, array in whole.items()} if full < count else {}
    if rest:
        count = len(next(iter(rest.values())))
        places = np.arange(size) % count
        yield {name: array[places] for name, array in rest.items()}
