"""`FuseGelu`: Gelu, where exporters wrote it out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.graph import Graph, Node, Value
from onnxslim.ir.rewrite import Context, LocalPass
from passes.simplify.matching import Region, is_float, near

__all__ = ["FuseGelu"]

_SINCE = 20
_SLOPE, _CUBIC = math.sqrt(2 / math.pi), 0.044715


@dataclass(frozen=True)
class FuseGelu(LocalPass):
    """x/2 · (1 + Erf(x/√2))                        →  Gelu(x)
    x/2 · (1 + Tanh(√(2/π) · (x + 0.044715 · x³)))  →  Gelu(x; approximate = tanh)

    in every spelling: factors in any order, the half anywhere, cubes as Pow or as products, in models of opset 20 and
    later, which have the op. (ONNX Runtime fuses what older ones spell out by itself, as fast.)

    Refuses, naming the node, where something else reads a step in between. Retained: types other than float32.

    Contract: equal to 1e-5 of the largest output. (Hendrycks and Gimpel 2016, arXiv 1606.08415.)
    """

    name: ClassVar[str] = "fuse_gelu"
    ops: ClassVar[frozenset[str]] = frozenset({"Div", "Mul"})
    from_outputs: ClassVar[bool] = True

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        return _fuse(graph, node) if graph.opset >= _SINCE else 0


def _fuse(graph: Graph, root: Node) -> int | str:
    """Fuses what ends in `root`; how often, or why not."""
    region = Region(graph, root)
    factor, terms = region.product(root)
    if len(terms) != 2 or not is_float(graph.result(root)):
        return 0
    for x, gate in (terms, terms[::-1]):
        tried = Region(graph, root)
        tried.nodes.update(region.nodes)
        inner, scale, shift = tried.affine(gate, shared=True)
        if not (near(factor * scale, 0.5) and near(factor * shift, 0.5)):
            continue
        approximate = _approximation(tried, inner, x)
        if approximate is None:
            continue
        if not tried.is_closed:
            return "what lies between it and its input is read elsewhere too"
        tried.replace("Gelu", [x], {"approximate": approximate})
        return 1
    return 0


def _approximation(region: Region, value: Value, x: Value) -> str | None:
    """ "none" for Erf(x/√2), "tanh" for its approximation; None for anything else."""
    node = region.source(value, "Erf", "Tanh")
    inner = None if node is None else region.polynomial(region.graph.operand(node, 0), x)
    if node is None or inner is None:
        return None
    line = [0.0, math.sqrt(0.5)] if node.op == "Erf" else [0.0, _SLOPE, 0.0, _SLOPE * _CUBIC]
    if len(inner) != len(line) or not all(near(a, b) for a, b in zip(inner, line)):
        return None
    return "none" if node.op == "Erf" else "tanh"
