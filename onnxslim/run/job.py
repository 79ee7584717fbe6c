"""`compress`: runs a recipe, stage by stage, into a run folder that can be resumed.

    runs/<name>/ recipe.yaml                 resolved, with versions, seed, workers, machine
                 run.json                    what a resumed run must have unchanged
                 stages/0.onnx, 0.json, …    the model after each stage, and what it reported
                 checkpoints/ log.jsonl      of training
                 model.onnx model.ort required_operators.config
                 report.json                 written last, and noted in run.json: the run is finished

A recipe without an export gets one with its defaults, so that every run leaves a model. Everything that can be known to
be wrong is found before the folder is made.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.analysis.sizes import only_data_input
from onnxslim.data import Dataset, Preprocess, ProgressCallback, Say, check_fits, open_dataset, time_in_words
from onnxslim.data.dataset import Subset, Unlabelled
from onnxslim.errors import DataError, ModelError, OnnxSlimError, OptionError, RecipeError, UnsupportedError
from onnxslim.evaluation import Evaluation, ModelSource, compare, digest_of, evaluate, open_session
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import read
from onnxslim.options import fields_of, options_in, options_of, reworded
from onnxslim.recipe import Recipe, dump_recipe, input_paths, load_recipe, parse_recipe
from onnxslim.recipe.schema import DataOptions, SourceOptions
from onnxslim.report import Report, StageRow, accuracy_of, model_rows
from onnxslim.run.folder import Finished, RunFolder, files_of, machine
from onnxslim.runtime.capabilities import require_sound
from onnxslim.runtime.installation import require_own_passes
from onnxslim.stages import Export, Prune, Quantize
from onnxslim.stages.base import Data, Log, RunContext, Stage, classes_of, half_precision_note

__all__ = ["compress", "open_data", "open_roles", "preprocess_in", "usual_workers"]

_ROLES = ("train", "val", "test")
_MOST_WORKERS = 4


def compress(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    resume: bool = False,
    force: bool = False,
    overrides: Sequence[str] = (),
    check: bool = False,
    progress: ProgressCallback | None = None,
    say: Say | None = None,
) -> Report:
    """Runs a recipe: a YAML file, or a mapping with the same keys, in which models may be `Graph`s and
    data any source of `open_dataset`.

    resume: continues the run of that name after its last finished stage, and training after its last
    checkpoint; a finished run is only reported. Options of finished stages must be unchanged; what else differs
    from what ran (stages behind, how is measured) is done.
    force: replaces the run of that name: the files that it wrote, and no others. overrides:
    "stages.1.train.epochs=2", as on the command line. check: runs a training step's graph before and after each of the
    passes that make it, and names the one that changed its numbers. say: takes lines that say what is being done, one
    an epoch among them.

    Raises RecipeError, ModelError, DataError … before anything is written where the cause can be known
    before, and takes the folder back where it is found before a stage is finished; OutputError where the run's folder
    exists already.
    """
    require_own_passes()
    require_sound()
    files = [Path(recipe)] if isinstance(recipe, str | Path) else []
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides) if isinstance(recipe, str | Path) else parse_recipe(recipe, overrides)
    if resume and force:
        raise OptionError("resume", "continues a run, and `force=True` replaces it: give one of them")
    folder = RunFolder(Path(recipe.run.folder) / str(recipe.run.name))
    if resume or force:
        folder.require_run()
    recipe = with_workers(recipe, folder.stored("run", "workers") if resume else None)
    with _in_recipe():
        job = _Job.prepare(recipe, progress, say, check)
    with folder.held():
        is_new = not (resume and folder.exists)
        if is_new:
            inputs = [Path(path) for path in input_paths(recipe)]
            folder.create(files_of(job.stages), replace_old=force, inputs=[*files, *inputs])
        else:
            folder.require_same(job.fixed, job.stages)
        provenance = {**machine(), "digests": job.fixed["digests"]}
        folder.write_recipe(dump_recipe(recipe, provenance), job.fixed, files_of(job.stages))
        try:
            with _in_recipe():
                return job.run(folder, resume)
        except (DataError, ModelError, RecipeError, UnsupportedError):
            if is_new:
                folder.remove()
            raise


def open_data(source: SourceOptions, role: str, options: DataOptions) -> Dataset:
    """The data set that `data` of a recipe names for a role."""
    split = source.split
    if split is None and source.path is not None:
        others = [getattr(options, r) for r in _ROLES if r != role]
        split = role if any(o is not None and o.path == source.path for o in others) else None
    resize = None if options.resize is None else (options.resize[0], options.resize[1])
    return open_dataset(
        source.given if source.path is None else source.path,
        split,
        label_name=options.label_name,
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
    say: Say | None = None
    checked: bool = False

    @classmethod
    def prepare(cls, recipe: Recipe, progress: ProgressCallback | None, say: Say | None, checked: bool = False) -> _Job:
        student = recipe.model if isinstance(recipe.model, Graph) else read(recipe.model)
        teacher = recipe.teacher
        if teacher is not None and not isinstance(teacher, Graph):
            teacher = read(teacher)
        data = Data(open_roles(recipe.data), preprocess_in(recipe.data), only_data_input(student))
        job = cls(recipe, student, teacher, data, progress, say, checked)
        job.tell("checking the recipe, the models and the data")
        job.check()
        return job

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Those of the recipe, and an export where it has none."""
        found = tuple(entry.stage for entry in self.recipe.stages)
        return found if any(stage.kind == Export.kind for stage in found) else (*found, Export())

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
        graph = self.student
        for number, stage in enumerate(self.stages):
            with _in_recipe(f"stages.{number}.{stage.kind}", stage):
                stage.check(graph, context)
                graph = stage.foresee(graph, context)
            if isinstance(stage, Prune):
                context = replace(context, foreseen=False)
        self.check_order()

    def check_order(self) -> None:
        """What stands after the last export would be done for nothing."""
        kinds = [stage.kind for stage in self.stages]
        if "export" in kinds and kinds[-1] != "export":
            raise RecipeError(
                f"stages.{len(kinds) - 1}.{kinds[-1]} stands behind the last export, whose files would be without it: "
                "put export last"
            )

    @cached_property
    def fixed(self) -> dict[str, Any]:
        """What a resumed run must have as it was: all of the recipe but the stages and measurements, and what its files
        hold."""
        run, models = self.recipe.run, {"model": self.recipe.model, "teacher": self.recipe.teacher}
        digests = {key: digest_of(model) for key, model in models.items() if model is not None}
        digests |= {role: self.data.get(role).digest() for role in self.data.roles if role != "test"}
        data = self.recipe.data.model_dump(mode="json", exclude={"test"})
        return {"digests": digests, "data": data, "run": {"seed": run.seed, "workers": run.workers}}

    @cached_property
    def measured(self) -> dict[str, Any]:
        """How the result is measured, and on what: of a finished run this alone may differ without another result."""
        options, test = self.recipe.evaluate, self.recipe.data.test
        found: dict[str, Any] = {"evaluate": options.model_dump(mode="json")}
        if options.test and test is not None:
            found["test"] = {**test.model_dump(mode="json"), "digest": self.data.get("test").digest()}
        return found

    def tell(self, line: str) -> None:
        if self.say is not None:
            self.say(line)

    def context(self, folder: Path, number: int) -> RunContext:
        run = self.recipe.run
        label = f"{number}-{self.stages[number].kind}"
        return RunContext(
            folder,
            self.data,
            label,
            run.seed,
            run.workers or 1,
            self.teacher,
            self.student,
            checked=self.checked,
            progress=self.progress,
            say=self.say,
        )

    def run(self, folder: RunFolder, resume: bool) -> Report:
        """Does what is not done yet. The report's seconds are those of all processes that it took, as far as what they
        did was kept."""
        started = time.perf_counter()
        kept = self.kept(folder)
        report = folder.report(self.measured) if len(kept) == len(self.stages) else None
        if report is not None:
            return report
        log = Log(folder.path / "log.jsonl")
        log(event="run", resumed=resume)
        baseline = folder.kept("baseline_val", lambda: accuracy_of(self.measure(self.student, "the model")))
        graph, rows, before = self.student, list[StageRow](), 0.0
        for number, stage in enumerate(self.stages):
            finished = kept[number] if number < len(kept) else folder.finished(number, stage, graph)
            if finished is not None:
                before += finished.row.seconds
            else:
                context = replace(self.context(folder.path, number), log=log, resume=resume)
                self.tell(f"stage {number + 1} of {len(self.stages)}: {stage.kind}")
                finished, earlier = self.one_stage(folder, number, stage, graph, context)
                before += earlier
                log(event="stage", stage=context.label, seconds=finished.row.seconds)
            graph = finished.graph
            rows.append(finished.row)
        report = self.final(folder, rows, baseline)
        report = replace(report, seconds=round(before + time.perf_counter() - started, 1))
        folder.write_report(report, self.measured)
        log(event="finished")
        return report

    def kept(self, folder: RunFolder) -> list[Finished]:
        """The results of the stages that are done, up to the first that is not."""
        found: list[Finished] = []
        for number, stage in enumerate(self.stages):
            finished = folder.finished(number, stage, found[-1].graph if found else self.student)
            if finished is None:
                break
            found.append(finished)
        return found

    def one_stage(
        self, folder: RunFolder, number: int, stage: Stage, graph: Graph, context: RunContext
    ) -> tuple[Finished, float]:
        """What a stage makes, kept in the folder; and the seconds that an earlier process spent on it."""
        if stage.resumable:
            folder.begin(number, stage)
        started = time.perf_counter()
        result = stage.run(graph, context)
        val = accuracy_of(self.measure(result.graph, "the result")) if result.graph is not graph else None
        refused = tuple((refusal.where, refusal.why) for refusal in result.refused)
        seconds = round(time.perf_counter() - started + result.seconds_before, 3)
        row = StageRow(stage.kind, seconds, dict(result.summary), val, refused, result.notes)
        accuracy = "" if val is None else f", val top-1 {100 * val.top1:.2f} %"
        context.tell(f"done in {time_in_words(seconds)}{accuracy}")
        return folder.finish(number, stage, graph, result.graph, row, result.files), result.seconds_before

    def measure(self, graph: Graph, what: str) -> Evaluation | None:
        """Accuracy on val; None where there is none with labels."""
        if not self.data.has("val") or not self.data.get("val").labelled:
            return None
        self.tell(f"measuring {what} on val")
        options, workers = self.recipe.evaluate, self.recipe.run.workers or 1
        return evaluate(
            graph,
            self.data.get("val"),
            self.data.preprocess,
            batch=options.batch,
            threads=workers,
            progress=self.progress,
        )

    def final(self, folder: RunFolder, rows: list[StageRow], baseline: Any) -> Report:
        """All exported models beside the float one they came from."""
        self.tell("comparing the result with the model it came from")
        options = self.recipe.evaluate
        first: ModelSource = self.student if isinstance(self.recipe.model, Graph) else self.recipe.model
        models: dict[str, ModelSource] = {"float": first}
        ort_bytes: dict[str, int] = {}
        for row in rows:
            for file in row.summary.get("files", ()):
                name = f"{file['precision']} {file['target']}"
                models[name] = folder.path / file["onnx"]
                if "ort_bytes" in file:
                    ort_bytes[name] = file["ort_bytes"]
        split = "test" if options.test else "val" if self.data.has("val") else None
        found = compare(
            models,
            self.data.get(split) if split else self.samples(),
            self.data.preprocess,
            threads=self.recipe.run.workers or 1,
            progress=self.progress,
            **{name: getattr(options, name) for name in options_of(compare)},
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
        found += [stage.note for stage in self.stages if isinstance(stage, Quantize)]
        return tuple(dict.fromkeys(in_keys(note) for note in found if note))

    def samples(self) -> Dataset:
        """A few samples without their labels: latency is measured on them, accuracy is not."""
        dataset = self.data.get(self.data.roles[0])
        return Unlabelled(Subset(dataset, np.arange(min(len(dataset), self.recipe.evaluate.latency_batch))))


@contextlib.contextmanager
def _in_recipe(where: str = "", stage: Stage | None = None) -> Iterator[None]:
    """Says errors in the words of a recipe: where in it they came from, options as keys. where: a stage's place;
    without one, of options alone."""
    own = {} if stage is None else fields_of(type(stage))
    place = f"{where}: " if where else ""
    try:
        yield
    except OptionError as error:
        lines = []
        for option, why in error.faults:
            first, _, rest = option.partition(".")
            is_own = first in own and (not rest or bool(options_in(own[first])))  # not data.train beside a key data
            key = f"{where}.{option}: " if is_own else f"{place}{option}: " if option else place
            lines.append(f"{key}{in_keys(why)}")
        raise RecipeError("\n".join(lines)) from error
    except OnnxSlimError as error:
        if not where:
            raise
        raise type(error)(f"{place}{in_keys(str(error))}") from error


def in_keys(text: str) -> str:
    """A message with the options that it names as a recipe writes them: `samples: 64`."""
    return reworded(text, lambda name, value: f"`{name}: {value.replace(chr(39), '')}`")


def preprocess_in(options: DataOptions) -> Preprocess:
    """What is done to images."""
    return Preprocess(tuple(options.normalize.mean), tuple(options.normalize.std), options.layout)


def open_roles(options: DataOptions) -> dict[str, Any]:
    """By role that data are given for, what opens them."""

    def opener(role: str, source: SourceOptions) -> Any:
        return lambda: open_data(source, role, options)

    sources = {role: getattr(options, role) for role in _ROLES}
    return {role: opener(role, source) for role, source in sources.items() if source is not None}


def with_workers(recipe: Recipe, stored: Any = None) -> Recipe:
    """The number of workers is part of a run's result, so it is settled once and then kept."""
    if recipe.run.workers is not None:
        return recipe
    workers = stored if isinstance(stored, int) else usual_workers()
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"workers": workers})})


def usual_workers() -> int:
    """One a core, at most four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)
