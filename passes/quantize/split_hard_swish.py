"""`SplitHardSwish`: HardSwish as the two steps that have integer kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.analysis.scope import Names, label, matched
from onnxslim.ir.graph import Graph
from onnxslim.ir.rewrite import Context, Outcome, Pass
from onnxslim.targets import load_target

__all__ = ["SplitHardSwish"]


@dataclass(frozen=True)
class SplitHardSwish(Pass):
    """HardSwish(x)  →  x · HardSigmoid(x; 1/6, 1/2), where the target has integer kernels for both.

    ONNX Runtime has none for HardSwish. Before InsertFakeQuant, so that what lies between gets a grid; what its `skip`
    leaves in float stays one node. Raises OptionError for an entry of `skip` that matches nothing.

    Contract: equal to 1e-5 of the largest output; it is how ONNX defines the op.
    """

    skip: tuple[str, ...] = ()
    name: ClassVar[str] = "split_hard_swish"

    def run(self, graph: Graph, context: Context) -> Outcome:
        target = context.target or load_target("x64")
        if not {"HardSigmoid", "Mul"} <= set(target.integer_ops):
            return Outcome()
        named = {node.id: Names((label(graph, node),), (node.op,)) for node in graph.nodes()}
        left = set(matched(self.skip, named, "skip", f"node of graph '{graph.name}'"))
        found = [n for n in graph.nodes() if n.op == "HardSwish" and not n.domain and n.id not in left]
        for node in found:
            x, y, name = graph.operand(node, 0), graph.result(node), node.name
            graph.detach(node)
            gate = graph.op("HardSigmoid", x, name=f"{name or y.name}.gate", alpha=1 / 6, beta=0.5)
            graph.set_type(gate, x.dtype, x.shape)
            graph.add_node("Mul", [x, gate], [y], name=name)
        return Outcome(len(found))
