"""`Train`: trains whatever graph it gets — float, or with fake-quant nodes — with or without a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, create_model, model_validator

from onnxslim.analysis.batch import fixed_batch, freed
from onnxslim.analysis.precision import require_not_quantized
from onnxslim.analysis.sizes import only_data_input
from onnxslim.budget import MOST_BATCH, MOST_EPOCHS, MOST_THREADS
from onnxslim.data import Augment, Loader, load_all
from onnxslim.errors import OptionError
from onnxslim.evaluation import evaluate
from onnxslim.ir.dialect import is_fake_quant
from onnxslim.ir.graph import Array, Graph, Role
from onnxslim.ir.rewrite import Context, Outcome, Refusal
from onnxslim.options import OneOf, Options
from onnxslim.runtime.capabilities import require_training
from onnxslim.stages.base import RunContext, Stage, StageResult, prepared
from onnxslim.stages.batchnorm import RestoreMeasured, foresee_batchnorm
from onnxslim.stages.outputs import output_notes, require_scores
from onnxslim.training.layout import Plan, candidates, choose_layout
from onnxslim.training.loop import Trainer, TrainingResult
from onnxslim.training.optimizers import Optimizer, Sgd
from onnxslim.training.parameters import left_alone, mark_parameters
from onnxslim.training.scales import FOLLOWED, Scales
from onnxslim.training.schedules import Cosine, Schedule
from onnxslim.training.state import State
from onnxslim.training.step import StepOptions
from onnxslim.training.tables import OPTIMIZERS, SCALES, SCHEDULES
from onnxslim.training.teacher_cache import TeacherCache
from passes.distill import TASK_LOSSES, TEACHER, TEACHER_LOSSES, CrossEntropy, Loss, SoftLabel
from passes.simplify import FoldBatchnorm, SetBatch, takes_any_batch

__all__ = ["Distill", "Train", "mark_roles"]

_LOOKED_AT = 16  # images whose outputs show whether they are probabilities
_MEASURED = 1024  # images on which the statistics of a restored batch norm are measured


class Distill(Options):
    """What is learnt from the teacher: a key for every loss there is. Default: soft_label with its defaults."""

    @property
    def losses(self) -> tuple[Loss, ...]:
        given = (getattr(self, cls.name) for cls in TEACHER_LOSSES)
        return tuple(loss for loss in given if loss is not None)

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, given: Any) -> Any:
        return {TEACHER_LOSSES[0].name: {}} if given == {} else given

    @model_validator(mode="after")
    def _something(self) -> Distill:
        if not self.losses:
            raise ValueError(" or ".join(cls.name for cls in TEACHER_LOSSES))
        return self


if TYPE_CHECKING:
    _Distill = Distill
else:  # one key for every loss there is
    _Distill = create_model(
        "Distill",
        __base__=Distill,
        **{
            cls.name: (
                Annotated[cls | None, OneOf((cls,), optional=True)],
                Field(None, description=cls.__doc__.partition("\n\n")[0]),
            )
            for cls in TEACHER_LOSSES
        },
    )


class Train(Stage):
    """Trains the parameters: quantisation-aware where the graph has fake-quant nodes, else in float."""

    kind: ClassVar[str] = "train"
    resumable: ClassVar[bool] = True

    epochs: int = Field(default=10, ge=1, le=MOST_EPOCHS, description="Passes over the training data.")
    batch: int = Field(default=64, ge=1, le=MOST_BATCH, description="Images a step, split between the workers.")
    optimizer: Annotated[Optimizer, OneOf(OPTIMIZERS)] = Field(default=Sgd(), description="The optimiser.")
    schedule: Annotated[Schedule, OneOf(SCHEDULES)] = Field(default=Cosine(), description="The learning rate's course.")
    augment: Annotated[Augment, OneOf((Augment,))] = Field(
        default=Augment(), description="Random changes to training images. Default: none."
    )
    views: int | None = Field(
        default=None,
        ge=1,
        le=MOST_EPOCHS,
        description="Only this many augmented views an image; the teacher's outputs are then cached.",
    )
    task_loss: Annotated[Loss, OneOf(TASK_LOSSES)] = Field(
        default=CrossEntropy(), description="The loss against the labels."
    )
    distill: _Distill | None = Field(default=None, description="What is learnt from the teacher. Default: nothing.")
    restore_batchnorm: bool = Field(
        default=True, description="Insert batch norm after folded convolutions while training; it is folded back."
    )
    freeze_batchnorm: float = Field(
        default=0.3, ge=0, le=1, description="Fraction of the epochs, at the end, with batch norm's statistics frozen."
    )
    take: Literal["best", "last"] = Field(
        default="best",
        description="Which epoch's weights: the best on val, where the model before training counts too, or the last. "
        "Without val: the last.",
    )
    gradient: Literal["own", "ort"] = Field(default="own", description="Our differentiate, or ONNX Runtime's builder.")
    layout: Literal["auto", "plain", "blocked", "lanes"] = Field(
        default="auto",
        description="Whether channels (blocked) or images (lanes) fill the CPU's vectors; auto: by a table of costs.",
    )
    scales: Annotated[Scales, OneOf(SCALES)] = Field(
        default=FOLLOWED, description="How the grids of fake-quant nodes move.", exclude=len(SCALES) == 1
    )
    keep: int = Field(default=2, ge=1, le=MOST_EPOCHS, description="Newest checkpoints kept, beside the best on val.")
    threads: int = Field(default=1, ge=1, le=MOST_THREADS, description="Threads that prepare batches.")

    @model_validator(mode="after")
    def _warm_up_within(self) -> Train:
        if self.schedule.warmup_epochs > self.epochs:
            raise ValueError(f"schedule.warmup_epochs of at most {self.epochs}, the epochs there are")
        return self

    def writes(self, label: str) -> tuple[str, ...]:
        names = ("state.safetensors", "state.json")
        return ("plan.json", *(f"checkpoints/{dot}{label}-*/{name}" for dot in ("", ".") for name in names))

    def check(self, graph: Graph, context: RunContext) -> None:
        """Builds the steps that `run` builds, so that a missing gradient, label or teacher is found now."""
        require_not_quantized(graph, "trained")
        if self.gradient == "ort":
            require_training()
        if self.distill is not None and context.teacher is None:
            raise OptionError("distill", "needs a teacher: give one, or leave distill out")
        if self.needs_labels and not context.data.get("train").labelled:
            raise OptionError("task_loss", "needs labels, data.train has none: set task_loss.weight to 0 and distil")
        student = prepared(graph)
        if fixed_batch(student) is not None:
            SetBatch()(student.copy())  # which tests whether samples are independent
        loader = self.loader(student, context)
        load_all(loader.dataset, context.progress)
        if self.restore_batchnorm:
            foresee_batchnorm(student)
        mark_roles(student)
        teacher = self.prepared_teacher(context)
        candidates(self.trainer(student, loader, context, teacher).all_steps, self.wanted_layout)
        if any(isinstance(loss, CrossEntropy | SoftLabel) for loss in self.losses()):
            feeds = loader.make(np.arange(min(_LOOKED_AT, len(loader.dataset))), 0).feeds
            require_scores(prepared(context.whole or graph), feeds, "model")
            if teacher is not None:
                require_scores(teacher, feeds, "teacher")

    def run(self, graph: Graph, context: RunContext) -> StageResult:
        student, restored = prepared(graph), Outcome()
        loader = self.loader(student, context)
        notes = output_notes(student, self.losses())
        for note in notes:
            context.tell(note)
        if self.restore_batchnorm:
            context.tell("measuring batch norms")
            feeds = partial(self._some_feeds, loader)
            restore = RestoreMeasured(feeds, takes_any_batch(student), context.workers, context.progress)
            restored = restore(student, Context(seed=context.seed))
        mark_roles(student)
        teacher = self.prepared_teacher(context)
        cache = None
        if self.views is not None and teacher is not None:
            cache = TeacherCache(teacher, loader, context.folder.parent / "teacher-cache", self.teacher_taps)
            context.tell(f"the teacher's outputs for {self.views} views of {len(loader.dataset):,} images")
            cache.prepare(context.progress, threads=context.workers)
        trainer = self.trainer(student, loader, context, teacher, cache)
        plan = self.plan(trainer, context)
        notes += self._not_taken(plan)
        trainer.options = replace(trainer.options, layout=plan.layout)
        result = trainer.run(resume=context.resume)
        trained = result.best if self.take == "best" else result.graph
        if restored.rewrites:
            FoldBatchnorm()(trained)
        last = result.history[-1] if result.history else {}
        summary = {"epochs": self.epochs, **{k: v for k, v in last.items() if k in ("loss", "train_top1")}}
        seconds = [record["seconds"] for record in result.history if "seconds" in record]
        if seconds:
            summary["seconds_per_epoch"] = round(sum(seconds) / len(seconds), 1)
        if result.state.before is not None:
            summary["taken"] = self._taken(result.state)
        worse = self._worse(result)
        for note in worse:
            context.tell(note)
        whole = {**summary, "history": list(result.history)}
        left = tuple(Refusal(f"'{name}'", why) for name, why in left_alone(student))
        return StageResult(trained, whole, left, notes=notes + worse, seconds_before=result.seconds_before)

    def _taken(self, state: State) -> str:
        """Which epoch's weights are the result."""
        epoch = state.best_epoch if self.take == "best" else self.epochs
        return f"epoch {epoch}" if epoch else "the model before training"

    def _worse(self, result: TrainingResult) -> tuple[str, ...]:
        """That training has not bettered the model on val, where that is so."""
        before, reached = result.state.before, [record["val"] for record in result.history if "val" in record]
        if before is None or not reached:
            return ()
        best, last, was = (f"{100 * value:.2f} %" for value in (max(reached), reached[-1], before))
        if self.take == "best" and result.state.best_epoch == 0:
            return (
                f"Training did not better top-1 on val: {was} before it, {best} in its best epoch. The model from "
                "before it is the result",
            )
        if self.take == "last" and reached[-1] < before:
            return (
                f"Training made top-1 on val worse: {was} before it, {last} in its last epoch, which is the result "
                "(take: last)",
            )
        return ()

    @property
    def needs_labels(self) -> bool:
        return self.task_loss.weight > 0

    def losses(self) -> tuple[Loss, ...]:
        """The weighted terms; those of weight 0 are left out."""
        found = (self.task_loss, *(() if self.distill is None else self.distill.losses))
        return tuple(loss for loss in found if loss.weight > 0)

    @property
    def teacher_taps(self) -> list[str]:
        """What the losses read of the teacher, by name."""
        return [tap.name for loss in self.losses() for tap in loss.reads if tap.source == TEACHER.source]

    def step_options(self, loader: Loader) -> StepOptions:
        sample = loader.make(np.zeros(1, np.int64), 0).feeds[loader.input_name].shape[1:]
        return StepOptions(
            self.losses(), labelled=self.needs_labels, gradient=self.gradient, sample=sample, scales=self.scales
        )

    def trainer(
        self,
        student: Graph,
        loader: Loader,
        context: RunContext,
        teacher: Graph | None,
        cache: TeacherCache | None = None,
    ) -> Trainer:
        """Of a student whose roles are marked, in the plain layout."""
        norms = any(node.op == "BatchNormalization" for node in student.nodes())
        frozen = round(self.freeze_batchnorm * self.epochs) if norms else 0
        return Trainer(
            student,
            loader,
            replace(self.step_options(loader), teacher_as_input=self.views is not None and teacher is not None),
            self.optimizer,
            self.schedule,
            self.epochs,
            workers=context.workers,
            teacher=teacher,
            cache=cache,
            freeze_from=self.epochs - frozen if frozen else None,
            folder=context.folder / "checkpoints",
            label=context.label,
            keep=self.keep,
            checked=context.checked,
            validate=self.validation(context),
            progress=context.progress,
            log=context.log,
            say=context.say,
            shown=lambda top1: f"top-1 {100 * top1:.2f} %",
        )

    @property
    def wanted_layout(self) -> str:
        return self.layout if self.gradient == "own" else "plain"

    def plan(self, trainer: Trainer, context: RunContext) -> Plan:
        """The run's plan, where it was made on a machine like this; else it is made now, and written."""
        path = context.folder / "plan.json"
        plan = Plan.load(path, context.label) if context.resume else None
        if plan is not None and plan.holds_here():
            return plan
        moved = plan is not None
        context.tell("comparing the layouts of the training step")
        plan = choose_layout(trainer.all_steps, trainer.first_state().arrays, self.wanted_layout)
        plan.save(path, context.label)
        note = {"resumed_on": "another CPU or runtime: from here on not bit-identical"} if moved else {}
        context.log(stage=context.label, plan=str(plan), **note)
        context.tell(str(plan))
        return plan

    def _some_feeds(self, loader: Loader) -> Iterator[Mapping[str, Array]]:
        """Images as they are trained on, enough to measure statistics."""
        with closing(loader.epoch(0, stop_step=-(-_MEASURED // self.batch))) as batches:
            yield from (batch.feeds for batch in batches)

    def _not_taken(self, plan: Plan) -> tuple[str, ...]:
        """That a layout which was asked for by name could not be had."""
        why = plan.refused.get(self.layout)
        return () if why is None else (f"layout: {self.layout} was asked for, and {plan.layout} is taken: {why}",)

    def loader(self, student: Graph, context: RunContext) -> Loader:
        """DataError where the data are less than a batch."""
        return Loader(
            context.data.get("train"),
            only_data_input(student).name,
            context.data.preprocess,
            self.augment,
            self.batch,
            context.seed,
            views=self.views,
            threads=self.threads,
        )

    def prepared_teacher(self, context: RunContext) -> Graph | None:
        """The teacher in the working opset, batch norm folded; None where nothing is distilled."""
        if self.distill is None or context.teacher is None:
            return None
        teacher = prepared(context.teacher)
        FoldBatchnorm()(teacher)
        return freed(teacher) if takes_any_batch(teacher) else teacher

    def validation(self, context: RunContext) -> Callable[[Graph], float] | None:
        """Top-1 on val; None where there is none with labels."""
        if not context.data.has("val") or not context.data.get("val").labelled:
            return None
        val, preprocess = context.data.get("val"), context.data.preprocess
        return lambda graph: evaluate(graph, val, preprocess, threads=context.workers).top1


def mark_roles(graph: Graph) -> None:
    """Says which values training owns, in place: an ONNX file does not tell.

    Raises TrainingError where there is nothing to train.
    """
    for node in graph.nodes():
        if is_fake_quant(node):
            owner = graph.operand(node, 0).name
            for slot, role in ((1, Role.SCALE), (2, Role.SCALE), (3, Role.STATISTIC)):
                value = graph.input(node, slot)
                if value is not None and value.array is not None and not value.owner:
                    graph.set_role(value, role, owner)
    mark_parameters(graph)
