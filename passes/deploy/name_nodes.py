"""`NameNodes`: every node has a name of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io.node_names import NodeNames
from onnxslim.ir.rewrite import Context, Outcome, Pass
from passes.deploy.bodies import all_bodies, edit_bodies

__all__ = ["NameNodes"]


@dataclass(frozen=True)
class NameNodes(Pass):
    """A node without a name, or with one that an earlier node has, is named after its op: Conv, Conv_2 …

    So are nodes in bodies (If, Loop, Scan), which share no name with any other either. ONNX allows what this repairs,
    but ONNX Runtime names the nodes that its own fusions make after those that they replace, and then refuses the model
    because two of them are called alike.

    Exact: nothing but names changes, and one that nothing else has stays.
    """

    name: ClassVar[str] = "name_nodes"
    keeps_types: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> Outcome:
        nodes = graph.nodes()
        inner = (n.name for node in nodes for body in all_bodies(node.attributes) for n in body.node)
        names = NodeNames([*(node.name for node in nodes), *inner])

        def name_inside(body: onnx.GraphProto) -> int:
            count = 0
            for node in body.node:
                name = names.own(node.name, node.op_type)
                count += name != node.name
                node.name = name
            return count

        count = 0
        for node in nodes:
            name = names.own(node.name, node.op)
            if name != node.name:
                graph.set_name(node, name, node.doc)
                count += 1
            count += edit_bodies(graph, node, name_inside)
        return Outcome(count)
