"""`SetBatch`: another batch size, or any, for a model that an exporter gave one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.analysis.batch import fixed_batch, set_batch
from onnxslim.errors import ModelError, UnsupportedError
from onnxslim.ir.graph import Graph
from onnxslim.ir.rewrite import Context, Outcome, Pass
from onnxslim.runtime.independence import require_independent
from passes.simplify.for_runtime import runnable

__all__ = ["SetBatch", "takes_any_batch"]


@dataclass(frozen=True)
class SetBatch(Pass):
    """inputs and outputs [2, …]  →  [batch, …]; `batch` is a number, or a name where any number may come.

    Constants in which the old size is written are rewritten with it: what Reshape, Expand, ConstantOfShape and
    Resize are told to make, states of recurrent ops, rows that are the same for every sample, indices that count
    through the batch. Where the batch is a name already, a number takes its place.

    Refuses with UnsupportedError: naming the node, one that takes only the batch size of the export; naming the output,
    samples that depend on each other, which is tested by running the model before and after. The graph is then
    unusable.

    Exact, sample by sample: a model computes each sample of a batch as it would alone.
    """

    batch: int | str = "batch"
    name: ClassVar[str] = "set_batch"

    def run(self, graph: Graph, context: Context) -> Outcome:
        before = [v.shape for v in (*graph.inputs, *graph.outputs)]
        original = None if fixed_batch(graph) in (None, self.batch) else graph.copy()
        count = set_batch(graph, self.batch)
        if original is not None:
            require_independent(runnable(original), runnable(graph))
        return Outcome(count or int(before != [v.shape for v in (*graph.inputs, *graph.outputs)]))


def takes_any_batch(graph: Graph) -> bool:
    """Whether the batch of a model is free, or can be: its samples are independent."""
    if fixed_batch(graph) is None:
        return True
    try:
        SetBatch()(graph.copy())
    except (ModelError, UnsupportedError):
        return False
    return True
