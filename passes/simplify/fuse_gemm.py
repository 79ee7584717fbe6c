"""`FuseGemm`: a matrix product and its bias become one Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from onnxslim.ir.graph import Graph, Node, Shape, Value
from onnxslim.ir.rewrite import Context, LocalPass

__all__ = ["FuseGemm"]


@dataclass(frozen=True)
class FuseGemm(LocalPass):
    """MatMul(x [N, K], w [K, M]) + b [M]     →  Gemm(x, w, b), for float x and constant w and b
    MatMul(x [N, T, …, K], w [K, M]) + b [M]  →  Reshape(Gemm(Reshape(x, [−1, K]), w, b), [N, T, …, M]), with `any_rank`

    and a Relu or Clip that alone reads the sum then stands before the second Reshape, where an integer kernel takes it
    in. In float, `any_rank` gains nothing (ONNX Runtime 1.19 and 1.32: 0.9 to 1.1 of the time); quantised, a Gemm adds
    its bias in int32, and takes two thirds of the time of a product and a sum.

    Refuses, naming the Add: a product that is read elsewhere. Retained: x of unknown rank, or of another than 2 without
    `any_rank`; more than one free axis, which a Reshape cannot say; and a b that is neither [M] nor [1, M].

    Contract: equal to 1e-5 of the largest output (ONNX Runtime may sum in another order).
    """

    any_rank: bool = False
    name: ClassVar[str] = "fuse_gemm"
    ops: ClassVar[frozenset[str]] = frozenset({"Add"})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        found = self._product(graph, node)
        if found is None:
            return 0
        product, bias = found
        y = graph.result(product)
        if len(graph.uses(y)) > 1 or graph.is_output(y):
            return f"the output of {product} is read elsewhere too"
        _fuse(graph, node, product, bias)
        return 1

    def _product(self, graph: Graph, node: Node) -> tuple[Node, Value] | None:
        """The MatMul that the Add gives a bias, and the bias."""
        for slot in (0, 1):
            product, bias = graph.producer(graph.operand(node, slot)), graph.operand(node, 1 - slot)
            if product is None or product.domain or product.op != "MatMul":
                continue
            x, weight = graph.operand(product, 0), graph.constant_of(graph.operand(product, 1))
            b = graph.constant_of(bias)
            if weight is None or b is None or weight.ndim != 2 or not self._takes(x.shape):
                continue
            if weight.dtype.kind == "f" and b.shape in ((weight.shape[1],), (1, weight.shape[1])):
                return product, bias
        return None

    def _takes(self, shape: Shape | None) -> bool:
        if shape is None or len(shape) < 2 or (len(shape) > 2 and not self.any_rank):
            return False
        leading = shape[:-1]
        return len(shape) == 2 or (sum(not isinstance(d, int) for d in leading) <= 1 and 0 not in leading)


def _fuse(graph: Graph, node: Node, product: Node, bias: Value) -> None:
    x, w, result = graph.operand(product, 0), graph.operand(product, 1), graph.result(node)
    base = product.name or graph.result(product).name
    graph.detach(node)
    graph.remove_node(product)
    if len(x.shape or ()) == 2:
        graph.add_node("Gemm", [x, w, bias], [result], name=base)
        return
    inside, outside = w.static_shape
    leading = (x.shape or ())[:-1]
    rows = prod(d for d in leading if isinstance(d, int)) if all(isinstance(d, int) for d in leading) else None
    flat = _reshaped(graph, x, [-1, inside], f"{base}.flat")
    graph.set_type(flat, x.dtype, (rows, inside))
    y = graph.op("Gemm", flat, w, bias, name=base)
    graph.set_type(y, x.dtype, (rows, outside))
    reader = _activation(graph, result)
    if reader is not None:
        limits, between, result = graph.node_inputs(reader)[1:], result, graph.result(reader)
        graph.detach(reader)
        graph.remove_value(between)
        made = graph.add_node(reader.op, [y, *limits], 1, reader.attributes, name=reader.name or f"{base}.activation")
        y = graph.result(made)
        graph.set_type(y, x.dtype, (rows, outside))
    target = graph.add_constant(f"{base}.shape", _target([*leading, outside]))
    graph.add_node("Reshape", [y, target], [result], name=f"{base}.back")


def _activation(graph: Graph, value: Value) -> Node | None:
    """The Relu or Clip that alone reads a value."""
    uses = graph.uses(value)
    if len(uses) != 1 or uses[0].slot != 0 or graph.is_output(value):
        return None
    reader = uses[0].node
    return reader if reader.op in ("Clip", "Relu") and not reader.domain else None


def _reshaped(graph: Graph, x: Value, target: list[int], name: str) -> Value:
    return graph.op("Reshape", x, graph.add_constant(f"{name}.shape", np.array(target)), name=name)


def _target(shape: list[int | str | None]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([d if isinstance(d, int) else -1 for d in shape], np.int64)
