"""`compress`: runs a recipe, stage by stage, into a run folder that can be resumed.

    runs/<name>/ recipe.yaml                 resolved, with versions, seed, workers, machine
                 run.json                    what a resumed run must have unchanged
                 stages/0.onnx, 0.json, …    the model after each stage, and what it reported
                 checkpoints/ log.jsonl      of training
                 model.onnx model.ort required_operators.config
                 report.json                 written last: the run is finished

Everything that can be known to be wrong is found before the folder is made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.data import Dataset, Preprocess, ProgressCallback, check_fits, open_dataset
from onnxslim.data.dataset import ArrayDataset, input_array
from onnxslim.errors import DataError, OnnxSlimError, RecipeError
from onnxslim.evaluation import Evaluation, Model, compare, digest_of, evaluate, open_session
from onnxslim.graph import Graph
from onnxslim.onnx_io import read
from onnxslim.recipe import Recipe, dump_recipe, load_recipe, parse_recipe
from onnxslim.recipe.schema import SourceOptions
from onnxslim.report import Report, StageRow, accuracy_of, model_rows
from onnxslim.run.folder import Finished, RunFolder, machine
from onnxslim.runtime.capabilities import require_sound
from onnxslim.runtime.installation import require_own_passes
from onnxslim.stages import Prune, Quantize
from onnxslim.stages.base import Data, Log, RunContext, Stage, classes_of, half_precision_note, only_data_input

__all__ = ["compress", "open_data", "open_roles", "preprocess_in", "with_workers"]

_ROLES = ("train", "val", "test")
_MOST_WORKERS = 4


def compress(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    resume: bool = False,
    force: bool = False,
    overrides: Sequence[str] = (),
    progress: ProgressCallback | None = None,
) -> Report:
    """Runs a recipe: a YAML file, or a mapping with the same keys, in which models may be `Graph`s and
    data any source of `open_dataset`.

    resume: continues the run of that name after its last finished stage, and training after its last
    checkpoint; a finished run is only reported. Options of finished stages must be unchanged.
    force: replaces the run of that name. overrides: "stages.1.train.epochs=2", as `--set`.

    Raises RecipeError, ModelError, DataError … before anything is written where the cause can be known
    before; OutputError where the run's folder exists already.
    """
    require_own_passes()
    require_sound()
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides) if isinstance(recipe, str | Path) else parse_recipe(recipe, overrides)
    if resume and force:
        raise RecipeError("resume continues a run and force replaces it: give one of them")
    folder = RunFolder(Path(recipe.run.folder) / str(recipe.run.name))
    recipe = with_workers(recipe, folder.stored("run", "workers") if resume else None)
    job = _Job.prepare(recipe, progress)
    with folder.held():
        if resume and folder.exists:
            folder.require_same(job.fixed, [entry.stage for entry in recipe.stages])
            if folder.report_path.is_file():
                return Report.read(folder.report_path)
        else:
            folder.create(replace_old=force)
        folder.write_recipe(dump_recipe(recipe, {**machine(), "digests": job.fixed["digests"]}), job.fixed)
        return job.run(folder, resume)


def open_data(source: SourceOptions, role: str, recipe: Recipe, progress: ProgressCallback | None = None) -> Dataset:
    """The data set that a recipe names for a role."""
    options = recipe.data
    split = source.split
    if split is None and source.path is not None:
        others = [getattr(options, r) for r in _ROLES if r != role]
        split = role if any(o is not None and o.path == source.path for o in others) else None
    resize = None if options.resize is None else (options.resize[0], options.resize[1])
    return open_dataset(
        source.given if source.path is None else source.path,
        split,
        label_name=options.label_name,
        progress=progress,
        resize=resize,
    )


@dataclass
class _Job:
    """A recipe with its models read, its data opened and all of it checked."""

    recipe: Recipe
    student: Graph
    teacher: Graph | None
    data: Data
    progress: ProgressCallback | None

    @classmethod
    def prepare(cls, recipe: Recipe, progress: ProgressCallback | None) -> _Job:
        student = recipe.model if isinstance(recipe.model, Graph) else read(recipe.model)
        teacher = recipe.teacher
        if teacher is not None and not isinstance(teacher, Graph):
            teacher = read(teacher)
        job = cls(recipe, student, teacher, Data(open_roles(recipe, progress), preprocess_in(recipe)), progress)
        job.check()
        return job

    def check(self) -> None:
        """Everything that is wrong before anything is run; raises the first."""
        if not self.data.roles:
            raise RecipeError("data: expected train, val or test, got none of them")
        open_session(self.student)  # what ONNX Runtime refuses, it refuses now
        source = only_data_input(self.student)
        classes = classes_of(self.student)
        for role in self.data.roles:
            check_fits(self.data.get(role), source, classes, self.data.preprocess)
        if self.recipe.evaluate.test and not self.data.get("test").labelled:
            raise DataError("evaluate.test needs labels; data.test has none")
        context = self.context(Path(), 0)
        for number, entry in enumerate(self.recipe.stages):
            with _Named(f"stages.{number}.{entry.stage.kind}"):
                entry.stage.check(self.student, context)
            if isinstance(entry.stage, Prune):
                context = replace(context, foreseen=False)
        self.check_order()

    def check_order(self) -> None:
        """What stands after the last export would be done for nothing."""
        kinds = [entry.stage.kind for entry in self.recipe.stages]
        if "export" in kinds and kinds[-1] != "export":
            raise RecipeError(
                f"stages.{len(kinds) - 1}.{kinds[-1]} stands behind the last export, whose files would be without it: "
                "put export last"
            )

    @cached_property
    def fixed(self) -> dict[str, Any]:
        """What a resumed run must have as it was: all of the recipe but the stages and measurements."""
        run, models = self.recipe.run, {"model": self.recipe.model, "teacher": self.recipe.teacher}
        digests = {key: digest_of(model) for key, model in models.items() if model is not None}
        for role in self.data.roles:
            if getattr(self.recipe.data, role).given is not None:
                digests[role] = self.data.get(role).digest()
        data = self.recipe.data.model_dump(mode="json", exclude={"test"})
        return {"digests": digests, "data": data, "run": {"seed": run.seed, "workers": run.workers}}

    def context(self, folder: Path, number: int) -> RunContext:
        run = self.recipe.run
        label = f"{number}-{self.recipe.stages[number].stage.kind}"
        return RunContext(
            folder, self.data, label, run.seed, run.workers or 1, self.teacher, self.student, progress=self.progress
        )

    def run(self, folder: RunFolder, resume: bool) -> Report:
        started = time.perf_counter()
        log = Log(folder.path / "log.jsonl")
        log(event="run", resumed=resume)
        baseline = folder.kept("baseline_val", lambda: accuracy_of(self.measure(self.student)))
        graph, rows = self.student, []
        for number, entry in enumerate(self.recipe.stages):
            finished = folder.finished(number, entry.stage, graph)
            if finished is None:
                context = replace(self.context(folder.path, number), log=log, resume=resume)
                finished = self.one_stage(folder, number, entry.stage, graph, context)
                log(event="stage", stage=context.label, seconds=finished.row.seconds)
            graph = finished.graph
            rows.append(finished.row)
        report = self.final(folder, graph, rows, baseline)
        report = replace(report, seconds=round(time.perf_counter() - started, 1))
        report.write(folder.report_path)
        log(event="finished")
        return report

    def one_stage(self, folder: RunFolder, number: int, stage: Stage, graph: Graph, context: RunContext) -> Finished:
        if stage.resumable:
            folder.begin(number, stage)
        started = time.perf_counter()
        result = stage.run(graph, context)
        val = accuracy_of(self.measure(result.graph)) if result.graph is not graph else None
        refused = tuple((refusal.where, refusal.why) for refusal in result.refused)
        seconds = round(time.perf_counter() - started, 3)
        row = StageRow(stage.kind, seconds, dict(result.summary), val, refused, result.notes)
        return folder.finish(number, stage, graph, result.graph, row)

    def measure(self, graph: Graph) -> Evaluation | None:
        """Accuracy on val; None where there is none with labels."""
        if not self.data.has("val") or not self.data.get("val").labelled:
            return None
        options, workers = self.recipe.evaluate, self.recipe.run.workers or 1
        return evaluate(
            graph,
            self.data.get("val"),
            self.data.preprocess,
            batch=options.batch,
            threads=workers,
            progress=self.progress,
        )

    def final(self, folder: RunFolder, graph: Graph, rows: list[StageRow], baseline: Any) -> Report:
        """All exported models beside the float one they came from."""
        options = self.recipe.evaluate
        first: Model = self.student if isinstance(self.recipe.model, Graph) else self.recipe.model
        models: dict[str, Model] = {"float": first}
        ort_bytes: dict[str, int] = {}
        for row in rows:
            for file in row.summary.get("files", ()):
                name = f"{file['precision']} {file['target']}"
                models[name] = folder.path / file["onnx"]
                if "ort_bytes" in file:
                    ort_bytes[name] = file["ort_bytes"]
        if len(models) == 1:
            models["result"] = graph
        split = "test" if options.test else "val" if self.data.has("val") else None
        found = compare(
            models,
            self.data.get(split) if split else self.samples(),
            self.data.preprocess,
            batch=options.batch,
            threads=self.recipe.run.workers or 1,
            latency_batch=options.latency_batch,
            latency_threads=options.latency_threads,
            latency_repeats=options.latency_repeats,
            progress=self.progress,
        )
        measured = tuple(replace(row, ort_bytes=ort_bytes.get(row.name)) for row in model_rows(found))
        split = split if measured[0].accuracy is not None else None
        name = str(self.recipe.run.name)
        return Report(name, str(folder.path), split, measured, tuple(rows), baseline, machine(), notes=self.notes(rows))

    def notes(self, rows: Sequence[StageRow]) -> tuple[str, ...]:
        """What a user should know of the model as it came, of what the stages did, and of figures that are measured on
        this machine."""
        found = [half_precision_note(self.student, "trained and quantised")]
        found += [note for row in rows for note in row.notes]
        stages = [entry.stage for entry in self.recipe.stages]
        found += [stage.note for stage in stages if isinstance(stage, Quantize)]
        return tuple(dict.fromkeys(note for note in found if note))

    def samples(self) -> Dataset:
        """A few samples without their labels: latency is measured on them, accuracy is not."""
        dataset = self.data.get(self.data.roles[0])
        few = dataset.read(np.arange(min(len(dataset), self.recipe.evaluate.latency_batch)))
        return ArrayDataset({"image": input_array(few, only_data_input(self.student).name)})


class _Named:
    """Adds where in the recipe an error came from."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OnnxSlimError):
            raise type(error)(f"{self._where}: {error}") from error


def preprocess_in(recipe: Recipe) -> Preprocess:
    """What a recipe does to images."""
    normalize = recipe.data.normalize
    return Preprocess(tuple(normalize.mean), tuple(normalize.std), recipe.data.layout)


def open_roles(recipe: Recipe, progress: ProgressCallback | None) -> dict[str, Any]:
    """By role that a recipe gives data for, what opens them."""

    def opener(role: str, source: SourceOptions) -> Any:
        return lambda: open_data(source, role, recipe, progress)

    sources = {role: getattr(recipe.data, role) for role in _ROLES}
    return {role: opener(role, source) for role, source in sources.items() if source is not None}


def with_workers(recipe: Recipe, stored: Any = None) -> Recipe:
    """The number of workers is part of a run's result, so it is settled once and then kept."""
    if recipe.run.workers is not None:
        return recipe
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = stored if isinstance(stored, int) else min(cores, _MOST_WORKERS)
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"workers": workers})})
