"""Names of nodes: ONNX asks for none, ONNX Runtime's own fusions for one that no other node has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from onnxslim.ir.onnx_io.bodies import bodies_of

__all__ = ["NodeNames", "all_nodes", "name_nodes"]


class NodeNames:
    """Hands out names, each once; `taken` are those that the nodes have before."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._given: set[str] = set()
        self._counts: dict[str, int] = {}

    def own(self, name: str, op: str) -> str:
        """The name, where it is one and not given yet; else one after the op: Conv, Conv_2 …"""
        while not name or name in self._given:
            count = self._counts[op] = self._counts.get(op, 0) + 1
            made = op if count == 1 else f"{op}_{count}"
            name = "" if made in self._taken else made
        self._given.add(name)
        return name


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their bodies, at any depth, each before what it holds."""
    for node in nodes:
        yield node
        for body in bodies_of(node.attribute):
            yield from all_nodes(body.node)


def name_nodes(model: onnx.ModelProto) -> None:
    """Gives a name to every node of the graph and its bodies that has none, or one that an earlier node has.

    ONNX Runtime names what its fusions make after the nodes that they replace, and refuses a model where two nodes are
    then called alike.
    """
    names = NodeNames(node.name for node in all_nodes(model.graph.node))
    for node in all_nodes(model.graph.node):
        name = names.own(node.name, node.op_type)
        if name != node.name:
            node.name = name
