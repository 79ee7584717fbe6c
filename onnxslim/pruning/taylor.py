"""Gradient · weight, batch by batch: what the criterion taylor is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

import numpy as np

from onnxslim.data import ProgressCallback
from onnxslim.data.dataset import LABEL
from onnxslim.errors import DataError
from onnxslim.ir.graph import Array, Graph
from onnxslim.runtime.session import Session
from onnxslim.training.names import inner_name, outer_name
from onnxslim.training.parameters import mark_parameters
from onnxslim.training.step import StepOptions, build_step
from passes.distill import CrossEntropy

__all__ = ["gradient_products"]

_GRADIENT = "grad."


def gradient_products(
    graph: Graph,
    batches: Iterable[tuple[Mapping[str, Array], Array]],
    batch: int,
    count: int,
    progress: ProgressCallback | None = None,
) -> list[dict[str, Array]]:
    """Of each of `count` batches, (feeds by name, labels int64 [batch]): by parameter, its gradient times itself,
    float32 in its shape. The loss is the cross-entropy, batch norm uses its running statistics.

    Raises GradientError naming the node where something on the way has no gradient.
    """
    student = graph.copy()
    mark_parameters(student)
    upcoming = iter(batches)
    first = next(upcoming, None)
    shapes = [] if first is None else [array.shape[1:] for array in first[0].values()]
    sample = shapes[0] if len(shapes) == 1 else None
    step = build_step(student, batch, StepOptions((CrossEntropy(),), frozen_batchnorm=True, sample=sample))
    arrays = {inner_name(v.name): v.array for v in student.initializers() if v.array is not None}
    state = step.fed_from({name: arrays[name] for name in step.state})
    session = Session(step.graph, fuse_qdq=False)
    names = [v.name for v in step.graph.outputs if v.name.startswith(_GRADIENT)]
    found: list[dict[str, Array]] = []
    for feeds, labels in chain([] if first is None else [first], upcoming):
        fed = {inner_name(name): array for name, array in feeds.items()}
        gradients = session.run({**fed, LABEL: labels, **state}, names)
        if not all(np.isfinite(gradient).all() for gradient in gradients.values()):
            raise DataError("Criterion taylor: the model gives NaN or infinity on these data; look for it in them")
        own = {name.removeprefix(_GRADIENT): gradient for name, gradient in gradients.items()}
        found.append(
            {outer_name(name): gradient.reshape(arrays[name].shape) * arrays[name] for name, gradient in own.items()}
        )
        if progress is not None:
            progress("gradients", len(found), count)
    return found
