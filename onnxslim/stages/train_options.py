"""The options of training: the optimiser, the schedule, the changes to images, what is learnt from whom."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from onnxslim.budget import MOST_PIXELS
from onnxslim.stages.base import InputPath, Options

__all__ = [
    "AugmentOptions",
    "Distill",
    "MeanSquareOptions",
    "OptimizerOptions",
    "ScheduleOptions",
    "SoftLabelOptions",
    "TaskLoss",
]

_LARGEST = 1e6
"""Of weights, rates and the like: beyond any use, and far from where float32, in which they are used, ends."""


class OptimizerOptions(Options):
    """How parameters follow their gradients."""

    name: Literal["sgd", "adamw"] = Field(default="sgd", description="SGD with momentum, or AdamW.")
    learning_rate: float = Field(
        default=0.05, gt=0, le=_LARGEST, description="The largest one; the schedule scales it."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of sgd.")
    nesterov: bool = Field(default=True, description="Nesterov's form of sgd's momentum.")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=[0.9, 0.999], min_length=2, max_length=2, description="Of adamw."
    )
    epsilon: float = Field(default=1e-8, gt=0, le=1, description="Of adamw.")
    weight_decay: float = Field(default=5e-4, ge=0, le=_LARGEST, description="On weights; never on biases and norms.")
    clip_norm: float | None = Field(
        default=None, gt=0, le=_LARGEST, description="Bound on the gradients' global norm. Default: none."
    )


class ScheduleOptions(Options):
    """The learning rate over time."""

    name: Literal["constant", "step", "cosine", "one_cycle"] = Field(default="cosine", description="Its course.")
    warmup_epochs: float = Field(default=0.0, ge=0, le=_LARGEST, description="Epochs of a linear rise before it.")
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

    pad: int = Field(default=0, ge=0, le=MOST_PIXELS, description="Pixels added around before a crop.")
    crop: bool = Field(default=False, description="Random crop of the padded image.")
    flip: bool = Field(default=False, description="Random horizontal flip.")
    cutout: int = Field(
        default=0, ge=0, le=MOST_PIXELS, description="Side of a random square set to the mean colour; 0: none."
    )


class TaskLoss(Options):
    """The loss against the labels."""

    name: Literal["cross_entropy", "onnx"] = Field(default="cross_entropy", description="Which one.")
    weight: float = Field(
        default=1.0, ge=0, le=_LARGEST, description="Its share; 0 leaves it out, and labels are not needed."
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Of cross_entropy.")
    path: Annotated[str | None, InputPath()] = Field(
        default=None,
        description="Of onnx: an ONNX file with the inputs student, label (and teacher) and a scalar output; it gets "
        "the outputs as the models give them, probabilities where they end in a softmax.",
    )

    @model_validator(mode="after")
    def _path_for_onnx(self) -> TaskLoss:
        if (self.name == "onnx") != (self.path is not None):
            raise ValueError("a path with `name: onnx`, and only with it")
        return self


class SoftLabelOptions(Options):
    """The teacher's probabilities as targets (Hinton et al., 2015)."""

    weight: float = Field(default=0.7, ge=0, le=_LARGEST, description="Its share beside the task loss.")
    student_temperature: float = Field(
        default=4.0, gt=0, le=_LARGEST, description="That the student's logits are divided by."
    )
    teacher_temperature: float = Field(
        default=4.0, gt=0, le=_LARGEST, description="That the teacher's logits are divided by."
    )
    mode: Literal["kl", "cross_entropy"] = Field(
        default="kl",
        description="KL divergence times both temperatures, or the plain cross-entropy form of PaddleSlim.",
    )


class MeanSquareOptions(Options):
    """The mean square of the difference of the logits, or of outputs that no softmax stands behind."""

    weight: float = Field(default=1.0, ge=0, le=_LARGEST, description="Its share beside the task loss.")


class Distill(Options):
    """What is learnt from the teacher. Default: soft_label with its defaults."""

    soft_label: SoftLabelOptions | None = Field(default=None, description="Its class probabilities.")
    mean_square: MeanSquareOptions | None = Field(
        default=None, description="Its logits: what goes into its softmax; without one, its outputs as they are."
    )

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, given: Any) -> Any:
        return {"soft_label": {}} if given == {} else given

    @model_validator(mode="after")
    def _something(self) -> Distill:
        if self.soft_label is None and self.mean_square is None:
            raise ValueError("soft_label or mean_square")
        return self
