"""`Workspace`: a graph that is to be cut, its batch norms put back, and what it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnxslim.ir.graph import Array, Graph
from onnxslim.pruning.batchnorm import reestimate
from onnxslim.pruning.pruner import Pruner
from onnxslim.stages.base import RunContext
from onnxslim.stages.quantize import calibration_batches
from passes.simplify import FoldBatchnorm

__all__ = ["Batches", "Workspace"]


@dataclass(frozen=True)
class Workspace:
    """A graph to be cut, and what it came from. restored: whether batch norms were put back, and are to be folded
    again. batches: unlabelled data for them. sizes: of free axes of the input; counted_at: the input's shape, where
    they were found by trying. free: whether the graph's samples are independent, whatever batch is written into it."""

    graph: Graph
    digest: str
    pruner: Pruner
    restored: bool
    batches: Batches | None
    sizes: Mapping[str, int]
    counted_at: str | None
    free: bool

    def settle(self, graph: Graph) -> None:
        """After a cut of `graph`: batch norm's statistics are measured anew, and what was put back is folded."""
        if self.batches is not None:
            reestimate(graph, self.batches(), free=self.free)
        if self.restored:
            FoldBatchnorm()(graph)


@dataclass(frozen=True)
class Batches:
    """Unlabelled feeds of data.train, the same each time."""

    context: RunContext
    input_name: str
    samples: int
    batch: int

    @property
    def digest(self) -> str:
        return f"{self.context.data.get('train').digest()} {self.samples}"

    def __call__(self) -> Iterator[dict[str, Array]]:
        data = self.context.data
        return calibration_batches(
            data.get("train"), self.input_name, data.preprocess, self.samples, self.batch, self.context.seed
        )
