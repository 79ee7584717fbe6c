"""Batch norm's statistics measured anew, on unlabelled data: what a cut makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from onnxslim.analysis.batch import freed
from onnxslim.errors import DataError
from onnxslim.ir.graph import Array, Graph, Node, Role, Value
from onnxslim.ir.ops import is_training
from onnxslim.runtime.batches import in_batches_of
from onnxslim.runtime.session import Session
from passes.gradient.train_batchnorm import TrainBatchnorm
from passes.quantize import ExpandFakeQuant

__all__ = ["reestimate"]


def reestimate(graph: Graph, batches: Iterable[Mapping[str, Array]], *, threads: int = 1, free: bool = True) -> int:
    """Gives every batch norm the mean and biased variance of what it reads, in place; how many there are.

    Each is measured behind batch norms that use the batch's own statistics, as in training, so that one run serves
    all; batches should be large (256 and more). free: a batch size that is written into the graph may be changed.
    Raises DataError where there is no batch, or a statistic is no number.
    """
    norms = [n for n in graph.nodes() if n.op == "BatchNormalization" and not n.domain and not is_training(graph, n)]
    if not norms:
        return 0
    twin = freed(graph).copy() if free else graph.copy()
    TrainBatchnorm()(twin)
    for value in twin.outputs:
        twin.remove_output(value)
    measured = [node for node in map(twin.item, (norm.id for norm in norms)) if isinstance(node, Node)]
    for node in measured:
        for slot in (1, 2):
            twin.add_output(twin.result(node, slot))
    ExpandFakeQuant()(twin)
    session = Session(twin, threads=threads, fuse_qdq=False)
    moments = [np.zeros((2, graph.operand(n, 3).static_shape[0])) for n in norms]  # sums of x and of x²
    total = 0
    for feeds in in_batches_of(twin, batches):
        size = len(next(iter(feeds.values())))
        found = session.run(feeds)
        for node, sums in zip(measured, moments):
            mean, var = (found[twin.result(node, slot).name].astype(np.float64) for slot in (1, 2))
            sums += size * np.stack([mean, var + np.square(mean)])
        total += size
    if not total:
        raise DataError("Batch norm's statistics need at least one batch of data, got none")
    for node, (mean, square) in zip(norms, (sums / total for sums in moments)):
        if not np.isfinite([mean, square]).all():
            raise DataError(f"Batch norm's statistics at {node} are NaN or infinite: look for such numbers in the data")
        for slot, array in ((3, mean), (4, np.maximum(square - np.square(mean), 0))):
            value = _own(graph, node, slot)
            graph.set_array(value, array.astype(value.dtype.numpy))
    return len(norms)


def _own(graph: Graph, node: Node, slot: int) -> Value:
    """A statistic that no other node reads: equal ones may be stored once until they are measured apart."""
    value = graph.operand(node, slot)
    if len(graph.uses(value)) == 1 and value.array is not None:
        return value
    own = graph.add_constant(value.name, np.zeros(value.static_shape, value.dtype.numpy), role=Role.STATISTIC)
    graph.set_input(node, slot, own)
    return own
