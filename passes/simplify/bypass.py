"""Taking out a node that hands its input on."""

from __future__ import annotations

from onnxslim.ir.graph import Graph, Node

__all__ = ["bypass"]


def bypass(graph: Graph, node: Node, slot: int = 0) -> bool:
    """What reads the node's first output reads its input `slot` instead, and the node goes.

    Not where an input, an initialiser or another output would have to be a graph output itself:
    the node then carries the output's name. Returns whether it was done.
    """
    x, y = graph.operand(node, slot), graph.result(node)
    if graph.is_output(y) and (graph.is_input(x) or graph.is_output(x) or graph.producer(x) is None):
        return False
    graph.replace_uses(y, x)
    graph.remove_node(node)
    return True
