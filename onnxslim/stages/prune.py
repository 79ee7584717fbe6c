"""`Prune`: channels taken away until the model is as small as asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from onnxslim.analysis.memory import samples_within
from onnxslim.analysis.sizes import only_data_input, placed, sizes_at, unsized, with_sizes
from onnxslim.budget import MOST_SAMPLES
from onnxslim.data import Dataset, ProgressCallback, Samples, check_fits
from onnxslim.errors import DataError, OptionError
from onnxslim.evaluation import digest_of, measure_latency
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.rewrite import Context, Pass, Pipeline
from onnxslim.options import Entries, InputPath, OneOf, text_of
from onnxslim.pruning.allocation import LatencyTarget
from onnxslim.pruning.batchnorm import ReestimateBatchnorm
from onnxslim.pruning.criteria import L1, Criterion
from onnxslim.pruning.metric import Metric, Top1
from onnxslim.pruning.opening import opening
from onnxslim.pruning.pruner import Mode, PrunePlan, Pruner, Strategy
from onnxslim.pruning.scope import Scope
from onnxslim.pruning.sensitivity import Sensitivities, measure_sensitivities
from onnxslim.pruning.tables import CRITERIA, METRICS, criterion_of, metric_of
from onnxslim.pruning.taylor import gradient_products
from onnxslim.runtime.checker import RunChecker
from onnxslim.runtime.child import Child
from onnxslim.runtime.feeds import Sample, find_feeds
from onnxslim.stages.base import RunContext, Stage, StageResult, classes_of, prepared
from onnxslim.stages.batchnorm import RestoreMeasured
from onnxslim.stages.workspace import Workspace
from passes.prune import CutChannels
from passes.simplify import FoldBatchnorm, runnable, takes_any_batch

__all__ = ["Prune"]

_USUAL = (224, 32)  # pixels: height, and how much wider an image is; borders then count little
_BATCH = 256  # statistics of a batch are those of the data only where it is large
_GRADIENT_BATCH = 64
_QUANTITIES = ("macs", "params", "bytes")

Ratio = Annotated[float, Field(gt=0, lt=1)]


class Prune(Stage):
    """Cuts channels, wherever the network couples them together, until the targets are met."""

    kind: ClassVar[str] = "prune"

    macs: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Most multiply-accumulates left: up to 1 a fraction of the whole model's, above it a count.",
    )
    params: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Most parameters left, in the same way."
    )
    bytes: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Most bytes of weights left, in the same way."
    )
    latency: Ratio | None = Field(
        default=None, description="Largest fraction left of the whole model's latency, measured on one thread."
    )
    strategy: Strategy = Field(
        default="uniform",
        description="The same ratio everywhere, one threshold for all scores (global), or the same measured loss "
        "everywhere (sensitivity).",
    )
    criterion: Annotated[Criterion, OneOf(CRITERIA, from_text=criterion_of)] = Field(
        default=L1(),
        description="What tells the channels that matter: norms of their weights (l1, l2), batch norm's scale, "
        "distance from the geometric median (fpgm), the loss's first-order Taylor expansion (needs labels), or chance.",
    )
    scope: list[str] = Field(
        default=[],
        description="Only these channel groups: by name, node, weight, op type, glob, or re: and a regular expression.",
    )
    exclude: list[str] = Field(default=[], description="Not these channel groups, in the same words.")
    max_ratio: Ratio = Field(default=0.9, description="Most of a group's channels that may go.")
    limits: Annotated[dict[str, Annotated[float, Field(ge=0, lt=1)]], Entries("PATTERN", "RATIO")] = Field(
        default={}, description="Another max_ratio for some groups, by pattern."
    )
    multiple: int = Field(
        default=8, ge=1, description="Channels left are a multiple of it, as kernels like; 1 hits targets exactly."
    )
    mode: Mode = Field(default="physical", description="Cut (physical), or set to zero with all shapes kept (masked).")
    restore_batchnorm: bool = Field(
        default=True,
        description="Insert batch norm after folded convolutions before a cut, measure all anew after, fold it back.",
    )
    samples: int = Field(
        default=512,
        ge=1,
        le=MOST_SAMPLES,
        description="Samples of the training data, for batch norm's statistics and the criterion taylor.",
    )
    sensitivities: Annotated[str | None, InputPath(must_exist=False)] = Field(
        default=None,
        description="File of measured sensitivities, read and added to. Default, in a run: one of the stage's own.",
    )
    ratios: list[Ratio] = Field(
        default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        min_length=1,
        description="Parts of each group's channels that are taken away, where its sensitivity is measured.",
    )
    sizes: Annotated[dict[str, Annotated[int, Field(ge=1)]], Entries("AXIS", "NUMBER")] = Field(
        default={},
        description="Of free axes of the input, by name or as x[2], at which MACs are counted and latency is measured. "
        "Default: those of the data; without data, sizes at which the model runs.",
    )
    metric: Annotated[Metric, OneOf(METRICS, from_text=metric_of)] = Field(
        default=Top1(),
        description="What sensitivity measures on the validation data: a name, or package.module:function(model, data, "
        "preprocess) → number, larger is better.",
    )

    @model_validator(mode="after")
    def _ascending(self) -> Prune:
        if sorted(set(self.ratios)) != self.ratios:
            raise ValueError(f"ratios in ascending order, got {self.ratios}")
        return self

    def check(self, graph: Graph, context: RunContext) -> None:
        """Finds a wrong scope, a criterion that the graph cannot serve, and a target out of reach."""
        if not self.targets and self.latency is None:
            raise OptionError("", "prune needs a target: at least one of macs, params, bytes, latency")
        work = self.workspace(graph, context, dry=True)
        if self.strategy == "sensitivity":
            self.check_measured(context)
        self.check_criterion(graph, work, context)
        if context.foreseen:
            known = not unsized(graph, work.sizes)
            targets = {q: bound for q, bound in self.targets.items() if known or q != "macs"}
            work.pruner.require_reachable(targets, work.size)

    def check_measured(self, context: RunContext) -> None:
        """Finds a metric that is not there, and missing labels."""
        self.metric.check()
        self._labels(context)

    def check_criterion(self, graph: Graph, work: Workspace, context: RunContext) -> None:
        """Finds what the criterion lacks."""
        if self.criterion.reads_gradients:
            train = context.data.get("train")
            if not train.labelled:
                raise OptionError("criterion", f"{self.criterion.name} needs labels, the data have none: choose l1")
            check_fits(train, only_data_input(graph), classes_of(graph), context.data.preprocess)
        if self.criterion.reads_batchnorm and not self._measures_norms(context):
            _ = work.pruner.scores  # no batch norm will be put back: it says which group has none

    def writes(self, label: str) -> tuple[str, ...]:
        return (_own_sensitivities(label),)

    def run(self, graph: Graph, context: RunContext) -> StageResult:
        plan, work = self.plan(graph, context, context.folder / _own_sensitivities(context.label))
        cut, units = self.cut(plan, work)
        left = {
            f"{q}_left": round(getattr(plan.after, q) / getattr(work.size, q), 4)
            for q in _QUANTITIES
            if getattr(work.size, q)
        }
        summary = {
            "strategy": self.strategy,
            "criterion": text_of(self.criterion),
            "mode": self.mode,
            "units": units,
            **left,
            **({} if plan.latency is None else {"latency_left": round(plan.latency, 4)}),
            "given_back": plan.repaired,
            "before": plan.before._asdict(),
            "after": plan.after._asdict(),
            "groups": [
                {
                    "name": row.group.name,
                    "members": len(row.group.members),
                    "channels": list(row.channels),
                    "macs": list(row.macs),
                }
                for row in plan.groups
            ],
            "pinned": work.pruner.pinned,
        }
        return StageResult(cut, summary)

    def cut(self, plan: PrunePlan, work: Workspace) -> tuple[Graph, int]:
        """The graph with the plan carried out, and how many units went."""
        return work.cut(plan.carried_out(self.mode), plan.cuts)

    @property
    def targets(self) -> dict[str, float]:
        """The bounds given, by quantity."""
        return {q: bound for q in _QUANTITIES if (bound := getattr(self, q)) is not None}

    def plan(self, graph: Graph, context: RunContext, own: Path | None = None) -> tuple[PrunePlan, Workspace]:
        """What would go; and the graph that it is to be cut from, batch norms put back. own: where sensitivities are
        kept if the options name no file; None: nowhere."""
        work = self.workspace(graph, context)
        losses, latency = None, None
        if self.strategy == "sensitivity":
            losses = self.measure(work, context, own if self.sensitivities is None else Path(self.sensitivities)).losses
        if self.latency is not None:
            latency = LatencyTarget(self.latency, _ratio_to(work, context.progress))
        plan = work.pruner.plan(work.pruner.ideal(self.strategy, losses), self.targets, latency, work.size)
        return replace(plan, counted_at=work.counted_at), work

    def workspace(self, graph: Graph, context: RunContext, *, dry: bool = False) -> Workspace:
        """The graph prepared for cutting; `dry`: nothing is measured."""
        work = graph.copy()
        Pipeline(opening())(work)
        whole = work.copy() if context.whole is None or context.whole is graph else prepared(context.whole)
        data = None
        if context.data.has("train") or self.criterion.reads_gradients:
            data = Samples.of(work, context.data.get("train"), context.data.preprocess)
        sizes, counted_at = self._sizes(work, data, context.seed, dry)
        checked = None
        products: Sequence[Mapping[str, Array]] = ()
        after: tuple[Pass, ...] = ()
        if context.checked and not dry:
            checked = RunChecker(_sample(work, sizes, context.seed).feeds, prepare=runnable)
        if data is not None and not dry:
            after = self._restored(work, data, context, checked)
            products = self._products(work, data, context)
        scope = Scope(tuple(self.scope), tuple(self.exclude), self.max_ratio, dict(self.limits), self.multiple)
        pruner = Pruner(work, scope, self.criterion, context.seed, products, sizes)
        return Workspace(work, whole, digest_of(graph), pruner, sizes, counted_at, after, checked)

    def _restored(
        self, graph: Graph, data: Samples, context: RunContext, checker: RunChecker | None
    ) -> tuple[Pass, ...]:
        """Batch norms put back, in place; what is then to follow a cut: all measured anew, and folded again."""
        if not self.restore_batchnorm:
            return ()
        feeds = partial(data.drawn, self.samples, samples_within(graph, _BATCH, data.sizes), context.seed)
        free = takes_any_batch(graph)
        restore = RestoreMeasured(feeds, free, context.workers, context.progress)
        restored = restore(graph, Context(seed=context.seed, checker=checker))
        return ReestimateBatchnorm(feeds, free), *((FoldBatchnorm(),) if restored.rewrites else ())

    def _sizes(self, graph: Graph, data: Samples | None, seed: int, dry: bool) -> tuple[dict[str, int], str | None]:
        """Of the input's free axes, and, where they were found by trying, the shape at which the graph ran. `dry`:
        nothing is tried."""
        sizes = {**({} if data is None else data.sizes), **placed(graph, self.sizes)}
        free = ", ".join(map(str, unsized(graph, sizes)))
        if not free or dry or (self.macs is None and self.latency is None):
            return sizes, None
        if self.macs is not None and self.macs > 1:
            raise OptionError(
                "macs",
                f"a number of MACs depends on the sizes of {free}, which the model leaves free: give them, "
                "`sizes={'AXIS': NUMBER}`, or a fraction",
            )
        sample = _sample(graph, sizes, seed)
        return sizes_at(graph, {name: array.shape for name, array in sample.feeds.items()}), str(sample)

    def measure(self, work: Workspace, context: RunContext, path: Path | None) -> Sensitivities:
        """The sensitivity of every group in scope on data.val; what the file has is not measured again."""
        metric, val, preprocess = self.metric, self._labels(context), context.data.preprocess
        pruner = work.pruner
        calibration = f"{context.data.get('train').digest()} {self.samples}" if self._measures_norms(context) else None
        plan = Sensitivities(
            {
                "model": work.digest,
                "data": val.digest(),
                "preprocess": f"mean {list(preprocess.mean)} std {list(preprocess.std)} {preprocess.layout}",
                "metric": str(metric),
                "criterion": text_of(self.criterion),
                "calibration": calibration,
                "seed": context.seed,
            },
            0.0,
            {},
            {group.name: group.units for group in pruner.chosen},
            pruner.pinned,
        )

        def variant(name: str, ratio: float) -> Graph:
            units = pruner.groups.by_name[name].units
            cuts = {name: pruner.lowest(name, min(round(units * ratio), units - 1))}
            return work.cut(CutChannels(cuts), cuts)[0]

        return measure_sensitivities(
            variant,
            lambda graph: metric(graph, val, preprocess),
            lambda: metric.of_whole(work.graph, val, preprocess, context.workers, context.progress),
            plan,
            self.ratios,
            path=path,
            workers=context.workers,
            progress=context.progress,
        )

    def _labels(self, context: RunContext) -> Dataset:
        val = context.data.get("val")
        if self.metric.reads_labels and not val.labelled:
            raise DataError("Sensitivity needs labels on data.val: give it some, or a metric of your own")
        return val

    def _measures_norms(self, context: RunContext) -> bool:
        return self.restore_batchnorm and context.data.has("train")

    def _products(self, graph: Graph, data: Samples, context: RunContext) -> Sequence[Mapping[str, Array]]:
        if not self.criterion.reads_gradients:
            return ()
        batch = min(_GRADIENT_BATCH, len(data.dataset))
        count = min(-(-self.samples // batch), len(data.dataset) // batch)
        return gradient_products(graph, data.labelled(count, batch, context.seed), batch, count, context.progress)


def _sample(graph: Graph, sizes: Mapping[str, int], seed: int) -> Sample:
    """Inputs at which the graph runs."""
    with Child() as child:
        return find_feeds(runnable(graph), child, sizes=sizes, seed=seed, start=_USUAL)[0]


def _ratio_to(work: Workspace, progress: ProgressCallback | None) -> Callable[[Graph], float]:
    """Measures which part of the whole model's time a cut one takes, the two taking turns."""

    def ready(graph: Graph) -> Graph:
        graph = with_sizes(graph, work.sizes)
        FoldBatchnorm()(graph)
        return graph

    whole = ready(work.whole)

    def ratio(cut: Graph) -> float:
        return measure_latency({"whole": whole, "cut": ready(cut)}, progress=progress)["cut"].ratio

    return ratio


def _own_sensitivities(label: str) -> str:
    """The file of measured sensitivities of a stage that names none."""
    return f"{label}-sensitivities.json"
