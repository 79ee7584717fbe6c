"""`TypedBuilder`: the ops that layouts are written in; each says the shape of what it makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxslim.ir.graph import Array, DType, Graph, Value

__all__ = ["TypedBuilder", "is_static"]


def is_static(value: Value) -> bool:
    """Whether every axis of a value is a number."""
    return value.shape is not None and all(isinstance(axis, int) for axis in value.shape)


class TypedBuilder:
    """Nodes for a graph. `base`: what they are named after; what is made once under a key is found again.

    Rules further on (of the gradient, of what a step costs) read the shapes: `op` asks for the one of its result, the
    other methods know it.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.base = ""
        self._made: dict[Any, Value] = {}

    def op(
        self,
        op: str,
        *inputs: Value | None,
        shape: Sequence[int],
        dtype: DType = DType.FLOAT,
        name: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> Value:
        """A node of one output; its name is `name`, else that of the op, under `base`."""
        made = self.graph.op(op, *inputs, name=name or f"{self.base}/{op}", domain=domain, **attributes)
        self.graph.set_type(made, dtype, tuple(shape))
        return made

    def once(self, key: Any, make: Callable[[], Value]) -> Value:
        """What was made before under that key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def const(self, array: Any, dtype: Any = np.int64) -> Value:
        """A constant, once."""
        array = np.asarray(array, dtype)
        key = ("const", array.tobytes(), array.shape, array.dtype.str)
        return self.once(key, lambda: self.graph.add_constant("layout/const", array))

    def reshape(self, value: Value, *shape: int, name: str = "") -> Value:
        """One axis may be -1; the value itself where it has that shape."""
        size = math.prod(value.static_shape)
        known = math.prod(d for d in shape if d != -1)
        target = tuple(size // known if d == -1 else d for d in shape)
        if target == value.static_shape:
            return value
        return self.op("Reshape", value, self.const(target), shape=target, dtype=value.dtype, name=name)

    def transpose(self, value: Value, perm: Sequence[int], name: str = "") -> Value:
        """The axes in another order."""
        shape = [value.static_shape[axis] for axis in perm]
        return self.op("Transpose", value, shape=shape, dtype=value.dtype, name=name, perm=list(perm))

    def gather(self, value: Value, rows: Array, axis: int = 0) -> Value:
        """Slices of an axis by number, int64 [k]."""
        shape = list(value.static_shape)
        shape[axis] = rows.size
        return self.op("Gather", value, self.const(rows.reshape(-1)), shape=shape, dtype=value.dtype, axis=axis)

    def pad(self, value: Value, pads: Sequence[int], fill: float | None = None) -> Value:
        """Pads as of ONNX, all begins first; negative ones cut off."""
        rank = len(pads) // 2
        shape = [d + a + b for d, a, b in zip(value.static_shape, pads[:rank], pads[rank:])]
        filled = [] if fill is None else [self.const(fill, np.float32)]
        return self.op("Pad", value, self.const(pads), *filled, shape=shape)

    def matmul(self, a: Value, b: Value) -> Value:
        """Of matrices, or of stacks of them, of which one may be a single matrix."""
        left, right = a.static_shape, b.static_shape
        lead = left[:-2] if len(left) >= len(right) else right[:-2]
        return self.op("MatMul", a, b, shape=[*lead, left[-2], right[-1]])

    def gemm(self, a: Value, b: Value, trans_a: bool = False, trans_b: bool = False) -> Value:
        """Of matrices, either of them turned."""
        flags: dict[str, Any] = {name: 1 for name, wanted in (("transA", trans_a), ("transB", trans_b)) if wanted}
        shape = [a.static_shape[1 if trans_a else 0], b.static_shape[0 if trans_b else 1]]
        return self.op("Gemm", a, b, shape=shape, **flags)

    def each(self, op: str, *inputs: Value, dtype: DType = DType.FLOAT, **attributes: Any) -> Value:
        """An op element by element, on values of one shape."""
        return self.op(op, *inputs, shape=inputs[0].static_shape, dtype=dtype, **attributes)

    def total(self, parts: Sequence[Value]) -> Value:
        """The sum of values of one shape."""
        return self.each("Sum", *parts) if len(parts) > 1 else parts[0]
