"""`FuseGemm`: a matrix product and its bias become one Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.graph import Graph, Node, Value
from onnxslim.rewrite import Context, Outcome, Pass, Refusal

__all__ = ["FuseGemm"]


@dataclass(frozen=True)
class FuseGemm(Pass):
    """MatMul(x [N, K], w [K, M]) + b [M]  →  Gemm(x, w, b), for float x and constant w and b.

    Refuses, naming the Add: a product that is read elsewhere. Retained: x of another or unknown rank, for which
    a Gemm has no meaning, and a b that is neither [M] nor [1, M].

    Contract: equal to 1e-5 of the largest output (ONNX Runtime may sum in another order).
    """

    name: ClassVar[str] = "fuse_gemm"

    def run(self, graph: Graph, context: Context) -> Outcome:
        count, refused = 0, []
        for node in graph.nodes():
            found = None if node.domain or node.op != "Add" else _product(graph, node)
            if found is None:
                continue
            product, bias = found
            y = graph.result(product)
            if len(graph.uses(y)) > 1 or graph.is_output(y):
                refused.append(Refusal(str(node), f"the output of {product} is read elsewhere too"))
                continue
            x, w, result = graph.operand(product, 0), graph.operand(product, 1), graph.result(node)
            name, label = product.name, y.name
            graph.detach(node)
            graph.remove_node(product)
            graph.add_node("Gemm", [x, w, bias], [result], name=name or label)
            count += 1
        return Outcome(count, tuple(refused))


def _product(graph: Graph, node: Node) -> tuple[Node, Value] | None:
    """The MatMul that the Add gives a bias, and the bias."""
    for slot in (0, 1):
        product, bias = graph.producer(graph.operand(node, slot)), graph.operand(node, 1 - slot)
        if product is None or product.domain or product.op != "MatMul":
            continue
        x, weight, b = graph.operand(product, 0), graph.constant_of(graph.operand(product, 1)), graph.constant_of(bias)
        if weight is None or b is None or weight.ndim != 2 or x.shape is None or len(x.shape) != 2:
            continue
        if weight.dtype.kind == "f" and b.shape in ((weight.shape[1],), (1, weight.shape[1])):
            return product, bias
    return None
