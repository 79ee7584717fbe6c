"""`FoldConstants`: what depends on constants alone is computed once, by ONNX Runtime."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from onnx import numpy_helper

from onnxslim.errors import OnnxSlimError
from onnxslim.graph import Array, DType, Graph, Node, Value
from onnxslim.rewrite import Context, Outcome, Pass, Refusal
from onnxslim.runtime.session import Session

__all__ = ["FoldConstants"]

_NEVER = {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
_GRIDS = {"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"}


@dataclass(frozen=True)
class FoldConstants(Pass):
    """op(constants) → initialiser; Constant → initialiser; Shape(x), Size(x) of a known shape → initialiser.

    All foldable nodes run in one session. Refuses, naming the node: a result more than `max_growth`
    bytes larger than what it replaces. Random ops, quantisation grids, ops of other domains and nodes
    with bodies stay.

    Exact: ONNX Runtime computes what it would have computed later.
    """

    max_growth: int = 1 << 20
    name: ClassVar[str] = "fold_constants"

    def run(self, graph: Graph, context: Context) -> Outcome:
        count = sum(_known_at_once(graph, node) for node in graph.nodes())
        constant = {v.id for v in graph.initializers() if graph.constant_of(v) is not None}
        chosen: list[Node] = []
        for node in graph.nodes():
            inputs = [v for v in graph.node_inputs(node) if v is not None]
            if not _may_fold(graph, node) or not all(v.id in constant for v in inputs):
                continue
            chosen.append(node)
            constant.update(v.id for v in graph.node_outputs(node) if v is not None)
        if not chosen:
            return Outcome(count)
        ids = {node.id for node in chosen}
        border = [
            v for node in chosen for v in graph.node_outputs(node)
            if v is not None and (graph.is_output(v) or any(use.node.id not in ids for use in graph.uses(v)))
        ]  # fmt: skip
        found = _compute(graph, chosen, border)
        refused = []
        for value in border:
            array = found.get(value.name)
            producer = graph.producer(value)
            if array is None or producer is None:
                continue
            replaced = sum(v.array.nbytes for v in graph.node_inputs(producer) if v is not None and v.array is not None)
            if array.nbytes - replaced > self.max_growth:
                refused.append(Refusal(str(producer), f"folding it would add {array.nbytes - replaced:,} bytes"))
            elif len([v for v in graph.node_outputs(producer) if v is not None]) == 1:
                graph.detach(producer)
                graph.set_array(value, array)
                count += 1
        return Outcome(count, tuple(refused))


def _may_fold(graph: Graph, node: Node) -> bool:
    bodies = any(a.HasField("g") or a.graphs for a in node.attributes.values())
    return not (node.domain or bodies or node.op in _NEVER or node.op in _GRIDS or graph.captures(node))


def _known_at_once(graph: Graph, node: Node) -> int:
    """Constant, and Shape or Size of a known shape."""
    if node.domain:
        return 0
    array: Array | None = None
    if node.op == "Constant":
        array = _constant(node)
    elif node.op in ("Shape", "Size"):
        shape = graph.operand(node, 0).shape
        if shape is not None:
            part = shape[slice(node.attr("start", 0), node.attr("end"))] if node.op == "Shape" else shape
            if all(isinstance(d, int) for d in part):
                numbers = [d for d in part if isinstance(d, int)]
                array = np.array(numbers if node.op == "Shape" else math.prod(numbers), np.int64)
    if array is None:
        return 0
    result = graph.result(node)
    graph.detach(node)
    graph.set_array(result, array)
    return 1


def _constant(node: Node) -> Array | None:
    for name, proto in node.attributes.items():
        if name == "value":
            return numpy_helper.to_array(proto.t)
        if name in ("value_float", "value_floats"):
            return np.array(node.attr(name), np.float32)
        if name in ("value_int", "value_ints"):
            return np.array(node.attr(name), np.int64)
    return None


def _compute(graph: Graph, chosen: list[Node], border: list[Value]) -> dict[str, Array]:
    """The border's arrays from one session over the chosen nodes; empty where ONNX Runtime has no kernel."""
    part = Graph(f"{graph.name}.constants", graph.opset, graph.ir_version)
    part.opsets = dict(graph.opsets)
    twins: dict[int, Value] = {}
    for node in chosen:
        inputs: list[Value | None] = []
        for value in graph.node_inputs(node):
            if value is None:
                inputs.append(None)
                continue
            if value.id not in twins:
                assert value.array is not None
                twins[value.id] = part.add_constant(value.name, value.array)
            inputs.append(twins[value.id])
        outputs: list[Value | None] = []
        for value in graph.node_outputs(node):
            if value is not None:
                twins[value.id] = part.add_value(value.name, value.dtype, value.shape)
            outputs.append(None if value is None else twins[value.id])
        part.add_node(node.op, inputs, outputs, node.attributes, name=node.name)
    for value in border:
        if value.dtype is not DType.UNDEFINED:
            part.add_output(twins[value.id])
    if not part.outputs:
        return {}
    try:
        return Session(part, optimize=False).run({})
    except OnnxSlimError:  # an op or type without a kernel: nothing is folded, nothing is lost
        return {}
