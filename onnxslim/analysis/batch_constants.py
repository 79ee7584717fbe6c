"""The constants in which an exporter wrote a batch size down, found and rewritten.

The graph is followed with a batch size that occurs nowhere else (a large prime). A node whose constants hold the old
size shows by what it would make of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import networkx as nx
import numpy as np

from onnxslim.ir.graph import Array, DType, Graph, Node, Shape, Value
from onnxslim.ir.shape_values import known_constant
from onnxslim.ir.shapes import sweep

__all__ = ["PROBE", "BatchRewriter", "static_sizes"]

PROBE = 999_983
_STATES: Mapping[str, tuple[int, ...]] = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}
"""Inputs of recurrent ops that are states [directions, batch, hidden]."""
_BROADCASTING = (
    "Add",
    "And",
    "Div",
    "Equal",
    "Greater",
    "Less",
    "Max",
    "Min",
    "Mul",
    "Or",
    "Pow",
    "Sub",
    "Sum",
    "Where",
)


class BatchRewriter:
    """Follows the graph, whose shapes with the `old` batch it looks at first, with the probe for a batch size, and
    rewrites constants that hold the old one."""

    def __init__(self, graph: Graph, inputs: list[Value], old: int) -> None:
        self.graph, self.inputs, self.old = graph, inputs, old
        self.before: dict[int, Shape | None] = {v.id: v.shape for v in graph.values()}
        net = graph.view
        self.moving = {v.id for v in inputs}.union(*(nx.descendants(net, v.id) for v in inputs))
        self.known: dict[int, Array] = {}
        self.inner: dict[int, int] = {v.id: 1 for v in inputs}
        """By value id: how many elements of the batch's own axis a sample has behind the batch, as H in [N·H, d]."""
        self.count = 0

    def run(self) -> int:
        """How many nodes were rewritten; the inputs have the probe for a batch already."""
        sweep(self.graph, self.graph.nodes(), self.known, self._visit)
        return self.count

    def _visit(self, node: Node) -> None:
        if node.domain:
            return
        if node.op == "Reshape":
            self._reshape(node)
        elif node.op == "Expand":
            self._expand(node)
        elif node.op == "ConstantOfShape":
            self._follow_input(node, 0)
        elif node.op == "Resize":
            shape = _input_shape(self.graph, node)
            if shape and shape[0] == PROBE and "axes" not in node.attributes:
                self._replace_axis(node, 3, 0)
        elif node.op == "Gather":
            self._gather(node)
        elif node.op in _STATES:
            for slot in _STATES[node.op]:
                self._repeat(node, slot, 0 if node.attr("layout", 0) else 1)
        elif node.op == "Concat":
            self._concat(node)
        elif node.op in _BROADCASTING:
            self._broadcast(node)

    # Where the batch is: an axis, and how much of a sample stands behind it there.

    def _moved(self, value: Value | None) -> int | None:
        """The axis of a value that holds the batch, alone or beside others; None where none, or several, do."""
        new, old = (None if value is None else value.shape), (None if value is None else self.before.get(value.id))
        if new is None or old is None or len(new) != len(old):
            return None
        axes = [a for a, (o, n) in enumerate(zip(old, new)) if o != n]
        return axes[0] if len(axes) == 1 else None

    def _inner_of(self, value: Value) -> int:
        """As `inner` says; of what no Reshape made, that of the operand whose axis has the same size."""
        if value.id not in self.inner:
            axis, producer = self._moved(value), self.graph.producer(value)
            found = 1
            for operand in () if producer is None or axis is None else self.graph.node_inputs(producer):
                place = self._moved(operand)
                if operand is None or place is None or axis is None:
                    continue
                if (operand.shape or ())[place] == (value.shape or ())[axis]:
                    found = self._inner_of(operand)
                    break
            self.inner[value.id] = found
        return self.inner[value.id]

    def _reshape(self, node: Node) -> None:
        """What was made of the old batch, with the batch in the place to which its elements go: a Reshape keeps their
        order, so a sample's stride stays."""
        x, y = self.graph.operand(node, 0), self.graph.result(node)
        target, old_y = self._numbers(self.graph.input(node, 1)), static_sizes(self.before.get(y.id))
        new_x, old_x = static_sizes(x.shape), static_sizes(self.before.get(x.id))
        axis = self._moved(x)
        in_front = axis == 0 and x.shape is not None and x.shape[0] == PROBE
        if in_front and new_x is None and target and target[0] == self.old and -1 in target:  # sizes are free
            if not node.attr("allowzero", 0):
                self._give(node, 1, [0, *target[1:]])  # the axis is copied
            return
        if target is None or new_x is None or old_x is None or old_y is None or axis is None:
            return
        if node.attr("allowzero", 0) and 0 in target:  # an empty tensor
            return
        stride = self._inner_of(x) * math.prod(old_x[axis + 1 :])
        behind = old_x[axis + 1] if axis + 1 < len(old_x) else 1
        place = _place_of(stride, old_y, self.old, behind)
        if place is None:
            return
        self.inner[y.id] = stride // math.prod(old_y[place + 1 :])
        wanted = [*old_y]
        wanted[place] = old_y[place] // self.old * PROBE
        if _resolved(target, new_x) != wanted:
            self._give(node, 1, [-1 if a == place else d for a, d in enumerate(old_y)])

    def _gather(self, node: Node) -> None:
        """Indices [N, …] that count through a first axis N·S: Gather(x, i·S + r) → the r of each sample."""
        x, indices = self.graph.operand(node, 0), self.graph.constant_of(self.graph.input(node, 1))
        old_x = static_sizes(self.before.get(x.id))
        if indices is None or not old_x or node.attr("axis", 0) % len(old_x) or self._moved(x) != 0:
            return
        if indices.ndim == 0 or indices.shape[0] != self.old or indices.dtype.kind not in "iu":
            return
        size, first = old_x[0] // self.old, indices[0]
        steps = (np.arange(self.old) * size).reshape(-1, *[1] * (indices.ndim - 1))
        inside = bool((first >= 0).all() and (first < size).all())
        if self._inner_of(x) != size or not inside or not np.array_equal(indices, first + steps):
            return
        graph, base = self.graph, node.name or self.graph.result(node).name
        target = graph.add_constant(f"{base}/batch/target", np.array([-1, size, *old_x[1:]], np.int64))
        split = graph.op("Reshape", x, target, name=f"{base}/batch")
        graph.set_type(split, x.dtype, (PROBE, size, *old_x[1:]))
        self.before[split.id] = (self.old, size, *old_x[1:])
        self.inner[split.id] = 1
        graph.set_input(node, 0, split)
        graph.set_input(node, 1, graph.add_constant(f"{base}/batch/indices", np.asarray(first)))
        graph.set_attribute(node, "axis", 1)
        self.count += 1

    # Constants that meet the batch: one row of them serves every sample.

    def _concat(self, node: Node) -> None:
        for slot, _ in enumerate(self.graph.node_inputs(node)):
            for other in self.graph.node_inputs(node):
                axis = self._moved(other)
                if other is None or axis is None or not other.shape or node.attr("axis", 0) % len(other.shape) == axis:
                    continue
                if other.shape[axis] == PROBE:
                    self._repeat(node, slot, axis)
                    break

    def _broadcast(self, node: Node) -> None:
        for slot, value in enumerate(self.graph.node_inputs(node)):
            array = None if value is None else self.graph.constant_of(value)
            if array is None or value is None or self.old == 1:
                continue
            for other in self.graph.node_inputs(node):
                axis = self._moved(other)
                if other is None or axis is None or not other.shape or other.shape[axis] != PROBE:
                    continue
                own = axis - len(other.shape) + array.ndim
                if 0 <= own < array.ndim and array.shape[own] == self.old and _rows_equal(array, own):
                    row = self.graph.add_constant(value.name, np.ascontiguousarray(np.take(array, [0], own)))
                    self._replace(node, slot, row)
                    break

    def _repeat(self, node: Node, slot: int, axis: int) -> None:
        """The constant in that slot, whose rows along `axis` are equal, is made for the batch of the input."""
        value = self.graph.input(node, slot) if slot < node.arity[0] else None
        array = self.graph.constant_of(value)
        if value is None or array is None or array.ndim <= axis or array.shape[axis] != self.old:
            return
        if not _rows_equal(array, axis):
            return
        graph, base = self.graph, value.name
        row = graph.add_constant(f"{base}/row", np.ascontiguousarray(np.take(array, [0], axis)))
        sizes = self._sizes(list(array.shape), axis, f"{base}/batch")
        made = graph.op("Expand", row, sizes, name=f"{base}/batch/rows")
        graph.set_type(made, value.dtype, tuple(PROBE if a == axis else d for a, d in enumerate(array.shape)))
        self.before[made.id] = array.shape
        self._replace(node, slot, made)

    def _replace(self, node: Node, slot: int, new: Value) -> None:
        old = self.graph.operand(node, slot)
        self.graph.set_input(node, slot, new)
        self.count += 1
        if not self.graph.is_used(old) and self.graph.producer(old) is None and not self.graph.is_input(old):
            self.graph.remove_value(old)

    # What nodes are told to make.

    def _numbers(self, value: Value | None) -> list[int] | None:
        """Its elements, where they are known and integers."""
        elements = None if value is None else self.known.get(value.id)
        if elements is None:
            elements = known_constant(self.graph, value)
        if elements is None or elements.ndim != 1 or not all(isinstance(e, (int, np.integer)) for e in elements):
            return None
        return [int(e) for e in elements]

    def _expand(self, node: Node) -> None:
        x, target = _input_shape(self.graph, node), self._numbers(self.graph.input(node, 1))
        if x is None or target is None:
            return
        kept = list(target)
        for back in range(1, min(len(x), len(target)) + 1):
            if x[-back] == PROBE and target[-back] == self.old:
                kept[-back] = 1
        if kept != target:
            self._give(node, 1, kept)
        elif PROBE not in x:
            self._follow_input(node, 1)

    def _follow_input(self, node: Node, slot: int) -> None:
        """Something filled in to meet data of the batch, as a reader shows, gets the input's batch."""
        y = self.graph.result(node)
        shape = static_sizes(self.before.get(y.id))
        for reader, place in self.graph.uses(y):
            axis = 1 if place in _STATES.get(reader.op, ()) else 0
            if shape is None or len(shape) <= axis or shape[axis] != self.old:
                continue
            for other in self.graph.node_inputs(reader):
                met = None if other is None or other is y or other.id not in self.moving else self.before.get(other.id)
                if met and len(met) == len(shape) and met[axis] == self.old:
                    self._replace_axis(node, slot, axis)
                    return

    def _replace_axis(self, node: Node, slot: int, axis: int) -> None:
        """The constant in that slot is put together from the input's batch and what it was beside that."""
        target = self._numbers(self.graph.input(node, slot))
        if target is None or len(target) <= axis or target[axis] != self.old:
            return
        whole = self._sizes(target, axis, f"{node.name or self.graph.result(node).name}/batch")
        self.graph.set_input(node, slot, whole)
        self.count += 1

    def _sizes(self, sizes: Sequence[int], axis: int, base: str) -> Value:
        """int64 [rank]: the sizes, with the batch of the input at `axis`."""
        graph = self.graph
        shape = graph.op("Shape", self.inputs[0], name=f"{base}/shape")
        first = graph.op("Gather", shape, graph.add_constant(f"{base}/first", np.zeros(1, np.int64)), name=base)
        parts = [sizes[:axis], None, sizes[axis + 1 :]]
        pieces = [
            first if part is None else graph.add_constant(f"{base}/rest", np.array(part, np.int64))
            for part in parts
            if part is None or part
        ]
        whole = graph.op("Concat", *pieces, name=f"{base}/target", axis=0)
        for value, size in ((shape, len(self.inputs[0].shape or ())), (first, 1), (whole, len(sizes))):
            graph.set_type(value, DType.INT64, (size,))
        self.known[whole.id] = np.array([*sizes[:axis], PROBE, *sizes[axis + 1 :]], object)
        return whole

    def _give(self, node: Node, slot: int, numbers: list[int]) -> None:
        name = self.graph.operand(node, slot).name
        self._replace(node, slot, self.graph.add_constant(name, np.array(numbers, np.int64)))


def _rows_equal(array: Array, axis: int) -> bool:
    return bool((array == np.take(array, [0], axis)).all())


def _input_shape(graph: Graph, node: Node) -> Shape | None:
    return graph.operand(node, 0).shape


def static_sizes(shape: Shape | None) -> list[int] | None:
    """The shape where every axis has a number."""
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return [d for d in shape if isinstance(d, int)]


def _place_of(stride: int, shape: list[int], batch: int, behind_it: int) -> int | None:
    """The axis of a shape in which the elements of a batch stand `stride` apart.

    A batch of 1 has several: an axis of its own; else where the axis behind it, of that size, is split, the first part
    of that ([T, 1, H·d] → [T, N·H, d]); else the axis before ([T, 1, D] → [T·N, D]).
    """
    found = []
    for axis, size in enumerate(shape):
        behind = math.prod(shape[axis + 1 :])
        if (
            behind
            and size % batch == 0
            and behind <= stride
            and stride % behind == 0
            and stride * batch <= behind * size
        ):
            own, inner = size == batch and stride == behind, stride // behind
            found.append((not own, behind == 1 or inner in (1, behind_it), axis))
    return min(found)[2] if found else None


def _resolved(target: list[int], x: list[int]) -> list[int] | None:
    """The shape that a Reshape makes; None where it cannot."""
    shape = [x[a] if d == 0 and a < len(x) else d for a, d in enumerate(target)]
    if shape.count(-1) == 1:
        rest = -math.prod(shape)
        if rest <= 0 or math.prod(x) % rest:
            return None
        shape[shape.index(-1)] = math.prod(x) // rest
    return shape if math.prod(shape) == math.prod(x) else None
