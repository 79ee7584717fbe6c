"""What shape arithmetic computes: small integer tensors, known without running the model.

Exporters write a Reshape's target as Shape → Gather → Div → Concat. Elements are followed one by one,
as an int, a symbol of a dynamic axis, or None where nothing is known, so that a dynamic batch does
not hide the numbers beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import numpy_helper

from onnxslim.ir.graph import Array, Dim, Graph, Node, Value

__all__ = ["LIMIT", "evaluate", "known_constant", "known_values"]

LIMIT = 1024
"""Tensors with more elements are data, not shapes."""


def known_constant(graph: Graph, value: Value | None) -> Array | None:
    """The elements of a small integer initialiser, as objects."""
    array = graph.constant_of(value)
    if array is None or array.dtype.kind not in "iub" or array.size > LIMIT:
        return None
    return array.astype(object)


def evaluate(graph: Graph, node: Node, known: Mapping[int, Array]) -> Array | None:
    """The elements (object array of int, str or None) that a node makes; None where the node is no
    shape arithmetic, or nothing is known. `known` has those of earlier nodes, by value id."""
    rule = None if node.domain else _RULES.get(node.op)
    if rule is None or node.arity[1] != 1:
        return None
    operands: list[Array | None] = []
    for value in graph.node_inputs(node):
        operands.append(
            known.get(value.id) if value is not None and value.id in known else known_constant(graph, value)
        )
    try:
        result = rule(graph, node, operands)
    except (IndexError, ValueError, TypeError):
        return None  # malformed arithmetic is for the verifier to name
    return result if result is not None and result.size <= LIMIT else None


def known_values(graph: Graph) -> dict[int, Array]:
    """What each node of shape arithmetic makes (as `evaluate` says), by value id; shapes are taken as they are."""
    known: dict[int, Array] = {}
    for node in graph.nodes():
        elements = evaluate(graph, node, known)
        if elements is not None:
            known[graph.result(node).id] = elements
    return known


def _shape(graph: Graph, node: Node, operands: list[Array | None]) -> Array | None:
    shape = graph.operand(node, 0).shape
    if shape is None:
        return None
    end = node.attr("end")
    return _objects(shape[node.attr("start", 0) : len(shape) if end is None else end])


def _objects(dims: tuple[Dim, ...]) -> Array:
    array = np.empty(len(dims), object)
    array[:] = dims
    return array


def _constant(graph: Graph, node: Node, operands: list[Array | None]) -> Array | None:
    tensor = node.attr("value")
    if tensor is not None:
        array: Array = numpy_helper.to_array(tensor)
        return array.astype(object) if array.dtype.kind in "iub" and array.size <= LIMIT else None
    for name in ("value_int", "value_ints"):
        if name in node.attributes:
            return np.array(node.attr(name), object)
    return None


def _first(operands: list[Array | None]) -> Array | None:
    return operands[0]


def _cast(graph: Graph, node: Node, operands: list[Array | None]) -> Array | None:
    return _first(operands) if node.attr("to") in (6, 7, 12, 13) else None


def _gather(graph: Graph, node: Node, operands: list[Array | None]) -> Array | None:
    data, indices = operands
    if data is None or indices is None:
        return None
    return np.asarray(np.take(data, indices.astype(np.int64), axis=node.attr("axis", 0)), object)


def _slice(graph: Graph, node: Node, operands: list[Array | None]) -> Array | None:
    data, *rest = operands
    if data is None or data.ndim != 1 or len(rest) < 2:
        return None
    starts, ends = rest[0], rest[1]
    steps = rest[3] if len(rest) > 3 and rest[3] is not None else np.array([1], object)
    if (
        starts is None
        or ends is None
        or len(starts) != 1
        or (len(rest) > 3 and graph.input(node, 4) and rest[3] is None)
    ):
        return None
    return data[int(starts[0]) : int(ends[0]) : int(steps[0])]


def _concat(graph: Graph, node: Node, operands: list[Array | None]) -> Array | None:
    parts: list[Array] = []
    for slot, part in enumerate(operands):
        shape = graph.operand(node, slot).shape
        if part is None:
            if shape is None or len(shape) != 1 or not isinstance(shape[0], int):
                return None
            part = np.full(shape[0], None, object)
        parts.append(part)
    return np.concatenate(parts)


def _flat(graph: Graph, node: Node, operands: list[Array | None]) -> Array | None:
    """Unsqueeze, Squeeze and Reshape among scalars and vectors: the elements stay."""
    data = _first(operands)
    if data is None or data.ndim > 1:
        return None
    shape = graph.result(node).shape
    if shape is None:
        scalar = node.op == "Squeeze" and data.shape == (1,)
        shape = () if scalar else (data.size,)
    if not all(isinstance(d, int) for d in shape):
        shape = (data.size,)
    return data.reshape([d for d in shape if isinstance(d, int)])


def _elementwise(scalar: Callable[[Any, Any], Any]) -> Callable[[Graph, Node, list[Array | None]], Array | None]:
    def rule(graph: Graph, node: Node, operands: list[Array | None]) -> Array | None:
        a, b = operands
        if a is None or b is None:
            return None
        return np.asarray(np.frompyfunc(scalar, 2, 1)(a, b), object)

    return rule


def _add(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return b if a == 0 else a if b == 0 else None


def _subtract(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return a if b == 0 else None


def _multiply(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return b if a == 1 else a if b == 1 else None


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int) and b != 0:
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)  # ONNX truncates
    return a if b == 1 else None


def _equal(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    return 0 if (isinstance(a, int) and a < 0) or (isinstance(b, int) and b < 0) else None  # an axis is never negative


def _where(graph: Graph, node: Node, operands: list[Array | None]) -> Array | None:
    condition, a, b = operands
    if condition is None or a is None or b is None:
        return None
    choose = np.frompyfunc(lambda c, x, y: (x if c else y) if c is not None else (x if x == y else None), 3, 1)
    return np.asarray(choose(condition, a, b), object)


def _product(graph: Graph, node: Node, operands: list[Array | None]) -> Array | None:
    data = _first(operands)
    if data is None or data.ndim != 1:
        return None
    result: Any = 1
    for element in data:
        result = _multiply(result, element)
    return np.array([result] if node.attr("keepdims", 1) else result, object)


def _filled(graph: Graph, node: Node, operands: list[Array | None]) -> Array | None:
    shape, tensor = operands[0], node.attr("value")
    if shape is None or not all(isinstance(d, int) for d in shape) or np.prod(shape.astype(np.int64)) > LIMIT:
        return None
    fill = numpy_helper.to_array(tensor).reshape(-1)[0] if tensor is not None else np.float32(0)
    return np.full([int(d) for d in shape], int(fill), object) if np.asarray(fill).dtype.kind in "iub" else None


_RULES: Mapping[str, Callable[[Graph, Node, list[Array | None]], Array | None]] = {
    "Add": _elementwise(_add),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Div": _elementwise(_divide),
    "Equal": _elementwise(_equal),
    "Gather": _gather,
    "Identity": lambda graph, node, operands: _first(operands),
    "Mul": _elementwise(_multiply),
    "ReduceProd": _product,
    "Reshape": _flat,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _flat,
    "Sub": _elementwise(_subtract),
    "Unsqueeze": _flat,
    "Where": _where,
}
