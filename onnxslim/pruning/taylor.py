"""Gradient · weight, batch by batch: what the criterion taylor is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

import numpy as np

from onnxslim.data import ProgressCallback
from onnxslim.errors import DataError
from onnxslim.ir.graph import Array, Graph
from onnxslim.runtime.session import Session
from onnxslim.training.parameters import mark_parameters
from onnxslim.training.ports import Kind, Port
from onnxslim.training.step import StepOptions, build_step
from passes.distill import CrossEntropy

__all__ = ["gradient_products"]


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
    state = {port: student.value(str(port.owner)).array for port in step.state}
    weights = {port: array for port, array in state.items() if array is not None}
    fed, session = step.fed_from(weights), Session(step.graph, fuse_qdq=False)
    gradients = {port.belongs_to: step.ports[port] for port in step.outputs if port.kind is Kind.GRADIENT}
    found: list[dict[str, Array]] = []
    for feeds, labels in chain([] if first is None else [first], upcoming):
        data = {Port(Kind.DATA, name): array for name, array in feeds.items()} | {Port(Kind.LABEL): labels}
        results = session.run({**fed, **{step.ports[port]: data[port] for port in step.data}}, list(gradients.values()))
        if not all(np.isfinite(gradient).all() for gradient in results.values()):
            raise DataError("Criterion taylor: the model gives NaN or infinity on these data; look for it in them")
        found.append(
            {str(port.owner): results[name].reshape(weights[port].shape) * weights[port]
             for port, name in gradients.items()}
        )  # fmt: skip
        if progress is not None:
            progress("gradients", len(found), count)
    return found
