"""What `onnxslim inspect` tells about a model: its interface, ops and cost, and what can be quantised
and trained, with reasons for the rest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxslim.analysis.cost import Cost, cost, one_sample, parameters
from onnxslim.analysis.regions import find_regions
from onnxslim.analysis.scope import label
from onnxslim.graph import DType, Graph, Node, Value
from onnxslim.targets import Target
from onnxslim.text import type_text

__all__ = ["Inspection", "Reason", "Tensor", "Trainable", "inspect_model"]


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
class Trainable:
    """params: elements of weights that a gradient can reach, out of `total`. blocked: nodes between
    weights and outputs that no gradient passes."""

    params: int
    total: int
    blocked: tuple[Reason, ...]


@dataclass(frozen=True)
class Inspection:
    """One model. `ops` counts by op (with its domain where that is not ONNX's), most frequent first.

    quantizable: names of nodes with an integer kernel on the target; not_quantizable: the others that
    compute in float. Both are None, like `trainable`, where that was not asked for.
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
    quantizable: tuple[str, ...] | None
    not_quantizable: tuple[Reason, ...] | None
    trainable: Trainable | None


def inspect_model(
    graph: Graph,
    *,
    target: Target | None = None,
    differentiable: Callable[[Node], str | None] | None = None,
    file_bytes: int | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Inspection:
    """Looks at a graph, which is not changed.

    target: asks what can be quantised for it. differentiable: gives the reason why a node has no
    gradient, or None where it has one; asks what can be trained. file_bytes: size on disk, if known.
    sizes: of free axes of the inputs, for the cost.
    """
    sample, _ = one_sample(graph)
    quantizable: tuple[str, ...] | None = None
    refused: tuple[Reason, ...] | None = None
    if target is not None:
        regions = find_regions(sample, target)
        quantizable = tuple(label(sample, n) for n in (*regions.compute, *regions.integer))
        refused = tuple(Reason(label(sample, n), _op(n), why) for n, why in regions.refused)
    counts = Counter(_op(node) for node in graph.nodes())
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
        quantizable=quantizable,
        not_quantizable=refused,
        trainable=None if differentiable is None else _trainable(sample, differentiable),
    )


def _trainable(graph: Graph, differentiable: Callable[[Node], str | None]) -> Trainable:
    """Follows the gradient from the outputs back, as far as it goes."""
    weights = [v for v in parameters(graph) if v.dtype.is_float]
    fed = _fed_by(graph, weights)
    live = {v.id for v in graph.outputs if _carries_gradient(v)}
    blocked: list[Reason] = []
    for node in reversed(graph.nodes()):
        if node.id not in fed or not any(v is not None and v.id in live for v in graph.node_outputs(node)):
            continue
        why = differentiable(node)
        if why is None:
            live.update(v.id for v in _read(graph, node) if _carries_gradient(v))
        else:
            blocked.append(Reason(label(graph, node), _op(node), why))
    reached = [v for v in weights if v.id in live]
    return Trainable(_elements(reached), _elements(weights), tuple(reversed(blocked)))


def _fed_by(graph: Graph, weights: list[Value]) -> set[int]:
    """Ids of the nodes that a weight's gradient could pass."""
    moving = {v.id for v in weights}
    nodes: set[int] = set()
    for node in graph.nodes():
        if any(v.id in moving for v in _read(graph, node)):
            nodes.add(node.id)
            moving.update(v.id for v in graph.node_outputs(node) if v is not None and _carries_gradient(v))
    return nodes


def _read(graph: Graph, node: Node) -> list[Value]:
    """What a node reads, by itself and in its bodies (If, Loop, Scan)."""
    return [v for v in (*graph.node_inputs(node), *graph.captures(node).values()) if v is not None]


def _carries_gradient(value: Value) -> bool:
    return value.dtype.is_float or value.dtype is DType.UNDEFINED


def _elements(values: list[Value]) -> int:
    return sum(math.prod(v.static_shape) for v in values)


def _op(node: Node) -> str:
    return f"{node.domain}.{node.op}" if node.domain else node.op
