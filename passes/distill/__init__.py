"""Teacher and losses: what a training graph is made of beside the student."""

from passes.distill.logits import logits_of, softmax_behind, with_logits
from passes.distill.losses import (
    LABEL,
    STUDENT,
    TASK_LOSSES,
    TEACHER,
    TEACHER_LOSSES,
    CrossEntropy,
    Loss,
    MeanSquare,
    OnnxLoss,
    SoftLabel,
    Tap,
    Taps,
    attach_losses,
)
from passes.distill.merge_teacher import MergeTeacher

__all__ = [
    "LABEL",
    "STUDENT",
    "TASK_LOSSES",
    "TEACHER",
    "TEACHER_LOSSES",
    "CrossEntropy",
    "Loss",
    "MeanSquare",
    "MergeTeacher",
    "OnnxLoss",
    "SoftLabel",
    "Tap",
    "Taps",
    "attach_losses",
    "logits_of",
    "softmax_behind",
    "with_logits",
]
