"""`FlattenToReshape`: a Flatten between integers, written as the op that moves integers in every release."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.ir.graph import Graph, Node
from onnxslim.ir.rewrite import Context, LocalPass

__all__ = ["FlattenToReshape"]


@dataclass(frozen=True)
class FlattenToReshape(LocalPass):
    """Flatten(x, axis = 1) → Reshape(x, [0, K]), K the product of the other axes, or −1 where it is not known.

    ONNX Runtime 1.19 takes quantised values through Reshape as integers, and through Flatten as floats.
    Retained: other axes, and values of rank 0 or of unknown rank.

    Exact.
    """

    name: ClassVar[str] = "flatten_to_reshape"
    ops: ClassVar[frozenset[str]] = frozenset({"Flatten"})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        if not _is_plain(graph, node):
            return 0
        _rewrite(graph, node)
        return 1


def _is_plain(graph: Graph, node: Node) -> bool:
    shape = graph.operand(node, 0).shape
    return bool(shape) and node.attr("axis", 1) in (1, 1 - len(shape or ()))


def _rewrite(graph: Graph, node: Node) -> None:
    value, result = graph.operand(node, 0), graph.result(node)
    sizes = [d for d in (value.shape or ())[1:] if isinstance(d, int)]
    known = len(sizes) == len(value.shape or ()) - 1
    target = np.array([0, math.prod(sizes) if known else -1], np.int64)
    name = node.name
    graph.detach(node)
    shape = graph.add_constant(f"{result.name}.shape", target)
    graph.add_node("Reshape", [value, shape], [result], name=name)
