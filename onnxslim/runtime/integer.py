"""The integer evaluator: what an int8 QDQ model means, in exact arithmetic.

A tensor between QuantizeLinear and DequantizeLinear is integers. Convolutions and matrix products of
integers accumulate exactly in int32 (bias included), those of 16-bit activations in int64; the result is rescaled once,
in float32:

    acc = Σ (q_x − z_x) · q_w + q_b                     int32, or int64
    q_y = clip(round_half_even(float32(acc) · m) + z_y),   m = s_x · s_w / s_y in float32, left to right

Add: q_y = round((q_a − z_a) · s_a/s_y + (q_b − z_b) · s_b/s_y) + z_y. Mul: q_y = round((q_a − z_a) · (q_b − z_b) · m)
+ z_y, m = s_a · s_b / s_y. Means accumulate alike, with m = s_x / n / s_y. Pools, Concat on one grid, and shape
ops move integers. Whatever has no integer definition here (Sigmoid, Softmax …) is computed in float32 from
dequantised values, as runtimes do.
Weights may have zero points other than 0. (Jacob et al. 2018, arXiv:1712.05877.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from onnxslim.errors import DataError, UnsupportedError
from onnxslim.ir.graph import Array, DType, Graph, Node
from onnxslim.ir.quant_math import per_axis
from onnxslim.runtime.integer_ops import (
    Accumulator,
    Ints,
    Product,
    Sum,
    Tensor,
    conv,
    matmul,
    mean,
    pool,
    real,
    reshape_like,
)
from onnxslim.runtime.session import Session

__all__ = ["IntegerEvaluator", "run_integer"]

_SHAPE_OPS = (
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "Gather",
    "Expand",
    "Identity",
)


def run_integer(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a lowered QDQ graph, by name, for float inputs by name."""
    return IntegerEvaluator(graph).run(feeds)


class IntegerEvaluator:
    """Evaluates one graph many times. The graph must not change meanwhile."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._order = graph.nodes()
        self._readers = {v.id: len(graph.uses(v)) + graph.is_output(v) for v in graph.values()}
        self._constants: dict[int, Tensor] = {}
        self._sessions: dict[int, Session] = {}
        for value in graph.initializers():
            if value.array is not None:
                self._constants[value.id] = value.array

    def run(self, feeds: Mapping[str, Array], keep: Collection[str] = ()) -> dict[str, Array]:
        """The graph's outputs, and the values named in `keep`: integers where the value holds integers."""
        graph = self.graph
        known: dict[int, Tensor] = dict(self._constants)
        for value in graph.inputs:
            if value.name in feeds:
                known[value.id] = feeds[value.name]
            elif value.array is None:
                raise DataError(f"Nothing feeds the input '{value.name}'")
        left = dict(self._readers)
        kept = {v.name: real(known[v.id]) for v in graph.inputs if v.name in keep}
        for node in self._order:
            inputs = [None if v is None else known[v.id] for v in graph.node_inputs(node)]
            results = self._evaluate(node, inputs)
            for output, result in zip(graph.node_outputs(node), results):
                if output is not None:
                    known[output.id] = result
                    if output.name in keep:
                        kept[output.name] = real(result)
            for read in graph.node_inputs(node):
                if read is not None:
                    left[read.id] -= 1
                    if not left[read.id]:
                        known.pop(read.id, None)
        return {**{value.name: real(known[value.id]) for value in graph.outputs}, **kept}

    def _evaluate(self, node: Node, inputs: list[Tensor | None]) -> list[Tensor]:
        if node.domain in ("", "com.microsoft"):  # the runtime's own pairs take 16 bits in any opset
            if node.op == "DequantizeLinear":
                return [_dequantize(node, inputs)]
            if node.op == "QuantizeLinear":
                return [_quantize(node, inputs)]
        if not node.domain:
            rule = _RULES.get(node.op)
            result = rule(node, inputs) if rule is not None else None
            if result is not None:
                return [result]
            data = inputs[0] if inputs else None
            if node.op in _SHAPE_OPS and isinstance(data, Ints) and data.axis is None:
                moved = reshape_like(node, data.q, [i for i in inputs[1:] if isinstance(i, np.ndarray)])
                arrays = [moved] if moved is not None else self._alone(node, [data.q, *inputs[1:]], of=data.q.dtype)
                return [Ints(array, data.scale, data.zero_point, None) for array in arrays]
        return list(self._alone(node, inputs))

    def _alone(self, node: Node, inputs: list[Tensor | None], of: np.dtype[Any] | None = None) -> list[Array]:
        """A node by ONNX Runtime, in float; `of` is the type of integers that a shape op moves instead."""
        arrays = [None if i is None else real(i) for i in inputs]
        if node.id not in self._sessions:
            if self.graph.captures(node):
                raise UnsupportedError(f"{node} has a body that reads outer values: the integer evaluator stops there")
            self._sessions[node.id] = _session(self.graph, node, arrays, of)
        feeds = {f"i{slot}": array for slot, array in enumerate(arrays) if array is not None}
        found = self._sessions[node.id].run(feeds)
        return [found.get(f"o{slot}", np.zeros(0)) for slot in range(node.arity[1])]


def _session(graph: Graph, node: Node, arrays: list[Array | None], of: np.dtype[Any] | None) -> Session:
    single = Graph("node", ir_version=graph.ir_version)
    single.opsets, single.functions = dict(graph.opsets), list(graph.functions)
    slots = [
        None if a is None else single.add_input(f"i{slot}", DType.of(a), [None] * a.ndim)
        for slot, a in enumerate(arrays)
    ]
    names = [None if v is None else f"o{slot}" for slot, v in enumerate(graph.node_outputs(node))]
    twin = single.add_node(node.op, slots, names, node.attributes, domain=node.domain, name=node.name)
    for value, original in zip(single.node_outputs(twin), graph.node_outputs(node)):
        if value is not None and original is not None:
            single.set_type(value, original.dtype if of is None else DType.of(np.empty(0, of)))
            single.add_output(value)
    return Session(single)


def _dequantize(node: Node, inputs: list[Tensor | None]) -> Ints | Array:
    q, scale, zero_point = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    assert isinstance(q, np.ndarray)
    assert isinstance(scale, np.ndarray)
    offset = np.zeros((), q.dtype) if zero_point is None else np.asarray(zero_point)
    if scale.size == 1:
        return Ints(q, scale.reshape(()), offset.reshape(()), None)
    return Ints(q, scale, offset, int(node.attr("axis", 1)) % q.ndim)


def _quantize(node: Node, inputs: list[Tensor | None]) -> Array:
    x, scale, zero_point = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    assert isinstance(scale, np.ndarray)
    offset = np.zeros(scale.shape, np.uint8) if zero_point is None else np.asarray(zero_point)
    if isinstance(x, Ints) and x.axis is None and scale.size == 1:
        if x.q.dtype == offset.dtype and x.scale == scale and x.zero_point == offset:
            return x.q
        steps = (x.q.astype(np.float32) - np.float32(x.zero_point)) * (x.scale / scale)
    elif isinstance(x, Accumulator):
        steps = x.acc.astype(np.float32)
        steps *= x.scale / scale
    elif isinstance(x, Sum | Product):
        steps = x.steps(scale)
    else:
        assert x is not None
        axis = int(node.attr("axis", 1)) if scale.size > 1 else None
        array = real(x)
        steps = array / per_axis(scale, axis, array.ndim)
        offset = per_axis(offset, axis, array.ndim)
    limits = np.iinfo(offset.dtype)
    np.rint(steps, out=steps)
    steps += offset.astype(np.float32)
    np.clip(steps, limits.min, limits.max, out=steps)
    return np.asarray(steps.astype(offset.dtype))


def _conv(node: Node, inputs: list[Tensor | None]) -> Accumulator | None:
    x, w, b = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    if not isinstance(x, Ints) or not isinstance(w, Ints) or x.axis is not None or w.axis not in (None, 0):
        return None
    if b is not None and not isinstance(b, Ints):
        return None
    return conv(node, x, w, b)


def _matmul(node: Node, inputs: list[Tensor | None]) -> Accumulator | None:
    a, b, c = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    if not isinstance(a, Ints) or not isinstance(b, Ints) or a.axis is not None:
        return None
    if c is not None and not isinstance(c, Ints):
        return None
    return matmul(node, a, b, c)


def _add(node: Node, inputs: list[Tensor | None]) -> Sum | None:
    pair = _two_on_grids(inputs)
    return None if pair is None else Sum(*pair)


def _mul(node: Node, inputs: list[Tensor | None]) -> Product | None:
    pair = _two_on_grids(inputs)
    return None if pair is None else Product(*pair)


def _two_on_grids(inputs: list[Tensor | None]) -> tuple[Ints, Ints] | None:
    """Both operands, where each is integers on one grid."""
    a, b = inputs
    if not isinstance(a, Ints) or not isinstance(b, Ints) or a.axis is not None or b.axis is not None:
        return None
    return a, b


def _relu(node: Node, inputs: list[Tensor | None]) -> Accumulator | Ints | None:
    x = inputs[0]
    if isinstance(x, Accumulator):
        return Accumulator(np.maximum(x.acc, 0), x.scale)
    if isinstance(x, Ints) and x.axis is None:
        return Ints(np.maximum(x.q, x.zero_point), x.scale, x.zero_point, None)
    return None


def _mean(node: Node, inputs: list[Tensor | None]) -> Accumulator | None:
    x = inputs[0]
    if not isinstance(x, Ints) or x.axis is not None:
        return None
    return mean(x, tuple(range(2, x.q.ndim)), keepdims=True)


def _pool(node: Node, inputs: list[Tensor | None]) -> Accumulator | Ints | None:
    x = inputs[0]
    if not isinstance(x, Ints) or x.axis is not None or node.arity[1] > 1:
        return None
    return pool(node, x)


def _concat(node: Node, inputs: list[Tensor | None]) -> Ints | None:
    parts = [i for i in inputs if isinstance(i, Ints) and i.axis is None]
    first = parts[0] if parts else None
    if first is None or len(parts) != len(inputs):
        return None
    if any(p.scale != first.scale or p.zero_point != first.zero_point or p.q.dtype != first.q.dtype for p in parts):
        return None
    return Ints(np.concatenate([p.q for p in parts], axis=int(node.attr("axis"))), first.scale, first.zero_point, None)


_RULES: Mapping[str, Callable[[Node, list[Tensor | None]], Tensor | None]] = {
    "Conv": _conv,
    "Gemm": _matmul,
    "MatMul": _matmul,
    "Add": _add,
    "Mul": _mul,
    "Relu": _relu,
    "GlobalAveragePool": _mean,
    "AveragePool": _pool,
    "MaxPool": _pool,
    "Concat": _concat,
}
