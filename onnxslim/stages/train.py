"""`Train`: trains whatever graph it gets — float, or with fake-quant nodes — with or without a teacher."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from onnxslim.errors import UnsupportedError
from onnxslim.graph import Graph
from onnxslim.stages.base import InputPath, Options, RunContext, Stage, StageResult

__all__ = ["AugmentOptions", "Distill", "OptimizerOptions", "ScheduleOptions", "SoftLabel", "TaskLoss", "Train"]


class OptimizerOptions(Options):
    """How parameters follow their gradients."""

    name: Literal["sgd", "adamw"] = Field(default="sgd", description="SGD with momentum, or AdamW.")
    learning_rate: float = Field(default=0.05, gt=0, description="The largest one; the schedule scales it.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of sgd.")
    nesterov: bool = Field(default=True, description="Nesterov's form of sgd's momentum.")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=[0.9, 0.999], min_length=2, max_length=2, description="Of adamw."
    )
    epsilon: float = Field(default=1e-8, gt=0, description="Of adamw.")
    weight_decay: float = Field(default=5e-4, ge=0, description="On weights; never on biases and norms.")
    clip_norm: float | None = Field(
        default=None, gt=0, description="Bound on the gradients' global norm. Default: none."
    )


class ScheduleOptions(Options):
    """The learning rate over time."""

    name: Literal["constant", "step", "cosine", "one_cycle"] = Field(default="cosine", description="Its course.")
    warmup_epochs: float = Field(default=0.0, ge=0, description="Epochs of a linear rise before it.")
    milestones: list[Annotated[float, Field(ge=0)]] = Field(
        default=[], description="Of step: epochs at which it falls."
    )
    factor: float = Field(default=0.1, gt=0, le=1, description="Of step: what it falls by.")
    final: float = Field(default=0.0, ge=0, le=1, description="Of cosine and one_cycle: the last one, as a fraction.")
    peak: float = Field(
        default=0.3, gt=0, lt=1, description="Of one_cycle: where the top is, as a fraction of the time."
    )


class AugmentOptions(Options):
    """Random changes to training images."""

    pad: int = Field(default=0, ge=0, description="Pixels added around before a crop.")
    crop: bool = Field(default=False, description="Random crop of the padded image.")
    flip: bool = Field(default=False, description="Random horizontal flip.")
    cutout: int = Field(default=0, ge=0, description="Side of a random square set to the mean colour; 0: none.")


class TaskLoss(Options):
    """The loss against the labels."""

    name: Literal["cross_entropy", "mean_square", "onnx"] = Field(default="cross_entropy", description="Which one.")
    weight: float = Field(default=1.0, ge=0, description="Its share; 0 leaves it out, and labels are not needed.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Of cross_entropy.")
    path: Annotated[str | None, InputPath()] = Field(default=None, description="Of onnx: the loss as an ONNX file.")

    @model_validator(mode="after")
    def _path_for_onnx(self) -> TaskLoss:
        if (self.name == "onnx") != (self.path is not None):
            raise ValueError("a path with `name: onnx`, and only with it")
        return self


class SoftLabel(Options):
    """The teacher's probabilities as targets (Hinton et al., 2015)."""

    weight: float = Field(default=0.7, ge=0, description="Its share beside the task loss.")
    student_temperature: float = Field(default=4.0, gt=0, description="That the student's logits are divided by.")
    teacher_temperature: float = Field(default=4.0, gt=0, description="That the teacher's logits are divided by.")
    mode: Literal["kl", "cross_entropy"] = Field(
        default="kl",
        description="KL divergence times both temperatures, or the plain cross-entropy form of PaddleSlim.",
    )


class Distill(Options):
    """What is learnt from the teacher."""

    soft_label: SoftLabel = Field(default=SoftLabel(), description="From its outputs.")


class Train(Stage):
    """Trains the parameters: quantisation-aware where the graph has fake-quant nodes, else in float."""

    kind: ClassVar[str] = "train"

    epochs: int = Field(default=10, ge=1, description="Passes over the training data.")
    batch: int = Field(default=64, ge=1, description="Images a step, split between the workers.")
    optimizer: OptimizerOptions = Field(default=OptimizerOptions(), description="The optimiser.")
    schedule: ScheduleOptions = Field(default=ScheduleOptions(), description="The learning rate's course.")
    augment: AugmentOptions = Field(default=AugmentOptions(), description="Default: none.")
    views: int | None = Field(
        default=None,
        ge=1,
        description="Only this many augmented views an image; the teacher's outputs are then cached.",
    )
    task_loss: TaskLoss = Field(default=TaskLoss(), description="The loss against the labels.")
    distill: Distill | None = Field(default=None, description="What is learnt from the teacher. Default: nothing.")
    restore_batchnorm: bool = Field(
        default=True, description="Insert batch norm after folded convolutions while training; it is folded back."
    )
    freeze_batchnorm: float = Field(
        default=0.3, ge=0, le=1, description="Fraction of the epochs, at the end, with batch norm's statistics frozen."
    )
    gradient: Literal["own", "ort"] = Field(default="own", description="Our differentiate, or ONNX Runtime's builder.")
    keep: int = Field(default=2, ge=1, description="Newest checkpoints kept, beside the best on val.")
    threads: int = Field(default=1, ge=1, description="Threads that prepare batches.")

    def run(self, graph: Graph, context: RunContext) -> StageResult:
        raise UnsupportedError("The training engine is not there yet")
