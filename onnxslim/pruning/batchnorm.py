"""Batch norm's statistics measured anew, on unlabelled data: what a cut makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from onnxslim.analysis.batch import freed
from onnxslim.calibration import ChannelMoments, gather
from onnxslim.errors import DataError
from onnxslim.ir.graph import Array, Graph, Node, Role, Value
from onnxslim.ir.ops import is_training
from onnxslim.ir.rewrite import Context, Outcome, Pass
from passes.gradient.train_batchnorm import TrainBatchnorm
from passes.quantize import ExpandFakeQuant

__all__ = ["ReestimateBatchnorm"]


@dataclass(frozen=True)
class ReestimateBatchnorm(Pass):
    """BN(x; γ, β, μ, v)  →  BN(x; γ, β, mean(x), var(x)),  mean and biased variance of each channel over data.

    Each is measured behind batch norms that use the batch's own statistics, as in training, so that one run serves
    all; batches should be large (256 and more). batches: feeds by input name. free: whether a batch size that is
    written into the graph may be changed. Batch norms in training mode are left.

    Raises DataError where there is no batch, or a statistic is no number.
    """

    batches: Callable[[], Iterable[Mapping[str, Array]]] = field(hash=False)
    free: bool = True
    threads: int = 1
    name: ClassVar[str] = "reestimate_batchnorm"
    keeps_types: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> Outcome:
        norms = [
            n for n in graph.nodes() if n.op == "BatchNormalization" and not n.domain and not is_training(graph, n)
        ]
        if not norms:
            return Outcome()
        twin = freed(graph).copy() if self.free else graph.copy()
        TrainBatchnorm()(twin)
        ExpandFakeQuant()(twin)
        measured = [node for node in map(twin.item, (norm.id for norm in norms)) if isinstance(node, Node)]
        asked = [_BatchMoments(twin.result(node).name) for node in measured]
        moments_of = gather(twin, asked, self.batches(), threads=self.threads)
        for node, moments in zip(norms, (moments_of[statistic] for statistic in asked)):
            if not moments.finite:
                raise DataError(
                    f"Batch norm's statistics at {node} are NaN or infinite: look for such numbers in the data"
                )
            for slot, array in ((3, moments.mean), (4, moments.variance)):
                value = _own(graph, node, slot)
                graph.set_array(value, array.astype(value.dtype.numpy))
        return Outcome(len(norms))


@dataclass(frozen=True)
class _BatchMoments(ChannelMoments):
    """Those of what the batch norm reads that makes a value, as it tells them in training; a batch counts by its
    samples."""

    def reduce(self, graph: Graph, value: Value, base: str) -> list[Value]:
        node = graph.producer(value)
        assert node is not None
        sizes = graph.op("Shape", graph.operand(node, 0), name=f"{base}/sizes")
        samples = graph.op("Gather", sizes, graph.add_constant("statistic/first", np.int64(0)), name=f"{base}/samples")
        return [graph.result(node, 1), graph.result(node, 2), samples]


def _own(graph: Graph, node: Node, slot: int) -> Value:
    """A statistic that no other node reads: equal ones may be stored once until they are measured apart."""
    value = graph.operand(node, slot)
    if len(graph.uses(value)) == 1 and value.array is not None:
        return value
    own = graph.add_constant(value.name, np.zeros(value.static_shape, value.dtype.numpy), role=Role.STATISTIC)
    graph.set_input(node, slot, own)
    return own
