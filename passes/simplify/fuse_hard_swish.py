"""`FuseHardSwish`: HardSigmoid and HardSwish, where exporters wrote them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.graph import Graph, Node, Value
from onnxslim.ir.rewrite import Context, LocalPass
from passes.simplify.matching import Region, is_float, near

__all__ = ["FuseHardSwish"]

_SWISH_SINCE = 14
_FARTHEST = 16.0
"""Of beta: α·x + β loses the digits that (x − m) / s keeps where m is far from the zero of x."""


@dataclass(frozen=True)
class FuseHardSwish(LocalPass):
    """c · Clip(a·x + b, 0, 1/c)        →  HardSigmoid(x; alpha = a·c, beta = b·c)
    x · c · Clip(x + 3, 0, 6), c = 1/6  →  HardSwish(x), up to opset 13 x · HardSigmoid(x; 1/6, 1/2)

    in every spelling: sums, differences, products and quotients with numbers in any order, Relu6 as Clip, as Relu and
    Min or as Min and Max, the sixth before or after the product, and HardSigmoid as a node.

    Refuses, naming the node, where something else reads a step in between. Retained: types other than float32, which
    ONNX Runtime's kernel of HardSigmoid does not take, a Clip of x itself, which is one node already, and |beta| above
    16, where float32 would lose digits.

    Contract: equal to 1e-5 of the largest output (the same sums and products in another order).
    """

    name: ClassVar[str] = "fuse_hard_swish"
    ops: ClassVar[frozenset[str]] = frozenset({"Clip", "Div", "Max", "Min", "Mul"})
    from_outputs: ClassVar[bool] = True

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        found = _hard_swish(graph, node)
        return found or _hard_sigmoid(graph, node)


def _hard_swish(graph: Graph, root: Node) -> int | str:
    """Fuses what ends in `root`; how often, or why not."""
    if root.op not in ("Div", "Mul") or not is_float(graph.result(root)):
        return 0
    region = Region(graph, root)
    factor, terms = region.product(root)
    if len(terms) != 2:
        return 0
    for x, gate in (terms, terms[::-1]):
        tried = Region(graph, root)
        tried.nodes.update(region.nodes)
        if not _is_gate(tried, gate, x, factor):
            continue
        if not tried.is_closed:
            return "what lies between it and its input is read elsewhere too"
        if len(tried.nodes) < 3 and graph.opset < _SWISH_SINCE:
            return 0  # HardSigmoid and Mul as they are
        if graph.opset >= _SWISH_SINCE:
            tried.replace("HardSwish", [x])
        else:
            base = root.name or graph.result(root).name
            node = tried.replace("Mul", [x, x])
            gate = graph.op("HardSigmoid", x, name=f"{base}.gate", alpha=1 / 6, beta=0.5)
            graph.set_type(gate, x.dtype, x.shape)
            graph.set_input(node, 1, gate)
        return 1
    return 0


def _is_gate(region: Region, gate: Value, x: Value, factor: float) -> bool:
    """Whether factor · gate is HardSigmoid(x; 1/6, 1/2)."""
    node = region.graph.producer(gate)
    if node is not None and node.op == "HardSigmoid" and not node.domain:
        region.nodes[node.id] = node
        alpha, beta = node.attr("alpha", 0.2), node.attr("beta", 0.5)
        return region.graph.operand(node, 0) is x and near(factor, 1) and near(alpha, 1 / 6) and near(beta, 0.5)
    inner, scale, shift = region.affine(gate)
    cut = region.bounds(inner)
    if cut is None or shift != 0:
        return False
    line = region.polynomial(cut[0], x)
    if line is None or len(line) != 2:
        return False
    low, high = cut[1] * factor * scale, cut[2] * factor * scale
    return low == 0 and near(high, 1) and near(line[1] * factor * scale, 1 / 6) and near(line[0] * factor * scale, 0.5)


def _hard_sigmoid(graph: Graph, root: Node) -> int | str:
    """Like `_hard_swish`."""
    if not is_float(graph.result(root)):
        return 0
    region = Region(graph, root)
    factor, inner = 1.0, graph.result(root)
    if root.op in ("Div", "Mul"):
        factor, terms = region.product(root)
        if len(terms) != 1:
            return 0
        inner = terms[0]
    cut = region.bounds(inner)
    if cut is None or cut[1] * factor != 0 or not near(cut[2] * factor, 1):
        return 0
    x, scale, shift = region.affine(cut[0])
    if (x is cut[0] and root.op not in ("Div", "Mul")) or abs(shift * factor) > _FARTHEST:
        return 0
    if not region.is_closed:
        return "what lies between it and its input is read elsewhere too"
    region.replace("HardSigmoid", [x], {"alpha": scale * factor, "beta": shift * factor})
    return 1
