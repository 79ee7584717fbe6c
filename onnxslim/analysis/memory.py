"""How much memory a run takes, and so how many samples may go through a model at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnxslim.analysis.cost import one_sample
from onnxslim.ir.graph import DType, Graph, Value

__all__ = ["BUDGET", "activation_bytes", "samples_within"]

BUDGET = 1 << 30
"""Bytes of activations that runs over data may keep by default: the same on every machine, so that equal runs are."""


def activation_bytes(graph: Graph, sizes: Mapping[str, int] | None = None) -> int:
    """Of one sample, all values that nodes make together: an upper bound of what a run keeps at a time.

    sizes: of free axes, as in `analysis.sizes`. A value of unknown size counts as the largest known one.
    """
    sample, batch = one_sample(graph, sizes)
    made = [v for node in sample.nodes() for v in sample.node_outputs(node) if v is not None]
    known = [_bytes(value) for value in made]
    largest = max((size for size in known if size is not None), default=0)
    return sum(largest if size is None else size for size in known) // batch


def samples_within(
    graph: Graph, most: int, sizes: Mapping[str, int] | None = None, *, budget: int = BUDGET, runs: int = 1
) -> int:
    """How many samples at a time, 1 to `most`, keep `runs` runs side by side within the budget of bytes."""
    return max(1, min(most, budget // runs // max(activation_bytes(graph, sizes), 1)))


def _bytes(value: Value) -> int | None:
    shape = value.shape
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    size = 4 if value.dtype in (DType.UNDEFINED, DType.STRING) else value.dtype.numpy.itemsize
    return size * math.prod(d for d in shape if isinstance(d, int))
