"""`foresee`: the seconds that a step graph takes on one core, from its shapes and a table of rates; nothing is run.

    seconds of a node = products/rₚ + columns/r_c + bytes/r_b + pieces/r_k + fixed          rates by kind of op

The table was fitted to single nodes of the step graphs of many networks, each run alone (`benchmarks/layout_costs.py`
measures and prints it), on a CPU whose blocks are 16 numbers wide (AVX-512) and one with 8 (AVX2). It is there to
compare the layouts of one step, not to promise a time: equal graphs give equal numbers, on any machine of that width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from onnxslim.ir.graph import Graph, Node, Value
from onnxslim.ir.ops import axis_of
from onnxslim.ir.shapes import infer_shapes

__all__ = ["RATES", "Rates", "Work", "foresee", "work_of"]


@dataclass(frozen=True)
class Work:
    """What a node does. products: multiplications, rows of a matrix rounded up to what its kernel takes at once;
    columns: bytes of the unfolded image that a plain convolution multiplies; moved: bytes read and written;
    pieces: rows gathered, or products of a grouped convolution, one after the other."""

    products: float = 0.0
    columns: float = 0.0
    moved: float = 0.0
    pieces: float = 0.0


@dataclass(frozen=True)
class Rates:
    """Nanoseconds a unit of each kind of work, and a node."""

    products: float = 0.0
    columns: float = 0.0
    moved: float = 0.0
    pieces: float = 0.0
    fixed: float = 0.0

    def of(self, work: Work) -> float:
        total = self.products * work.products + self.columns * work.columns + self.moved * work.moved
        return total + self.pieces * work.pieces + self.fixed


Table: TypeAlias = dict[str, Rates]
_ROWS = 4  # of a matrix, that a product takes at once
_FREE = ("Constant", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")  # which move nothing
_KINDS = {
    "BatchNormalization": "norm",
    "Concat": "move",
    "Expand": "move",
    "Pad": "move",
    "ReorderInput": "reorder",
    "ReorderOutput": "reorder",
    "Slice": "move",
    "Split": "move",
    "Transpose": "transpose",
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "MaxPool", "MaxPoolGrad"), "pool"),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"), "reduce"),
}
"""Of ops whose time is that of what they move; those not named here take each element for itself."""


def foresee(graph: Graph, lanes: int) -> float:
    """Seconds of a step graph on one core; `lanes`: the width of the runtime's blocks."""
    infer_shapes(graph)
    table = RATES[16 if lanes >= 16 else 8]
    total = 0.0
    for node in graph.nodes():
        kind, work = work_of(graph, node)
        if kind:
            total += table[kind].of(work)
    return total * 1e-9


def work_of(graph: Graph, node: Node) -> tuple[str, Work]:
    """The kind of a node, and what it does; "" of one that does nothing."""
    if node.op in _FREE:
        return "", Work()
    inputs = [v for v in graph.node_inputs(node) if v is not None]
    outputs = [v for v in graph.node_outputs(node) if v is not None]
    moved = 4.0 * sum(_size(v) for v in (*inputs, *outputs))
    if node.op in ("MatMul", "Gemm"):
        return _product(node, inputs, moved)
    if node.op in ("Conv", "ConvGrad", "ConvTranspose"):
        return _convolution(node, inputs, outputs, moved)
    if node.op == "Gather":
        data, made = inputs[0], _size(outputs[0])
        axis = axis_of(node, len(data.shape or ()), 0)
        length = math.prod(d for d in (data.shape or ())[axis + 1 :] if isinstance(d, int))
        return "gather", Work(moved=8.0 * made, pieces=made / max(length, 1))
    return _KINDS.get(node.op, "each"), Work(moved=moved)


def _size(value: Value) -> int:
    return math.prod(d for d in value.shape or () if isinstance(d, int))


def _is_static(value: Value) -> bool:
    return value.shape is not None and all(isinstance(axis, int) for axis in value.shape)


def _rounded(rows: int) -> int:
    return -(-rows // _ROWS) * _ROWS


def _product(node: Node, inputs: list[Value], moved: float) -> tuple[str, Work]:
    if not all(_is_static(v) and len(v.static_shape) > 1 for v in inputs[:2]):
        return "each", Work(moved=moved)
    sizes_a, sizes_b = inputs[0].static_shape, inputs[1].static_shape
    if node.op == "Gemm":
        rows, inner = sizes_a[::-1] if node.attr("transA", 0) else sizes_a
        turned = bool(node.attr("transB", 0))
        columns = sizes_b[0 if turned else 1]
        return "product_turned" if turned else "product", Work(1.0 * _rounded(rows) * inner * columns, moved=moved)
    stack = max(math.prod(sizes_a[:-2]), math.prod(sizes_b[:-2]))
    return "product", Work(1.0 * stack * _rounded(sizes_a[-2]) * sizes_a[-1] * sizes_b[-1], moved=moved)


def _convolution(node: Node, inputs: list[Value], outputs: list[Value], moved: float) -> tuple[str, Work]:
    """In the runtime's blocks; or plain, where an image is unfolded to columns and multiplied, group by group."""
    back, group = node.op == "ConvGrad", int(node.attr("group", 1))
    if not all(_is_static(v) for v in (*inputs, *outputs)):
        return "each", Work(moved=moved)
    shapes = [v.static_shape for v in inputs]
    weight = shapes[2 if back else 1]
    image = outputs[0].static_shape if node.op == "Conv" else shapes[0]  # of which each pixel is a sum of products
    products = 1.0 * math.prod(image) * math.prod(weight[1:])
    if node.domain == "com.microsoft.nchwc":
        return "block_depthwise" if group > 1 else "block", Work(products, moved=moved)
    if back:
        products *= len(outputs)
    pieces, pixels = image[0] * group, math.prod(image[2:])
    columns = 4.0 * pieces * pixels * math.prod(weight[1:]) if math.prod(weight[2:]) > 1 else 0.0
    kind = "gradient" if back else "convolution"
    if group > 1:
        return f"{kind}_grouped", Work(products, columns, moved, pieces)
    return kind, Work(products * _rounded(weight[0]) / weight[0], columns, moved)


RATES: dict[int, Table] = {
    16: {
        "block": Rates(0.013, 0, 0.24, 0, 0),
        "block_depthwise": Rates(0.035, 0, 0.057, 0, 8100),
        "convolution": Rates(0.014, 0.14, 0.048, 0, 21000),
        "convolution_grouped": Rates(0.017, 0.0098, 0.37, 170, 87000),
        "each": Rates(0, 0, 0.067, 0, 15000),
        "gather": Rates(0, 0, 0.044, 4.3, 7500),
        "gradient": Rates(0.017, 0.11, 0.069, 0, 26000),
        "gradient_grouped": Rates(0.0085, 0, 0.52, 280, 130000),
        "move": Rates(0, 0, 0.058, 0, 19000),
        "norm": Rates(0, 0, 0.084, 0, 17000),
        "pool": Rates(0, 0, 0.19, 0, 5300),
        "product": Rates(0.018, 0, 0.046, 0, 15000),
        "product_turned": Rates(0.014, 0, 0.062, 0, 13000),
        "reduce": Rates(0, 0, 0.052, 0, 11000),
        "reorder": Rates(0, 0, 0.062, 0, 0),
        "transpose": Rates(0, 0, 0.064, 0, 9100),
    },
    8: {
        "block": Rates(0.024, 0, 0.29, 0, 35000),
        "block_depthwise": Rates(0.078, 0, 0.049, 0, 12000),
        "convolution": Rates(0.029, 0.18, 0.054, 0, 13000),
        "convolution_grouped": Rates(0.11, 0.0078, 0.45, 220, 0),
        "each": Rates(0, 0, 0.055, 0, 14000),
        "gather": Rates(0, 0, 0.038, 4.9, 2500),
        "gradient": Rates(0.032, 0.15, 0.07, 0, 21000),
        "gradient_grouped": Rates(0, 0, 0.46, 300, 340000),
        "move": Rates(0, 0, 0.06, 0, 20000),
        "norm": Rates(0, 0, 0.072, 0, 20000),
        "pool": Rates(0, 0, 0.14, 0, 5300),
        "product": Rates(0.025, 0, 0.053, 0, 11000),
        "product_turned": Rates(0.031, 0, 0.039, 0, 18000),
        "reduce": Rates(0, 0, 0.046, 0, 12000),
        "reorder": Rates(0, 0, 0.05, 0, 11000),
        "transpose": Rates(0, 0, 0.066, 0, 11000),
    },
}
"""By the width of the runtime's blocks; see `Rates` for the order of the numbers."""
