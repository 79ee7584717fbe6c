"""Pruning one model, and measuring how sensitive it is, without a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxslim.analysis.sizes import only_data_input
from onnxslim.brief import Brief
from onnxslim.data import Preprocess, ProgressCallback, check_fits
from onnxslim.errors import OptionError
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import read
from onnxslim.options import made_of, takes
from onnxslim.pruning.pruner import PrunePlan
from onnxslim.pruning.sensitivity import Sensitivities
from onnxslim.recipe import RunOptions, parse_data
from onnxslim.run.job import open_roles, preprocess_in, usual_workers
from onnxslim.stages import Prune
from onnxslim.stages.base import Data, RunContext
from onnxslim.stages.preprocessing import note_preprocess
from passes.deploy import finish

__all__ = ["Pruned", "plan_pruning", "prune", "sensitivity"]


_MEASURING = ("ratios", "criterion", "metric", "scope", "exclude", "samples", "restore_batchnorm")


@dataclass(frozen=True, repr=False)
class Pruned(Brief):
    """A graph with channels cut, and the plan by which they were."""

    graph: Graph
    plan: PrunePlan


@takes(Prune)
def prune(
    model: Graph | str | Path,
    data: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Pruned:
    """Cuts channels until the targets are met, as the stage `prune` of a recipe does; a Graph that is given stays.

    options: the stage's, such as macs=0.5, strategy="sensitivity", multiple=8. data: as under `data` in a recipe:
    train for batch norm's statistics (labels are not used) and the criterion taylor, val for sensitivities, normalize,
    layout. Without data, batch norms are not measured anew, which costs accuracy.

    Raises OptionError for options that are wrong, UnsupportedError with the reachable range where a target is out of
    reach, DataError where the data do not fit the model.
    """
    graph, stage, context = _set_up(model, data, options, seed, progress)
    stage.check(graph, context)
    plan, work = stage.plan(graph, context)
    cut = stage.cut(plan, work)[0]
    finish()(cut)
    if context.data.preprocess != Preprocess():
        note_preprocess(cut, context.data.preprocess)
    return Pruned(cut, plan)


@takes(Prune)
def plan_pruning(
    model: Graph | str | Path,
    data: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> PrunePlan:
    """What `prune` would cut, group by group."""
    graph, stage, context = _set_up(model, data, options, seed, progress)
    stage.check(graph, context)
    return stage.plan(graph, context)[0]


@takes(Prune, only=_MEASURING)
def sensitivity(
    model: Graph | str | Path,
    data: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    seed: int = 0,
    workers: int | None = None,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Sensitivities:
    """How much top-1 on data["val"] (or `metric`) falls with a part of each channel group gone.

    path: a file to which every point adds a line of JSON; what it has is not measured again. options: ratios,
    criterion, metric, scope, exclude, samples, restore_batchnorm of the stage `prune`.
    """
    graph, stage, context = _set_up(model, data, options, seed, progress, workers)
    stage.check_measured(context)
    stage.check_criterion(graph, stage.workspace(graph, context, dry=True), context)
    return stage.measure(stage.workspace(graph, context), context, None if path is None else Path(path))


def _set_up(
    model: Graph | str | Path,
    data: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    seed: int,
    progress: ProgressCallback | None,
    workers: int | None = None,
) -> tuple[Graph, Prune, RunContext]:
    """The model, the stage and what it works with, the data checked."""
    if data is not None and not isinstance(data, Mapping):
        raise OptionError("data", f"expected keys and values such as {{'train': 'photos/'}}, got {data!r}")
    stage = made_of(Prune, options)
    given, run = parse_data(data or {}), made_of(RunOptions, {"seed": seed, "workers": workers})
    graph = model if isinstance(model, Graph) else read(model)
    source = only_data_input(graph) if data else None
    found = Data(open_roles(given), preprocess_in(given), source)
    for role in found.roles:
        check_fits(found.get(role), only_data_input(graph), None, found.preprocess)
    context = RunContext(Path(), found, "prune", seed, run.workers or usual_workers(), progress=progress)
    return graph, stage, context
