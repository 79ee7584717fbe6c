"""What the outputs are that losses read: found before training, and said after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxslim.analysis.batch import with_batch
from onnxslim.errors import UnsupportedError
from onnxslim.evaluation import open_session
from onnxslim.ir.graph import Array, Graph
from passes.distill import Loss, OnnxLoss, softmax_behind

__all__ = ["output_notes", "require_scores"]

_SUM_TO_ONE = 1e-3  # how near every row's sum must be: float16 probabilities are, scores of real data never all are


def require_scores(graph: Graph, feeds: Mapping[str, Array], what: str) -> None:
    """Raises UnsupportedError where a model in the working opset gives probabilities for these samples and no softmax
    is found that makes them: a loss over logits would be wrong, and nothing would say so.

    feeds: the samples by the input's name, of whichever model. what: "model" or "teacher".
    """
    output = graph.outputs[0]
    if softmax_behind(graph, output) is not None:
        return
    (images,) = feeds.values()
    session = open_session(with_batch(graph, len(images)))
    scores = session.run({session.inputs[0].name: images})[output.name]
    if scores.ndim != 2 or scores.shape[1] < 2 or scores.min() < 0:
        return
    if np.abs(scores.sum(axis=1, dtype=np.float64) - 1).max() < _SUM_TO_ONE:
        raise UnsupportedError(
            f"The {what}'s output '{output.name}' gives probabilities (every row is positive and sums to one), but no "
            "softmax is found that makes them, so the logits that the losses are defined on are not known: export the "
            "model with its logits, or train with mean_square (against a teacher) or an ONNX loss"
        )


def output_notes(graph: Graph, losses: Sequence[Loss]) -> tuple[str, ...]:
    """What of a model's outputs the losses do not read, and where they read something else than an output."""
    first, *others = graph.outputs
    notes = []
    if others:
        names = ", ".join(f"'{value.name}'" for value in others)
        notes.append(
            f"The model has {len(graph.outputs)} outputs, and training follows the first alone, '{first.name}': what "
            f"only {names} read{'s' if len(others) == 1 else ''} is not trained"
        )
    softmax = softmax_behind(graph, first)
    if softmax is not None and not all(isinstance(loss, OnnxLoss) for loss in losses):
        notes.append(
            f"The model's output '{first.name}' is a softmax: training works on what it reads, the logits "
            f"'{softmax.logits.name}'; the model keeps its softmax"
        )
    return tuple(notes)
