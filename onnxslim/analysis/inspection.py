"""What `onnxslim inspect` tells about a model: its interface, ops and cost, and what can be quantised
and trained, with reasons for the rest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxslim.analysis.bodies import walk
from onnxslim.analysis.cost import Cost, cost, one_sample, parameters
from onnxslim.analysis.precision import Precision, precision_of
from onnxslim.analysis.regions import find_regions
from onnxslim.analysis.scope import label
from onnxslim.analysis.trainable import Differentiable, find_trainable
from onnxslim.brief import Brief
from onnxslim.errors import OnnxSlimError
from onnxslim.ir.graph import Graph, Node
from onnxslim.ir.text import type_text
from onnxslim.targets import Target

__all__ = ["Inspection", "Left", "Reason", "Tensor", "Trainable", "inspect_model"]


@dataclass(frozen=True)
class Tensor:
    """An input or output; `type` reads `FLOAT[batch, 3, 32, 32]`."""

    name: str
    type: str


@dataclass(frozen=True)
class Reason:
    """A node that something cannot be done with, and why."""

    node: str
    op: str
    why: str


@dataclass(frozen=True)
class Left:
    """A weight that is not trained, and why."""

    name: str
    size: int
    why: str


@dataclass(frozen=True)
class Trainable:
    """params: elements of weights that are trained, out of `total`. blocked: nodes between weights and the first output
    that no gradient passes. left: the weights that stay as they are."""

    params: int
    total: int
    blocked: tuple[Reason, ...]
    left: tuple[Left, ...] = ()


@dataclass(frozen=True, repr=False)
class Inspection(Brief):
    """One model. `ops` counts by op (with its domain where that is not ONNX's), most frequent first; in bodies (If,
    Loop, Scan) too.

    precision: what it computes in. quantizable: names of nodes with an integer kernel on the target; not_quantizable:
    the others that compute in float. Both are None where that was not asked for, like `trainable`, and where the model
    is quantised already.
    """

    name: str
    producer: str
    ir_version: int
    opsets: tuple[tuple[str, int], ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    ops: tuple[tuple[str, int], ...]
    cost: Cost
    file_bytes: int | None
    precision: Precision
    quantizable: tuple[str, ...] | None
    not_quantizable: tuple[Reason, ...] | None
    trainable: Trainable | None


def inspect_model(
    graph: Graph,
    *,
    target: Target | None = None,
    differentiable: Differentiable | None = None,
    prepare: Callable[[Graph], Graph] | None = None,
    ready: Callable[[Graph], object] | None = None,
    file_bytes: int | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Inspection:
    """Looks at a graph, which is not changed.

    target: asks what can be quantised for it. ready: what quantisation does to a model first, so that what it quantises
    is looked at. differentiable: gives the reason why a node has no
    gradient, or None where it has one; asks what can be trained. prepare: what training does to a model first, so that
    what it trains is looked at. file_bytes: size on disk, if known. sizes: of free axes of the inputs, for the cost.
    """
    sample, _ = one_sample(graph)
    precision = precision_of(graph)
    quantizable: tuple[str, ...] | None = None
    refused: tuple[Reason, ...] | None = None
    if target is not None and precision.kind == "float":
        quantizable, refused = _quantizable(sample, graph, target, ready)
    counts = Counter(_op(node) for part in walk(graph) for node in part.nodes())
    header = graph.header
    return Inspection(
        name=graph.name,
        producer=" ".join(filter(None, (header.producer_name, header.producer_version))),
        ir_version=graph.ir_version,
        opsets=tuple((domain or "ai.onnx", version) for domain, version in graph.opsets.items()),
        inputs=tuple(Tensor(v.name, type_text(v)) for v in graph.inputs if v.array is None),
        outputs=tuple(Tensor(v.name, type_text(v)) for v in graph.outputs),
        ops=tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        cost=cost(graph, sizes),
        file_bytes=file_bytes,
        precision=precision,
        quantizable=quantizable,
        not_quantizable=refused,
        trainable=None
        if differentiable is None or precision.kind == "int8"
        else _trainable(prepare(graph) if prepare else sample, differentiable),
    )


def _quantizable(
    sample: Graph, graph: Graph, target: Target, ready: Callable[[Graph], object] | None
) -> tuple[tuple[str, ...], tuple[Reason, ...]]:
    if ready is not None:
        sample = graph.copy()
        try:
            ready(sample)
        except OnnxSlimError as error:
            return (), (Reason(graph.name, "the model", str(error)),)
    regions = find_regions(sample, target)
    names = tuple(label(sample, n) for n in (*regions.compute, *regions.integer))
    return names, tuple(Reason(label(sample, n), _op(n), why) for n, why in regions.refused)


def _trainable(graph: Graph, differentiable: Differentiable) -> Trainable:
    survey = find_trainable(graph, differentiable)
    weights = {v.id for v in parameters(graph)}
    trained = sum(math.prod(p.value.static_shape) for p in survey.parameters)
    left = tuple(Left(v.name, math.prod(v.static_shape), why) for v, why in survey.left if v.id in weights)
    blocked = tuple(Reason(label(graph, node), _op(node), why) for node, why in survey.blocked)
    return Trainable(trained, trained + sum(one.size for one in left), blocked, left)


def _op(node: Node) -> str:
    return f"{node.domain}.{node.op}" if node.domain else node.op
