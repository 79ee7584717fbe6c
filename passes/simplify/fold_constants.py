"""`FoldConstants`: what depends on constants alone is computed once, by ONNX Runtime."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxslim.analysis.cost import node_macs
from onnxslim.budget import FOLDED_BYTES, Folding
from onnxslim.errors import ModelError, OnnxSlimError
from onnxslim.ir.graph import Array, Graph, Node, Value
from onnxslim.ir.onnx_io.tensors import ExternalFiles, array_of
from onnxslim.ir.ops import is_pure
from onnxslim.ir.rewrite import Context, Outcome, Pass, Refusal
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.session import Session
from onnxslim.spill import Spill
from passes.simplify.for_runtime import for_runtime

__all__ = ["FoldConstants"]

_NO_LARGER = ("Compress", "NonZero", "Unique")
"""Ops whose result is as large as the content of the input says, and no larger than 8 bytes an element and axis."""
_GRIDS = ("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear")
_FED_FROM = 1 << 20
"""Constants of this many bytes are fed, and read in place: a session would copy its initialisers."""
_TOGETHER = 1 << 26
"""Results of more bytes than this in all are computed one after the other, and kept in temporary files."""


@dataclass(frozen=True)
class FoldConstants(Pass):
    """op(constants) → initialiser; Constant → initialiser; Shape(x), Size(x) of a known shape → initialiser.

    All that can be folded is computed in one session, or node by node where it is large. Retained: random
    ops, FakeQuant and quantisation grids with everything that reads them, ops of other domains and local
    functions, nodes with bodies, and nodes whose output is a graph output.

    Refuses, naming the node: a result that would make the model more than `max_growth` bytes larger,
    the constants that it alone needed taken off; one whose size is not known before it is computed, from the sizes or
    the content of the inputs; and what goes beyond the bounds of `onnxslim.budget`, in bytes or in work.

    Exact: ONNX Runtime computes what it would have computed later. With `compute=False`, only Constant nodes become
    initialisers: there are as many of them as of others in some files, and what comes after has less to go through.
    """

    max_growth: int = 1 << 20
    compute: bool = True
    name: ClassVar[str] = "fold_constants"

    def run(self, graph: Graph, context: Context) -> Outcome:
        if not self.compute:
            stored = [node for node in graph.nodes() if node.op == "Constant"]
            return Outcome(sum(_known_at_once(graph, node) for node in stored))
        count = sum(_known_at_once(graph, node) for node in graph.nodes())
        plan = _Plan(graph, self.max_growth, context.folding)
        found = plan.compute()
        for node in plan.chosen:
            results = [v for v in graph.node_outputs(node) if v is not None]
            if all(v.name in found or not graph.is_used(v) for v in results) and any(v.name in found for v in results):
                graph.detach(node)
                for value in results:
                    if value.name in found:
                        graph.set_array(value, found[value.name])
                count += 1
        return Outcome(count, tuple(plan.refused))


class _Plan:
    """Which nodes are computed, which of their results replace them, and what is refused."""

    def __init__(self, graph: Graph, max_growth: int, budget: Folding) -> None:
        self.graph, self.max_growth = graph, max_growth
        self.chosen: list[Node] = []
        self.refused: list[Refusal] = []
        self._budget = budget
        self._leaves: dict[int, frozenset[int]] = {  # initialisers that a value is computed from
            v.id: frozenset((v.id,)) for v in graph.initializers() if graph.constant_of(v) is not None
        }
        for node in graph.nodes():
            if all(v is None or v.id in self._leaves for v in graph.node_inputs(node)) and _may_fold(graph, node):
                self._choose(node)
        self._ids = {node.id for node in self.chosen}

    def _choose(self, node: Node) -> None:
        inputs = [v for v in self.graph.node_inputs(node) if v is not None]
        outputs = [v for v in self.graph.node_outputs(node) if v is not None]
        size = max((_bytes_of(v) or 0 for v in outputs), default=0)
        if size > FOLDED_BYTES:
            self.refused.append(Refusal(str(node), f"its result has {size:,} bytes"))
            return
        leaves = frozenset[int]().union(*(self._leaves[v.id] for v in inputs))
        self._leaves.update((v.id, leaves) for v in outputs)
        self.chosen.append(node)

    def compute(self) -> dict[str, Array]:
        """By name, the arrays that may replace the nodes which make them."""
        graph = self.graph
        border = [
            value
            for node in self.chosen
            for value in graph.node_outputs(node)
            if value is not None and any(use.node.id not in self._ids for use in graph.uses(value))
        ]
        wanted = [value for value in border if self._fits(value, _bytes_of(value) or 0)]
        if not wanted:
            return {}
        needed = self._affordable(self._needed(wanted))
        made = {v.id for node in needed for v in graph.node_outputs(node) if v is not None}
        wanted = [value for value in wanted if value.id in made]
        if not wanted:
            return {}
        sizes = [_bytes_of(v) for n in needed for v in graph.node_outputs(n) if v is not None]
        known = [size for size in sizes if size is not None]
        found = _run(graph, needed, wanted) if len(known) == len(sizes) and sum(known) <= _TOGETHER else None
        found = found or self._one_by_one(needed, wanted)
        return {
            v.name: found[v.name] for v in wanted if v.name in found and self._fits(v, found[v.name].nbytes, final=True)
        }

    def _fits(self, value: Value, size: int, *, final: bool = False) -> bool:
        """Whether the model may grow by it; a refusal is noted."""
        graph = self.graph
        spared = 0
        for id in sorted(self._leaves[value.id]):
            leaf = graph.item(id)
            assert isinstance(leaf, Value)
            if leaf.array is not None and all(use.node.id in self._ids for use in graph.uses(leaf)):
                spared += leaf.array.nbytes
        if size - spared <= self.max_growth and (not final or self._budget.growth.spend(max(0, size - spared))):
            return True
        self.refused.append(Refusal(str(graph.producer(value)), f"folding it would add {size - spared:,} bytes"))
        return False

    def _needed(self, wanted: Sequence[Value]) -> list[Node]:
        """The chosen nodes that the wanted values depend on: what is refused is not computed either."""
        ids = {value.id for value in wanted}
        needed: list[Node] = []
        for node in reversed(self.chosen):
            if any(v is not None and v.id in ids for v in self.graph.node_outputs(node)):
                needed.append(node)
                ids.update(v.id for v in self.graph.node_inputs(node) if v is not None)
        return needed[::-1]

    def _affordable(self, nodes: Sequence[Node]) -> list[Node]:
        """Those that the budget of work suffices for, in order, without what depends on the others."""
        kept, lost = [], set[int]()
        for node in nodes:
            outputs = [v for v in self.graph.node_outputs(node) if v is not None]
            is_lost = any(v is not None and v.id in lost for v in self.graph.node_inputs(node))
            if not is_lost and all(_bytes_of(v) is not None for v in outputs):  # else asked when its inputs are there
                why = self._too_long(self.graph, node)
                if why is not None:
                    self.refused.append(Refusal(str(node), why))
                    is_lost = True
            if is_lost:
                lost.update(v.id for v in outputs)
            else:
                kept.append(node)
        return kept

    def _too_long(self, graph: Graph, node: Node) -> str | None:
        """Spends the node's work; why it is not computed, where that much is not left."""
        work = _work(graph, node)
        return None if self._budget.work.spend(work) else f"it takes {work:,} operations: more than folding may take"

    def _one_by_one(self, nodes: Sequence[Node], wanted: Sequence[Value]) -> dict[str, Array]:
        """Where they are too large to be held together, of sizes that are not known, or ONNX Runtime cannot take them
        together: each node whose inputs were found, in a session of its own, when its result's size is known."""
        graph, room = self.graph, Spill()
        kept: dict[str, Array] = {}
        found: dict[str, Array] = {}
        names = {value.name for value in wanted}
        last = {v.id: node.id for node in nodes for v in graph.node_inputs(node) if v is not None}
        for node in nodes:
            inputs = [v for v in graph.node_inputs(node) if v is not None]
            outputs = [v for v in graph.node_outputs(node) if v is not None]
            is_given = all(v.array is not None or v.name in found for v in inputs)
            if is_given and any(_bytes_of(v) is None for v in outputs):
                why = _too_large(part := _alone(graph, node, found)) or self._too_long(part, *part.nodes())
                if why is not None:
                    self.refused.append(Refusal(str(node), why))
                    is_given = False
            if is_given:
                for name, array in (_run(graph, [node], outputs, found) or {}).items():
                    found[name] = room.keep(array)
                    if name in names:
                        kept[name] = found[name]
            for value in inputs:
                if last[value.id] == node.id:
                    found.pop(value.name, None)
        return kept


def _may_fold(graph: Graph, node: Node) -> bool:
    given = any(graph.is_output(v) for v in graph.node_outputs(node) if v is not None)
    return is_pure(graph, node) and not given and node.op not in _GRIDS


def _bytes_of(value: Value) -> int | None:
    """What its type says; None where that is not known."""
    if value.shape is None or not value.dtype or not all(isinstance(d, int) for d in value.shape):
        return None
    return math.prod(value.static_shape) * value.dtype.numpy.itemsize


def _too_large(part: Graph) -> str | None:
    """Why a node whose inputs are there, alone in a graph, is not computed for the size of what it makes."""
    (node,) = part.nodes()
    sizes = [_bytes_of(v) for v in part.node_outputs(node) if v is not None]
    largest = max((size for size in sizes if size is not None), default=0)
    if None in sizes:
        if node.op not in _NO_LARGER:
            return "the size of its result is not known before it is computed"
        inputs = [v.static_shape for v in part.node_inputs(node) if v is not None]
        largest = sum(8 * max(1, len(shape)) * math.prod(shape) for shape in inputs)
    return f"its result has {largest:,} bytes" if largest > FOLDED_BYTES else None


def _work(graph: Graph, node: Node) -> int:
    """Multiply-accumulates and elements moved, as far as they are known."""
    values = [v for v in (*graph.node_inputs(node), *graph.node_outputs(node)) if v is not None]
    elements = [math.prod(v.static_shape) for v in values if _bytes_of(v) is not None]
    macs = node_macs(graph, node)
    if macs is None:  # at worst, each element of the result from all of the inputs
        macs = math.prod(max(1, n) for n in elements)
    return macs + sum(elements)


def _known_at_once(graph: Graph, node: Node) -> int:
    """Constant, and Shape or Size of a known shape."""
    if node.domain or node.op not in ("Constant", "Shape", "Size") or graph.is_output(graph.result(node)):
        return 0
    array: Array | None = None
    if node.op == "Constant":
        array = _constant(node)
    else:
        array = _measured(graph.operand(node, 0), node)
    if array is None:
        return 0
    result = graph.result(node)
    graph.detach(node)
    graph.set_array(result, array)
    return 1


def _constant(node: Node) -> Array | None:
    """The array of a Constant; None for text and sparse tensors, which stay."""
    for name, proto in node.attributes.items():
        if name == "value":
            return array_of(proto.t, ExternalFiles(None))
        if name in ("value_float", "value_floats"):
            return np.array(node.attr(name), np.float32)
        if name in ("value_int", "value_ints"):
            return np.array(node.attr(name), np.int64)
    return None


def _measured(value: Value, node: Node) -> Array | None:
    if value.shape is None:
        return None
    part = value.shape[slice(node.attr("start", 0), node.attr("end"))] if node.op == "Shape" else value.shape
    numbers = [d for d in part if isinstance(d, int)]
    if len(numbers) != len(part):
        return None
    return np.array(numbers if node.op == "Shape" else math.prod(numbers), np.int64)


def _filled(graph: Graph, node: Node, known: Mapping[str, Array]) -> Array | None:
    """What a ConstantOfShape makes, for which no session is needed; None for other ops, and where it is for ONNX
    Runtime to say what is wrong."""
    if node.op != "ConstantOfShape" or node.domain:
        return None
    target = graph.operand(node, 0)
    shape = known.get(target.name) if target.array is None else target.array
    value = node.attributes.get("value")
    fill = np.zeros(1, np.float32) if value is None else array_of(value.t, ExternalFiles(None))
    if shape is None or shape.dtype != np.int64 or shape.ndim != 1 or fill.size != 1:
        return None
    dims = shape.tolist()
    if min(dims, default=0) < 0 or math.prod(dims) * fill.itemsize > FOLDED_BYTES:
        return None
    return np.full(dims, fill.reshape(()), fill.dtype)


def _alone(graph: Graph, node: Node, known: Mapping[str, Array]) -> Graph:
    """A graph of one node and its inputs, with the types that follow from their content."""
    part, _, _ = _part(graph, [node], known)
    with contextlib.suppress(ModelError):  # nothing is known then
        infer_shapes(part)
    return part


def _part(
    graph: Graph, nodes: Sequence[Node], known: Mapping[str, Array]
) -> tuple[Graph, dict[int, Value], dict[str, Array]]:
    """A graph of some nodes, its values by the ids that they have in the other, and what it is fed."""
    part = Graph(f"{graph.name}.constants", graph.opset, graph.ir_version)
    part.opsets = dict(graph.opsets)
    twins: dict[int, Value] = {}
    feeds: dict[str, Array] = {}
    for node in nodes:
        for value in graph.node_inputs(node):
            if value is not None and value.id not in twins:
                array = value.array if value.array is not None else known[value.name]
                if array.nbytes >= _FED_FROM and array.dtype.kind in "fiub":
                    twins[value.id] = part.add_input(value.name, value.dtype, array.shape)
                    feeds[value.name] = array
                else:
                    twins[value.id] = part.add_constant(value.name, array)
        for value in graph.node_outputs(node):
            if value is not None:
                twins[value.id] = part.add_value(value.name, value.dtype, value.shape)
        inputs = [None if v is None else twins[v.id] for v in graph.node_inputs(node)]
        outputs = [None if v is None else twins[v.id] for v in graph.node_outputs(node)]
        part.add_node(node.op, inputs, outputs, node.attributes, name=node.name)
    return part, twins, feeds


def _run(
    graph: Graph, nodes: Sequence[Node], wanted: Sequence[Value], known: Mapping[str, Array] | None = None
) -> dict[str, Array] | None:
    """The wanted values by name, from one session over the nodes; None where ONNX Runtime has no kernel."""
    known = dict(known or {})
    for node in nodes:
        array = _filled(graph, node, known)
        if array is not None:
            known[graph.result(node).name] = array
    nodes = [n for n in nodes if not any(v is not None and v.name in known for v in graph.node_outputs(n))]
    found: dict[str, Any] = {v.name: known[v.name] for v in wanted if v.name in known}
    wanted = [v for v in wanted if v.name not in found]
    if not wanted:
        return found
    part, twins, feeds = _part(graph, nodes, known)
    for value in wanted:
        part.add_output(twins[value.id])
    try:
        found |= Session(for_runtime(part), optimize=False).run(feeds)
    except OnnxSlimError:  # an op or type without a kernel: nothing is folded, nothing is lost
        return None
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}  # no sequences
