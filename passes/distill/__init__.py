"""Teacher and losses: what a training graph is made of beside the student."""

from passes.distill.logits import logits_of, softmax_behind, with_logits
from passes.distill.losses import (
    TASK_LOSSES,
    TEACHER_LOSSES,
    CrossEntropy,
    Loss,
    MeanSquare,
    OnnxLoss,
    SoftLabel,
    Taps,
    attach_losses,
)
from passes.distill.merge_teacher import PREFIX, MergeTeacher

__all__ = [
    "PREFIX",
    "TASK_LOSSES",
    "TEACHER_LOSSES",
    "CrossEntropy",
    "Loss",
    "MeanSquare",
    "MergeTeacher",
    "OnnxLoss",
    "SoftLabel",
    "Taps",
    "attach_losses",
    "logits_of",
    "softmax_behind",
    "with_logits",
]
