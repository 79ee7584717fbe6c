"""`Quantize`: fake-quant nodes with calibrated scales. Followed by `export` alone: post-training quantisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from onnxslim.analysis.cost import cost
from onnxslim.analysis.memory import samples_within
from onnxslim.analysis.precision import precision_of, require_not_quantized
from onnxslim.analysis.regions import Regions
from onnxslim.analysis.scope import label, place
from onnxslim.analysis.sizes import only_data_input
from onnxslim.budget import MOST_BATCH, MOST_SAMPLES
from onnxslim.calibration import CALIBRATORS, Calibrator, MinMax, collect, gather, invented
from onnxslim.choices import TARGETS
from onnxslim.data import Dataset, Preprocess, ProgressCallback, Samples
from onnxslim.data.opening import check_fits
from onnxslim.errors import OptionError, UnsupportedError
from onnxslim.ir.graph import Graph
from onnxslim.ir.rewrite import Context, Pipeline, Refusal, grouped
from onnxslim.ir.statistics import Statistic, Statistics
from onnxslim.options import Choices, OneOf
from onnxslim.runtime.capabilities import capabilities, host_target
from onnxslim.stages.base import RunContext, Stage, StageResult
from onnxslim.targets import load_target, target_names
from passes.quantize import InsertFakeQuant, MeanToPool, SplitHardSwish
from passes.quantize.insert_fake_quant import require_finite
from passes.simplify import EliminateDead, FoldBatchnorm, FoldPad, FuseGemm, canonicalize

__all__ = ["Quantize", "QuantizedShare", "TargetName", "ready_to_quantize"]


def ready_to_quantize(skip: Sequence[str] = ()) -> Pipeline:
    """What a model goes through before fake-quant nodes are put in: float32, constants folded, in ops that have
    integer kernels, but for nodes that stay in float (`skip`)."""
    opening = (canonicalize(float32=True), FuseGemm(any_rank=True), FoldPad(), MeanToPool(), EliminateDead())
    return Pipeline((*opening, SplitHardSwish(tuple(skip))))


_MOST = 64  # samples at a time


@dataclass(frozen=True)
class QuantizedShare:
    """How much of a model computes on integers: of the nodes that multiply by weights or other activations (`layers`),
    how many, and of their MACs for one sample, what fraction (None where the model's are not known)."""

    int8_layers: int
    layers: int
    int8_macs: float | None

    @classmethod
    def of(cls, graph: Graph, regions: Regions, sizes: Mapping[str, int]) -> QuantizedShare:
        """sizes: of the free axes of the graph's inputs."""
        chosen = {label(graph, node) for node in regions.compute}
        counted = cost(graph, sizes)
        multiplying = [row for row in counted.by_node if row.macs or row.name in chosen or row.name in counted.unknown]
        inside = sum(row.macs or 0 for row in multiplying if row.name in chosen)
        known = bool(counted.macs) and not counted.unknown
        return cls(len(chosen), len(multiplying), inside / (counted.macs or 1) if known else None)


def _known_target(name: str) -> str:
    try:
        return load_target(name).name
    except OptionError:
        names = " or ".join(f"'{known}'" for known in target_names())
        raise PydanticCustomError("literal_error", "{expected}", {"expected": names}) from None


TargetName = Annotated[str, AfterValidator(_known_target), Choices(TARGETS)]


class Quantize(Stage):
    """Inserts fake-quant nodes for a target, scales measured on some of the data (labels are not used)."""

    kind: ClassVar[str] = "quantize"

    target: TargetName = Field(
        default="x64",
        description=f"The processor whose int8 kernels the model is for: {' or '.join(target_names())}.",
    )
    weight_bits: int | None = Field(default=None, ge=2, le=8, description="Bits of weights. Default: the target's, 8.")
    activation_bits: int | None = Field(
        default=None, ge=2, le=8, description="Bits of activations. Default: the target's, 8."
    )
    per_channel: bool | None = Field(
        default=None, description="One weight scale an output channel. Default: the target's, true."
    )
    calibrator: Annotated[Calibrator, OneOf(CALIBRATORS, growing=True)] = Field(
        default=MinMax(), description="How the ranges of activations follow from the data; training then moves them."
    )
    skip: list[str] = Field(
        default=[], description="Nodes to leave in float: by name, op type, glob, or re: and a regular expression."
    )
    data: Literal["train", "val"] = Field(default="train", description="Which data the scales are measured on.")
    samples: int = Field(default=512, ge=1, le=MOST_SAMPLES, description="How many of them, drawn by the seed.")
    batch: int | None = Field(
        default=None,
        ge=1,
        le=MOST_BATCH,
        description="How many at a time. Default: 64, fewer where their activations would take more than 1 GB.",
    )

    def check(self, graph: Graph, context: RunContext) -> None:
        check_fits(context.data.get(self.data), only_data_input(graph), None, context.data.preprocess)
        self._prepared(graph, context.seed)

    def foresee(self, graph: Graph, context: RunContext) -> Graph:
        """With invented ranges."""
        graph, _ = self._prepared(graph, context.seed)
        insert, measured = self._insert(), Context(target=load_target(self.target), seed=context.seed)
        insert(graph, collect(insert, graph, measured, partial(invented, graph)))
        return graph

    def run(self, graph: Graph, context: RunContext) -> StageResult:
        dataset = context.data.get(self.data)
        return self.apply(graph, dataset, context.data.preprocess, context.seed, context.progress)

    def apply(
        self,
        graph: Graph,
        dataset: Dataset,
        preprocess: Preprocess,
        seed: int = 0,
        progress: ProgressCallback | None = None,
    ) -> StageResult:
        """`run`, without a run: the graph with fake-quant nodes, calibrated on a data set."""
        graph, regions = self._prepared(graph, seed)
        data = Samples.of(graph, dataset, preprocess)
        share = QuantizedShare.of(graph, regions, data.sizes)
        batch = self.batch or samples_within(graph, _MOST, data.sizes)

        def measure(statistics: Sequence[Statistic[Any]]) -> Statistics:
            return gather(graph, statistics, data.drawn(self.samples, batch, seed), progress)

        insert, context = self._insert(), Context(target=load_target(self.target), seed=seed)
        inserted = insert(graph, collect(insert, graph, context, measure))
        summary = {
            "target": self.target,
            "fake_quant_nodes": inserted.rewrites,
            "samples": min(self.samples, len(dataset)),
            **dataclasses.asdict(share),
        }
        return StageResult(graph, summary, inserted.refused)

    def _prepared(self, graph: Graph, seed: int) -> tuple[Graph, Regions]:
        """A copy ready for fake-quant nodes, and where they go.

        Raises UnsupportedError where the model is quantised already or nothing in it can be, OptionError where `skip`
        matches nothing, ModelError where a weight is not finite.
        """
        require_not_quantized(graph, "quantised again")
        if precision_of(graph).kind == "fake-quant":
            raise UnsupportedError(
                f"Graph '{graph.name}' has fake-quant nodes already: `onnxslim export` makes its int8 model, train it "
                "with a recipe's train stage"
            )
        graph = graph.copy()
        context = Context(target=load_target(self.target), seed=seed)
        ready_to_quantize(self.skip)(graph, context)
        if self.per_channel is False:  # one scale a tensor cannot absorb a batch norm's factors
            FoldBatchnorm()(graph, context)
        regions = self._insert().regions(graph, context)
        require_finite(graph, regions)
        if not regions.compute:
            told = grouped(Refusal(place(graph, node), why) for node, why in regions.refused)
            reasons = "; ".join(told[:4]) or "it has no convolution or matrix product"
            raise UnsupportedError(f"Nothing in graph '{graph.name}' can be quantised for {self.target}: {reasons}")
        return graph, regions

    @property
    def note(self) -> str | None:
        """What a user should know of int8 figures that are measured on this machine."""
        exact = capabilities().exact_weight_bits
        if self.target != host_target() or (self.weight_bits or load_target(self.target).weight_bits) <= exact:
            return None
        return (
            "This CPU has no VNNI: its int8 kernels add two products in 16 bits, which 8-bit weights saturate, so "
            "accuracy measured here is lower than where they do not. For CPUs like this one: "
            f"`weight_bits={exact}`"
        )

    def _insert(self) -> InsertFakeQuant:
        return InsertFakeQuant(
            self.weight_bits, self.activation_bits, self.per_channel, tuple(self.skip), self.calibrator
        )
