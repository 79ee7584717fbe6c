"""`FuseNormalization`: LayerNormalization and RMSNormalization, where exporters wrote them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.ir.graph import Array, Graph, Node, Role, Value
from onnxslim.ir.rewrite import Context, LocalPass
from passes.simplify.matching import Region, is_float, scalar

__all__ = ["FuseNormalization"]

_SINCE = {"LayerNormalization": 17, "RMSNormalization": 23}


@dataclass(frozen=True)
class FuseNormalization(LocalPass):
    """d / √(mean(d²) + ε) · γ + β, d = x − mean(x)  →  LayerNormalization(x, γ, β)   from opset 17
    x / √(mean(x²) + ε) · γ                           →  RMSNormalization(x, γ)        from opset 23

    over the last axes of x, γ and β constants or absent. The square may be a Pow or a product, the root Sqrt or Pow,
    the quotient Div or a product with a reciprocal; x − mean(x) may be computed twice.

    Refuses, naming the node: a step in between that something else reads, axes that are not the last ones. Retained:
    types other than float32, x whose normalised axes have no known size.

    Contract: equal to 1e-5 of the largest output, unless the mean of x is far larger than its deviation, of which ONNX
    Runtime's kernel takes the difference of squares; it makes the same fusion by itself when it loads a model.
    (Ba et al. 2016, arXiv 1607.06450; Zhang and Sennrich 2019, arXiv 1910.07467.)
    """

    name: ClassVar[str] = "fuse_normalization"
    ops: ClassVar[frozenset[str]] = frozenset({"Add", "Div", "Mul"})
    from_outputs: ClassVar[bool] = True

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        return _fuse(graph, node) if graph.opset >= min(_SINCE.values()) else 0


def _fuse(graph: Graph, root: Node) -> int | str:
    """Fuses what ends in `root`; how often, or why not."""
    if not is_float(graph.result(root)):
        return 0
    region = Region(graph, root)
    node, shift = _with_constant(region, root, "Add")
    node, gain = _with_constant(region, node, "Mul") if node is not None else (None, None)
    found = _normalized(region, node) if node is not None else None
    if found is None:
        return 0
    x, axes, epsilon, centred = found
    op = "LayerNormalization" if centred else "RMSNormalization"
    if graph.opset < _SINCE[op] or (shift is not None and not centred) or x.shape is None:
        return 0
    places = sorted(axis % len(x.shape) for axis in axes)
    sizes = [x.shape[place] for place in places]
    if not sizes or not all(isinstance(size, int) for size in sizes):
        return 0
    if places != list(range(len(x.shape) - len(places), len(x.shape))):
        return f"it normalises over the axes {places} of {len(x.shape)}, not over the last ones"
    if not region.is_closed:
        return "what lies between it and its input is read elsewhere too"
    parts = [_spread(part, [int(size) for size in sizes if isinstance(size, int)]) for part in (gain, shift)]
    if any(part is None for part, given in zip(parts, (gain, shift)) if given is not None):
        return 0
    base = root.name or graph.result(root).name
    ones = np.ones([int(size) for size in sizes if isinstance(size, int)], np.float32)
    arrays = [ones if parts[0] is None else parts[0], *([] if parts[1] is None else [parts[1]])]
    kept = [_parameter(graph, value, array, base) for value, array in zip((gain, shift), arrays)]
    region.replace(op, [x, *kept], {"axis": -len(places), "epsilon": epsilon})
    return 1


def _with_constant(region: Region, node: Node, op: str) -> tuple[Node | None, Value | None]:
    """(what computes the rest, the constant) where the node adds or multiplies a constant; (node, None) otherwise."""
    graph = region.graph
    if node.op != op:
        return node, None
    for slot in (0, 1):
        rest, constant = graph.operand(node, slot), graph.operand(node, 1 - slot)
        inner = graph.producer(rest)
        if graph.constant_of(constant) is not None and inner is not None and not inner.domain:
            region.nodes[node.id] = node
            region.nodes[inner.id] = inner
            return inner, constant
    return node, None


def _normalized(region: Region, node: Node) -> tuple[Value, tuple[int, ...], float, bool] | None:
    """(x, axes, ε, whether the mean is taken off) where the node computes d / √(mean(d²) + ε)."""
    graph = region.graph
    if node.op not in ("Div", "Mul"):
        return None
    region.nodes[node.id] = node
    orders = ((0, 1),) if node.op == "Div" else ((0, 1), (1, 0))
    for data, other in orders:
        d = graph.operand(node, data)
        tried = Region(graph, region.root)
        root = _root_of(tried, graph.operand(node, other), inverse=node.op == "Mul")
        found = None if root is None else _mean_square(tried, root, d)
        if found is None:
            continue
        axes, epsilon, square = found
        x = _centred(tried, d, axes)
        if square is not d and (x is None or _centred(tried, square, axes) is not x):
            continue
        region.nodes.update(tried.nodes)
        return (d if x is None else x), axes, epsilon, x is not None
    return None


def _root_of(region: Region, value: Value, *, inverse: bool) -> Value | None:
    """What the value is the square root of, or one over it."""
    graph = region.graph
    if inverse:
        node = region.source(value, "Div", "Pow", "Reciprocal")
        if node is None:
            return None
        if node.op == "Pow":
            return graph.operand(node, 0) if scalar(graph, graph.operand(node, 1)) == -0.5 else None
        if node.op == "Div" and scalar(graph, graph.operand(node, 0)) != 1:
            return None
        value = graph.operand(node, 1 if node.op == "Div" else 0)
    node = region.source(value, "Pow", "Sqrt")
    if node is None or (node.op == "Pow" and scalar(graph, graph.operand(node, 1)) != 0.5):
        return None
    return graph.operand(node, 0)


def _mean_square(region: Region, value: Value, d: Value) -> tuple[tuple[int, ...], float, Value] | None:
    """(axes, ε, what is squared) where the value is mean(square) + ε."""
    graph = region.graph
    total = region.source(value, "Add")
    found = None if total is None else region.with_scalar(total)
    mean = None if found is None else region.source(found[0], "ReduceMean")
    if found is None or mean is None:
        return None
    axes = _axes(graph, mean)
    square = region.source(graph.operand(mean, 0), "Mul", "Pow")
    if axes is None or square is None:
        return None
    base, other = graph.operand(square, 0), graph.operand(square, 1)
    is_square = other is base if square.op == "Mul" else _is_two(graph, other)
    return (axes, found[1], base) if is_square else None


def _is_two(graph: Graph, value: Value) -> bool:
    constant = graph.constant_of(value)
    return constant is not None and constant.size == 1 and bool((constant == 2).all())


def _centred(region: Region, value: Value, axes: tuple[int, ...]) -> Value | None:
    """x where the value is x − mean(x) over these axes; only then its nodes count to the region."""
    graph = region.graph
    node = graph.producer(value)
    if node is None or node.domain or node.op != "Sub":
        return None
    x, mean = graph.operand(node, 0), graph.producer(graph.operand(node, 1))
    if mean is None or mean.domain or mean.op != "ReduceMean" or graph.operand(mean, 0) is not x:
        return None
    if _axes(graph, mean) != axes:
        return None
    region.nodes |= {node.id: node, mean.id: mean}
    return x


def _axes(graph: Graph, node: Node) -> tuple[int, ...] | None:
    """The axes of a ReduceMean that keeps them; None where they are computed or all."""
    given = graph.input(node, 1)
    array = graph.constant_of(given) if given is not None else node.attr("axes")
    if array is None or not node.attr("keepdims", 1):
        return None
    return tuple(int(axis) for axis in np.asarray(array).reshape(-1))


def _spread(part: Value | None, sizes: list[int]) -> Array | None:
    """A constant that broadcasts within the normalised axes, in their shape; None for any other."""
    if part is None or part.array is None:
        return None
    array = part.array
    while array.ndim > len(sizes) and array.shape[0] == 1:
        array = array[0]
    fits = array.ndim <= len(sizes) and all(a in (1, b) for a, b in zip(reversed(array.shape), reversed(sizes)))
    return np.ascontiguousarray(np.broadcast_to(array, sizes)) if fits else None


def _parameter(graph: Graph, value: Value | None, array: Array, base: str) -> Value:
    """The constant where it has that shape already, else one of its own."""
    if value is not None and value.array is not None and value.array.shape == array.shape:
        return value
    name, role = (f"{base}.scale", Role.PARAMETER) if value is None else (value.name, value.role)
    return graph.add_constant(name, array, role=role)
