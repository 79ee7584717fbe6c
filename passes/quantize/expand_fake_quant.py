"""`ExpandFakeQuant`: FakeQuant → QuantizeLinear → DequantizeLinear, for execution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.errors import UnsupportedError
from onnxslim.ir.dialect import OURS, FakeQuant, is_fake_quant
from onnxslim.ir.graph import DType, Graph, Node, Role, Value
from onnxslim.ir.quant_math import GRID_BITS, pair_domain, qrange, storage
from onnxslim.ir.rewrite import Context, Outcome, Pass

__all__ = ["ExpandFakeQuant"]


@dataclass(frozen=True)
class ExpandFakeQuant(Pass):
    """FakeQuant(x, s, z) → DequantizeLinear(QuantizeLinear(x, s, z), s, z).

    8 and 16 bits saturate by themselves; narrow or smaller grids get a Clip of the integers between. The
    float zero point becomes an initialiser of the integers' type where it is known, and a Cast where it is
    computed or fed. The observed range is dropped with the node unless it is a graph input.

    Exact: quant_math's formulas, bit for bit. Raises UnsupportedError for grids that there are none of.
    """

    name: ClassVar[str] = "expand_fake_quant"

    def run(self, graph: Graph, context: Context) -> Outcome:
        zero_points: dict[tuple[int, DType], Value] = {}
        bounds: dict[tuple[int, DType], Value] = {}
        nodes = [node for node in graph.nodes() if is_fake_quant(node)]
        for node in nodes:
            _expand(graph, node, zero_points, bounds)
        if nodes:
            graph.opsets.pop(OURS, None)
        return Outcome(len(nodes))


def _expand(
    graph: Graph, node: Node, zero_points: dict[tuple[int, DType], Value], bounds: dict[tuple[int, DType], Value]
) -> None:
    grid = FakeQuant.of(node)
    bits, signed, narrow = grid.bits, grid.signed, grid.narrow
    if bits not in GRID_BITS:
        raise UnsupportedError(f"{node} asks for {bits} bits; QuantizeLinear grids have 2 to 8, or 16")
    if bits == 16 and narrow and signed:
        raise UnsupportedError(f"{node} asks for a narrow grid of 16 bits; ONNX Runtime clips integers of 8")
    x, scale, zero_point = (graph.operand(node, slot) for slot in range(3))
    axis = grid.axis if scale.shape is not None and len(scale.shape) == 1 else None
    dtype = storage(bits, signed)
    domain = pair_domain(dtype, graph.opset)
    name = node.name or "fake_quant"
    typed = zero_points.get((zero_point.id, dtype))
    if typed is None:
        known = graph.constant_of(zero_point)
        if known is not None:
            typed = graph.add_constant(f"{zero_point.name}.{dtype.name.lower()}", known.astype(dtype.numpy))
        else:
            typed = graph.op("Cast", zero_point, name=f"{zero_point.name}.cast", to=int(dtype))
            graph.set_type(typed, dtype, zero_point.shape)
        zero_points[zero_point.id, dtype] = typed
    integers = graph.op("QuantizeLinear", x, scale, typed, name=f"{name}.q", domain=domain, axis=axis)
    graph.set_type(integers, dtype, x.shape)
    if bits < 8 or narrow:
        low, high = (_bound(graph, bound, dtype, bounds) for bound in qrange(bits, signed, narrow))
        integers = graph.op("Clip", integers, low, high, name=f"{name}.clip")
        graph.set_type(integers, dtype, x.shape)
    result = graph.result(node)
    observed = graph.input(node, 3)
    graph.detach(node)
    dequantize = graph.add_node(
        "DequantizeLinear", [integers, scale, typed], [result], {"axis": axis}, domain=domain, name=f"{name}.dq"
    )
    graph.set_type(graph.result(dequantize), x.dtype, x.shape)
    for spare in (observed, zero_point):
        if spare is not None and spare.array is not None and not graph.is_used(spare) and not graph.is_input(spare):
            graph.remove_value(spare)


def _bound(graph: Graph, bound: int, dtype: DType, known: dict[tuple[int, DType], Value]) -> Value:
    if (bound, dtype) not in known:
        array = np.array(bound, dtype.numpy)
        known[bound, dtype] = graph.add_constant(f"q_bound_{bound}", array, role=Role.CONSTANT)
    return known[bound, dtype]
