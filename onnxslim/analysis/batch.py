"""The batch size of a model: another one, or any, also where an exporter wrote one into constants.

The model is followed with a batch size that occurs nowhere else (a large prime). A node whose constants hold
the old size shows by what it would make of that: its constant is rewritten, or the node is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import networkx as nx
import numpy as np

from onnxslim.analysis.shape_values import known_constant
from onnxslim.analysis.shapes import infer_shapes, inferred_types, sweep
from onnxslim.analysis.sizes import data_inputs, forget_inferred, set_input_shapes, unsized
from onnxslim.budget import MOST_BATCH
from onnxslim.errors import DataError, ModelError, UnsupportedError
from onnxslim.graph import Array, Dim, DType, Graph, Node, Role, Shape, Value

__all__ = ["fixed_batch", "freed", "set_batch", "with_batch"]

_PROBE = 999_983
_STATES: Mapping[str, tuple[int, ...]] = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}
"""Inputs of recurrent ops whose batch is on axis 1."""
_ADVICE = "export the model again with a dynamic batch axis, or use the batch size it was exported with"


def with_batch(graph: Graph, batch: int, sample: Sequence[int] | None = None) -> Graph:
    """A copy whose graph inputs all have `batch` on their first axis; see `set_batch`. sample: the shape of one sample
    of a graph's one input, for further axes that it leaves free."""
    twin = graph.copy()
    if sample is not None:
        source = data_inputs(twin)[0]
        if source.shape is not None and unsized(twin, {}):
            if len(source.shape) != len(sample) + 1:
                raise DataError(f"Input '{source.name}' has {len(source.shape)} axes, got samples of {tuple(sample)}")
            fixed = [d if isinstance(d, int) else s for d, s in zip(source.shape[1:], sample)]
            set_input_shapes(twin, {source.name: (source.shape[0], *fixed)})
    set_batch(twin, batch)
    return twin


def fixed_batch(graph: Graph) -> int | None:
    """The batch size written into a model: the number on the first axis of all its inputs; None where there is none."""
    first = {value.shape[0] for value in _inputs(graph) if value.shape}
    size = next(iter(first)) if len(first) == 1 else None
    return size if isinstance(size, int) else None


def freed(graph: Graph) -> Graph:
    """A copy that takes any batch, where a size is written into the model and only that; else the graph as it is."""
    if fixed_batch(graph) is None:
        return graph
    twin = graph.copy()
    try:
        set_batch(twin, "batch")
    except UnsupportedError:
        return graph
    return twin


def _inputs(graph: Graph) -> list[Value]:
    """Those that have a batch on their first axis."""
    return [v for v in graph.inputs if v.array is None and v.role is Role.ACTIVATION and v.shape]


def set_batch(graph: Graph, batch: int | str) -> int:
    """Gives all graph inputs `batch` (a number, or a name where any may come) on their first axis, in place,
    shapes inferred anew; how many nodes had the old one in their constants.

        Reshape(x, [2, c, …])    → Reshape(x, [-1, c, …])       where x has batch 2
        Expand(x, [2, c, …])     → Expand(x, [1, c, …])         where x has the batch already
        Expand, ConstantOfShape, Resize to [2, …] → to [batch of the input, …]

    Initialisers, parameters and scalars among the inputs keep their shapes. Raises UnsupportedError
    naming the node where the model only works with the batch size it was exported with; the graph is
    then unusable.
    """
    if isinstance(batch, int) and not 1 <= batch <= MOST_BATCH:
        raise ModelError(f"The batch size must be from 1 to {MOST_BATCH:,}, got {batch}")
    inputs = _inputs(graph)
    old = {v.shape[0] for v in inputs if v.shape}
    known = [d for d in old if isinstance(d, int)]
    before = {v.id: v.shape for v in graph.values()}
    rewritten = 0
    if len(old) == 1 and known and known[0] != batch:
        infer_shapes(graph)
        rewritten = _Rewriter(graph, inputs, known[0]).run()
    if isinstance(batch, int):
        _set(graph, inputs, batch)
        _refuse_other_batch(graph, before, batch)
    else:
        trial, size = graph.copy(), max([1, *known]) + 1
        _set(trial, [trial.value(v.name) for v in inputs], size)
        _refuse_other_batch(trial, before, size)
        _set(graph, inputs, batch)
        for value in graph.outputs:
            shape = before[value.id]
            if value.shape and value.shape[0] is None and shape and shape[0] in old:
                graph.set_type(value, shape=(batch, *value.shape[1:]))
    return rewritten


def _set(graph: Graph, inputs: list[Value], batch: int | str) -> None:
    _forget(graph, inputs, batch)
    infer_shapes(graph)


def _forget(graph: Graph, inputs: list[Value], batch: int | str) -> None:
    """Another batch on the inputs; other shapes are to be inferred anew, where that can be done."""
    symbols: dict[str, Dim] = {}
    for value in inputs:
        assert value.shape
        if isinstance(value.shape[0], str):
            symbols[value.shape[0]] = batch
        graph.set_type(value, shape=(batch, *value.shape[1:]))
    forget_inferred(graph, symbols)


class _Rewriter:
    """Follows the graph with the probe for a batch size and rewrites constants that hold the old one."""

    def __init__(self, graph: Graph, inputs: list[Value], old: int) -> None:
        self.graph, self.inputs, self.old = graph, inputs, old
        self.before: dict[int, Shape | None] = {v.id: v.shape for v in graph.values()}
        net = graph.view
        self.moving = {v.id for v in inputs}.union(*(nx.descendants(net, v.id) for v in inputs))
        self.known: dict[int, Array] = {}
        self.count = 0

    def run(self) -> int:
        graph = self.graph
        _forget(graph, self.inputs, _PROBE)
        sweep(graph, graph.nodes(), self.known, self._visit)
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
            if shape and shape[0] == _PROBE and "axes" not in node.attributes:
                self._replace_axis(node, 3, 0)

    def _numbers(self, value: Value | None) -> list[int] | None:
        """Its elements, where they are known and integers."""
        elements = None if value is None else self.known.get(value.id)
        if elements is None:
            elements = known_constant(self.graph, value)
        if elements is None or elements.ndim != 1 or not all(isinstance(e, (int, np.integer)) for e in elements):
            return None
        return [int(e) for e in elements]

    def _reshape(self, node: Node) -> None:
        x, y = self.graph.operand(node, 0), self.graph.result(node)
        target, old_y = self._numbers(self.graph.input(node, 1)), _static(self.before.get(y.id))
        new_x, old_x = _static(x.shape), _static(self.before.get(x.id))
        if target is None or new_x is None or old_x is None or old_y is None:
            return
        if node.attr("allowzero", 0) and 0 in target:  # an empty tensor
            return
        axis = _same_place(old_x, new_x, old_y, self.old)
        if axis is None:
            return
        wanted = [*old_y]
        wanted[axis] = old_y[axis] // self.old * _PROBE
        if _resolved(target, new_x) != wanted:
            self._give(node, 1, [-1 if a == axis else d for a, d in enumerate(old_y)])

    def _expand(self, node: Node) -> None:
        x, target = _input_shape(self.graph, node), self._numbers(self.graph.input(node, 1))
        if x is None or target is None:
            return
        kept = list(target)
        for back in range(1, min(len(x), len(target)) + 1):
            if x[-back] == _PROBE and target[-back] == self.old:
                kept[-back] = 1
        if kept != target:
            self._give(node, 1, kept)
        elif _PROBE not in x:
            self._follow_input(node, 1)

    def _follow_input(self, node: Node, slot: int) -> None:
        """Something filled in to meet data of the batch, as a reader shows, gets the input's batch."""
        y = self.graph.result(node)
        shape = _static(self.before.get(y.id))
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
        graph, base = self.graph, f"{node.name or _made_name(self.graph, node)}/batch"
        shape = graph.op("Shape", self.inputs[0], name=f"{base}/shape")
        first = graph.op("Gather", shape, graph.add_constant(f"{base}/first", np.zeros(1, np.int64)), name=base)
        parts = [target[:axis], None, target[axis + 1 :]]
        pieces = [
            first if part is None else graph.add_constant(f"{base}/rest", np.array(part, np.int64))
            for part in parts
            if part is None or part
        ]
        whole = graph.op("Concat", *pieces, name=f"{base}/target", axis=0)
        for value, size in ((shape, len(self.inputs[0].shape or ())), (first, 1), (whole, len(target))):
            graph.set_type(value, DType.INT64, (size,))
        filled = [*target[:axis], _PROBE, *target[axis + 1 :]]
        self.known[whole.id] = np.array(filled, object)
        graph.set_input(node, slot, whole)
        self.count += 1

    def _give(self, node: Node, slot: int, numbers: list[int]) -> None:
        old = self.graph.operand(node, slot)
        self.graph.set_input(node, slot, self.graph.add_constant(old.name, np.array(numbers, np.int64)))
        self.count += 1
        if not self.graph.is_used(old) and self.graph.producer(old) is None and not self.graph.is_input(old):
            self.graph.remove_value(old)


def _input_shape(graph: Graph, node: Node) -> Shape | None:
    return graph.operand(node, 0).shape


def _made_name(graph: Graph, node: Node) -> str:
    return graph.result(node).name


def _static(shape: Shape | None) -> list[int] | None:
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return [d for d in shape if isinstance(d, int)]


def _same_place(old_x: list[int], new_x: list[int], old_y: list[int], batch: int) -> int | None:
    """The axis of a Reshape's result that the batch goes to: as many elements stand before it."""
    moved = [a for a, (o, n) in enumerate(zip(old_x, new_x)) if o != n]
    if len(moved) != 1:
        return None
    before = math.prod(old_x[: moved[0]])
    return next((a for a, d in enumerate(old_y) if math.prod(old_y[:a]) == before and d % batch == 0), None)


def _resolved(target: list[int], x: list[int]) -> list[int] | None:
    """The shape that a Reshape makes; None where it cannot."""
    shape = [x[a] if d == 0 and a < len(x) else d for a, d in enumerate(target)]
    if shape.count(-1) == 1:
        rest = -math.prod(shape)
        if rest <= 0 or math.prod(x) % rest:
            return None
        shape[shape.index(-1)] = math.prod(x) // rest
    return shape if math.prod(shape) == math.prod(x) else None


def _refuse_other_batch(graph: Graph, before: Mapping[int, Shape | None], batch: int) -> None:
    for node in graph.nodes():
        try:
            inferred_types(graph, [node], strict=True)
        except ModelError as error:
            raise UnsupportedError(
                f"With batch {batch}, {node} cannot take its inputs: a batch size is written into the model ({error}); "
                f"{_ADVICE}"
            ) from error
        if node.op != "Reshape" or node.domain:
            continue
        source, result = graph.input(node, 0), graph.result(node)
        sizes = [_volume(v.shape) if v is not None else None for v in (source, result)]
        if source is not None and None not in sizes and sizes[0] != sizes[1]:
            raise UnsupportedError(
                f"With batch {batch}, {node} cannot reshape {source.shape} to {result.shape}: "
                f"a batch size is written into its shape; {_ADVICE}"
            )
    olds = [s[0] for v in graph.inputs if v.array is None and (s := before[v.id])]
    for value in graph.outputs:
        old, new = before[value.id], value.shape
        if new and isinstance(new[0], int) and new[0] != batch and old and old[0] in olds:
            raise UnsupportedError(
                f"Output '{value.name}' has shape {new} where the inputs have batch {batch}: "
                f"a batch size is written into the model; {_ADVICE}"
            )


def _volume(shape: Shape | None) -> int | None:
    numbers = _static(shape)
    return None if numbers is None else math.prod(numbers)
