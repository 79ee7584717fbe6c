"""`Quantize`: fake-quant nodes with calibrated scales. Followed by `export` alone: post-training quantisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from onnxslim.data import Dataset, Preprocess, ProgressCallback, evaluation_batches
from onnxslim.data.dataset import Subset
from onnxslim.data.opening import check_fits
from onnxslim.graph import Array, Graph
from onnxslim.rewrite import Context, Pipeline
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.statistics import gather
from onnxslim.stages.base import RunContext, Stage, StageResult, only_data_input
from onnxslim.targets import load_target, target_names
from passes.quantize import InsertFakeQuant, MeanToPool, SplitHardSwish
from passes.simplify import EliminateDead, FoldBatchnorm, FoldPad, canonicalize

__all__ = ["Quantize", "TargetName", "calibration_batches", "ready_to_quantize"]


def ready_to_quantize() -> Pipeline:
    """What a model goes through before fake-quant nodes are put in: float32, constants folded, in ops that have
    integer kernels."""
    return Pipeline((canonicalize(float32=True), FoldPad(), MeanToPool(), EliminateDead()))


def _known_target(name: str) -> str:
    if name not in target_names():
        raise ValueError(" or ".join(f"'{n}'" for n in target_names()))
    return name


TargetName = Annotated[str, AfterValidator(_known_target)]


class Quantize(Stage):
    """Inserts fake-quant nodes for a target, scales measured on some of the data (labels are not used)."""

    kind: ClassVar[str] = "quantize"

    target: TargetName = Field(default="x64", description="What the int8 model will run on: x64 or arm.")
    weight_bits: int | None = Field(default=None, ge=2, le=8, description="Bits of weights. Default: the target's, 8.")
    activation_bits: int | None = Field(
        default=None, ge=2, le=8, description="Bits of activations. Default: the target's, 8."
    )
    per_channel: bool | None = Field(
        default=None, description="One weight scale an output channel. Default: the target's, true."
    )
    skip: list[str] = Field(
        default=[], description="Nodes to leave in float: names, op types, globs, or re: and a regular expression."
    )
    data: Literal["train", "val"] = Field(default="train", description="Which data the scales are measured on.")
    samples: int = Field(default=512, ge=1, description="How many of them, drawn by the seed.")
    batch: int = Field(default=64, ge=1, description="How many at a time.")

    def check(self, graph: Graph, context: RunContext) -> None:
        check_fits(context.data.get(self.data), only_data_input(graph), None, context.data.preprocess)
        plain = graph.copy()
        blank = Context(target=load_target(self.target), seed=context.seed)
        ready_to_quantize()(plain, blank)
        self._insert().requests(plain, blank)  # knows whether `skip` matches

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
        graph = graph.copy()
        blank = Context(target=load_target(self.target), seed=seed)
        outcome = ready_to_quantize()(graph, blank)
        if self.per_channel is False:  # one scale a tensor cannot absorb a batch norm's factors
            outcome += FoldBatchnorm()(graph, blank)
        outcome += SplitHardSwish(tuple(self.skip))(graph, blank)
        insert = self._insert()
        requests = insert.requests(graph, blank)
        name = only_data_input(graph).name
        batches = calibration_batches(dataset, name, preprocess, self.samples, self.batch, seed)
        statistics = gather(graph, requests, batches, progress)
        inserted = insert(graph, Context(statistics=statistics, target=blank.target, seed=seed))
        samples = min(self.samples, len(dataset))
        summary = {"target": self.target, "fake_quant_nodes": inserted.rewrites, "samples": samples}
        return StageResult(graph, summary, inserted.refused)

    @property
    def note(self) -> str | None:
        """What a user should know of int8 figures that are measured on this machine."""
        exact = capabilities().exact_weight_bits
        if (self.weight_bits or load_target(self.target).weight_bits) <= exact:
            return None
        return (
            "This CPU has no VNNI: its int8 kernels add two products in 16 bits, which 8-bit weights saturate, so "
            f"accuracy measured here is lower than where they do not. For CPUs like this one: weight_bits: {exact}"
        )

    def _insert(self) -> InsertFakeQuant:
        return InsertFakeQuant(self.weight_bits, self.activation_bits, self.per_channel, tuple(self.skip))


def calibration_batches(
    dataset: Dataset, input_name: str, preprocess: Preprocess, samples: int, batch: int, seed: int
) -> Iterator[dict[str, Array]]:
    """Feeds of `samples` samples (or all there are) drawn by the seed, in the data set's order."""
    count = min(samples, len(dataset))
    chosen = np.sort(np.random.default_rng(seed).choice(len(dataset), count, replace=False))
    for made in evaluation_batches(Subset(dataset, chosen), input_name, preprocess, batch):
        yield made.feeds
