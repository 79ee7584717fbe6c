"""`Workspace`: a graph ready to be cut, and what was found where the stage began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from onnxslim.analysis.cost import cost
from onnxslim.ir.graph import Graph
from onnxslim.ir.rewrite import Context, Pass, Pipeline
from onnxslim.pruning.checker import PruneChecker
from onnxslim.pruning.footprint import Size
from onnxslim.pruning.pruner import Pruner
from onnxslim.runtime.checker import RunChecker

__all__ = ["Workspace"]


@dataclass(frozen=True)
class Workspace:
    """A graph to be cut, and what was found of it and of the data where the stage began.

    graph: prepared, batch norms put back. whole: prepared too, the model whose size fractions refer to. digest: of the
    graph as it came. sizes: of free axes of the input; counted_at: the input's shape, where they were found by trying.
    after: what follows a cut. checked: what tells whether its passes keep what the graph computes.
    """

    graph: Graph
    whole: Graph
    digest: str
    pruner: Pruner
    sizes: Mapping[str, int]
    counted_at: str | None
    after: tuple[Pass, ...]
    checked: RunChecker | None = None

    @cached_property
    def size(self) -> Size:
        """Of the whole model; MACs are 0 where they cannot be counted."""
        found = cost(self.whole, self.sizes)
        return Size(found.macs or 0, found.params, found.bytes)

    def cut(self, step: Pass, cuts: Mapping[str, Sequence[int]]) -> tuple[Graph, int]:
        """A copy in which `step` takes those units away, and how many went."""
        cut = self.graph.copy()
        checker = None if self.checked is None else PruneChecker(self.checked, cuts)
        outcome = Pipeline((step, *self.after))(cut, Context(checker=checker))
        return cut, outcome.by_pass.get(step.name, 0)
