"""`SetBatch`: another batch size, or any, for a model that an exporter gave one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.analysis.batch import set_batch
from onnxslim.graph import Graph
from onnxslim.rewrite import Context, Outcome, Pass

__all__ = ["SetBatch"]


@dataclass(frozen=True)
class SetBatch(Pass):
    """inputs and outputs [2, …]  →  [batch, …]; `batch` is a number, or a name where any number may come.

    Constants in which the old size is written are rewritten with it: what Reshape, Expand, ConstantOfShape and
    Resize are told to make. Where the batch is a name already, a number takes its place.

    Refuses with UnsupportedError, naming the node: one that takes only the batch size of the export. The graph is
    then unusable.

    Exact, sample by sample: a model computes each sample of a batch as it would alone.
    """

    batch: int | str = "batch"
    name: ClassVar[str] = "set_batch"

    def run(self, graph: Graph, context: Context) -> Outcome:
        before = [v.shape for v in (*graph.inputs, *graph.outputs)]
        count = set_batch(graph, self.batch)
        return Outcome(count or int(before != [v.shape for v in (*graph.inputs, *graph.outputs)]))
