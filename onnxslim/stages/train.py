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

    name: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW.")
    learning_rate: float = Field(0.05, gt=0, description="The largest one; the schedule scales it.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of sgd.")
    nesterov: bool = Field(True, description="Nesterov's form of sgd's momentum.")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [0.9, 0.999], min_length=2, max_length=2, description="Of adamw."
    )
    epsilon: float = Field(1e-8, gt=0, description="Of adamw.")
    weight_decay: float = Field(5e-4, ge=0, description="On weights; never on biases and norms.")
    clip_norm: float | None = Field(None, gt=0, description="Bound on the gradients' global norm. Default: none.")


class ScheduleOptions(Options):
    """The learning rate over time."""

    name: Literal["constant", "step", "cosine", "one_cycle"] = Field("cosine", description="Its course.")
    warmup_epochs: float = Field(0.0, ge=0, description="Epochs of a linear rise before it.")
    milestones: list[Annotated[float, Field(ge=0)]] = Field([], description="Of step: epochs at which it falls.")
    factor: float = Field(0.1, gt=0, le=1, description="Of step: what it falls by.")
    final: float = Field(0.0, ge=0, le=1, description="Of cosine and one_cycle: the last one, as a fraction.")
    peak: float = Field(0.3, gt=0, lt=1, description="Of one_cycle: where the top is, as a fraction of the time.")


class AugmentOptions(Options):
    """Random changes to training images."""

    pad: int = Field(0, ge=0, description="Pixels added around before a crop.")
    crop: bool = Field(False, description="Random crop of the padded image.")
    flip: bool = Field(False, description="Random horizontal flip.")
    cutout: int = Field(0, ge=0, description="Side of a random square set to the mean colour; 0: none.")


class TaskLoss(Options):
    """The loss against the labels."""

    name: Literal["cross_entropy", "mean_square", "onnx"] = Field("cross_entropy", description="Which one.")
    weight: float = Field(1.0, ge=0, description="Its share; 0 leaves it out, and labels are not needed.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Of cross_entropy.")
    path: Annotated[str | None, InputPath()] = Field(None, description="Of onnx: the loss as an ONNX file.")

    @model_validator(mode="after")
    def _path_for_onnx(self) -> TaskLoss:
        if (self.name == "onnx") != (self.path is not None):
            raise ValueError("a path with `name: onnx`, and only with it")
        return self


class SoftLabel(Options):
    """The teacher's probabilities as targets (Hinton et al., 2015)."""

    weight: float = Field(0.7, ge=0, description="Its share beside the task loss.")
    student_temperature: float = Field(4.0, gt=0, description="That the student's logits are divided by.")
    teacher_temperature: float = Field(4.0, gt=0, description="That the teacher's logits are divided by.")
    mode: Literal["kl", "cross_entropy"] = Field(
        "kl", description="KL divergence times both temperatures, or the plain cross-entropy form of PaddleSlim."
    )


class Distill(Options):
    """What is learnt from the teacher."""

    soft_label: SoftLabel = Field(SoftLabel.model_construct(), description="From its outputs.")


class Train(Stage):
    """Trains the parameters: quantisation-aware where the graph has fake-quant nodes, else in float."""

    kind: ClassVar[str] = "train"

    epochs: int = Field(10, ge=1, description="Passes over the training data.")
    batch: int = Field(64, ge=1, description="Images a step, split between the workers.")
    optimizer: OptimizerOptions = Field(OptimizerOptions.model_construct(), description="The optimiser.")
    schedule: ScheduleOptions = Field(ScheduleOptions.model_construct(), description="The learning rate's course.")
    augment: AugmentOptions = Field(AugmentOptions.model_construct(), description="Default: none.")
    views: int | None = Field(
        None, ge=1, description="Only this many augmented views an image; the teacher's outputs are then cached."
    )
    task_loss: TaskLoss = Field(TaskLoss.model_construct(), description="The loss against the labels.")
    distill: Distill | None = Field(None, description="What is learnt from the teacher. Default: nothing.")
    restore_batchnorm: bool = Field(
        True, description="Insert batch norm after folded convolutions while training; it is folded back."
    )
    freeze_batchnorm: float = Field(
        0.3, ge=0, le=1, description="Fraction of the epochs, at the end, with batch norm's statistics frozen."
    )
    gradient: Literal["own", "ort"] = Field("own", description="Our differentiate, or ONNX Runtime's builder.")
    keep: int = Field(2, ge=1, description="Newest checkpoints kept, beside the best on val.")
    threads: int = Field(1, ge=1, description="Threads that prepare batches.")

    def run(self, graph: Graph, context: RunContext) -> StageResult:
        raise UnsupportedError("The training engine is not there yet")
