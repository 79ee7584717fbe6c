"""Teacher and losses: what a training graph is made of beside the student."""

from onnxslim.options import classes_at
from passes.distill.logits import logits_of, softmax_behind, with_logits
from passes.distill.losses import CrossEntropy, MeanSquare, OnnxLoss, SoftLabel, attach_losses
from passes.distill.merge_teacher import MergeTeacher
from passes.distill.taps import LABEL, STUDENT, TEACHER, Loss, Tap, Taps

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

TASK_LOSSES: tuple[type[Loss], ...] = classes_at(
    "passes.distill.losses.CrossEntropy",
    "passes.distill.losses.OnnxLoss",
)
"""Against the labels; the first is taken where none is named."""

TEACHER_LOSSES: tuple[type[Loss], ...] = classes_at(
    "passes.distill.losses.SoftLabel",
    "passes.distill.losses.MeanSquare",
)
"""What can be learnt from a teacher; the first is taken where none is named."""
