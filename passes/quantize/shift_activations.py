"""`ShiftActivations`: an int8 model's activations as int8 instead of uint8, or the other way round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.analysis.precision import quantized_type
from onnxslim.analysis.scope import place
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import DType, Graph, Node, Value
from onnxslim.ir.rewrite import Context, Outcome, Pass

__all__ = ["ShiftActivations"]

_MOVERS = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool",
    "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Ops that move integers about, or keep the largest: they do the same after a shift of all of them."""


@dataclass(frozen=True)
class ShiftActivations(Pass):
    """DequantizeLinear(QuantizeLinear(x, s, z), s, z), z uint8  ↔  the same with z − 128 as int8.

    The grids coincide: the same numbers come out, bit for bit. `signed` is what is wanted; pairs that are so stay.
    With int8 activations, constants in uint8 are shifted too, because no kernel takes both. Between the two nodes of a
    pair integers may be clipped and moved.

    Raises UnsupportedError, naming the node, where that is not all that the model does with them: 16 bits, zero points
    that are computed, integers that an op reads by itself (QLinearConv, MatMulInteger …) or that the model hands out.
    """

    signed: bool
    name: ClassVar[str] = "shift_activations"

    def run(self, graph: Graph, context: Context) -> Outcome:
        wanted = DType.INT8 if self.signed else DType.UINT8
        shift = -128 if self.signed else 128
        starts = [n for n in graph.nodes() if n.op == "QuantizeLinear" and quantized_type(graph, n) is not wanted]
        integers = _followed(graph, starts, wanted)
        changes = _Changes(graph, wanted, shift)
        for node in starts:
            changes.pair(node)
        for value in integers:
            for use in graph.uses(value):
                if use.node.op == "DequantizeLinear" and use.slot == 0:
                    changes.pair(use.node)
                elif use.node.op == "Clip" and use.slot == 0:
                    changes.bounds(use.node)
            graph.set_type(value, wanted, value.shape)
        if self.signed:
            changes.constants()
        changes.drop_unused()
        return Outcome(len(starts))


def _followed(graph: Graph, starts: Iterable[Node], wanted: DType) -> list[Value]:
    """What holds the integers of these QuantizeLinears; UnsupportedError where more than pairs is made of them."""
    other = DType.UINT8 if wanted is DType.INT8 else DType.INT8
    queue, found = [graph.result(node) for node in starts], dict[int, Value]()
    for node in starts:
        _require(
            graph,
            quantized_type(graph, node) is other,
            node,
            f"quantises to {quantized_type(graph, node).name.lower()}",
        )
    while queue:
        value = queue.pop()
        if value.id in found:
            continue
        found[value.id] = value
        source = graph.producer(value)
        assert source is not None
        _require(graph, not graph.is_output(value), source, f"gives the model's output '{value.name}'")
        for use in graph.uses(value):
            node = use.node
            if node.op == "DequantizeLinear":
                continue
            moves = not node.domain and node.op in (*_MOVERS, "Clip")
            _require(graph, moves, node, f"reads the integers '{value.name}'")
            queue += [v for v in graph.node_outputs(node) if v is not None]
    for value in found.values():
        source = graph.producer(value)
        if source is not None and source.op == "Concat":
            known = all(v is not None and v.id in found for v in graph.node_inputs(source))
            _require(graph, known, source, "joins integers of another kind")
    return list(found.values())


def _require(graph: Graph, true: bool, node: Node, what: str) -> None:
    if not true:
        where = place(graph, node)
        raise UnsupportedError(f"{where} {what}, so the activations cannot change their type: quantise for the target")


class _Changes:
    """Shifted constants, one for each that there was."""

    def __init__(self, graph: Graph, wanted: DType, shift: int) -> None:
        self.graph, self.wanted, self.shift = graph, wanted, shift
        self.made: dict[int, Value] = {}
        self.done: set[int] = set()
        self.old: list[Value] = []

    def pair(self, node: Node) -> None:
        """A QuantizeLinear or DequantizeLinear reads the shifted zero point."""
        if node.id in self.done:
            return
        self.done.add(node.id)
        zero_point = self.graph.input(node, 2)
        if zero_point is None:  # uint8 0 by default, which is int8 −128; int8 comes with its zero point, or as 0
            scale = self.graph.operand(node, 1)
            array = self.graph.constant_of(scale)
            _require(self.graph, array is not None, node, "has a scale that is computed")
            assert array is not None
            self.graph.set_input(node, 2, self._constant("zero_point", np.full(array.shape, self.shift)))
        else:
            self.graph.set_input(node, 2, self._shifted(zero_point, node))
        if node.op == "QuantizeLinear":
            self.graph.set_attribute(node, "output_dtype", None)

    def bounds(self, node: Node) -> None:
        for slot in (1, 2):
            bound = self.graph.input(node, slot)
            if bound is not None:
                self.graph.set_input(node, slot, self._shifted(bound, node))

    def constants(self) -> None:
        """Weights in uint8 become int8."""
        for node in self.graph.nodes():
            stored = self.graph.input(node, 0) if node.op == "DequantizeLinear" else None
            if stored is not None and stored.dtype is DType.UINT8 and self.graph.constant_of(stored) is not None:
                self.graph.set_input(node, 0, self._shifted(stored, node))
                self.pair(node)

    def drop_unused(self) -> None:
        for value in self.old:
            if not self.graph.is_used(value) and not self.graph.is_output(value):
                self.graph.remove_value(value)

    def _shifted(self, value: Value, node: Node) -> Value:
        array = self.graph.constant_of(value)
        _require(self.graph, array is not None, node, f"reads '{value.name}', which is computed")
        assert array is not None
        if value.id not in self.made:
            self.made[value.id] = self._constant(value.name, array.astype(np.int64) + self.shift)
            self.old.append(value)
        return self.made[value.id]

    def _constant(self, name: str, array: np.ndarray) -> Value:
        return self.graph.add_constant(name, np.asarray(array, self.wanted.numpy))
