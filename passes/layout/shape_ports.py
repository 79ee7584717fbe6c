"""`ShapePorts`: inputs and outputs in the shapes that the graph computes with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.graph import Graph, Node, Value
from onnxslim.ir.rewrite import Context, Outcome, Pass

__all__ = ["ShapePorts"]


@dataclass(frozen=True)
class ShapePorts(Pass):
    """Reshape(input, s) wherever the input is read → an input of shape s
    output = Reshape(x, s)                         → x as the output, under the output's name

    Whoever feeds and fetches sees the same numbers in memory in another shape: for graphs whose memory is bound by
    the caller, such as a training step's. `inputs`: names of those that may change.

    Retained: inputs read in several shapes, targets that are computed or hold 0 or -1. Exact.
    """

    inputs: frozenset[str] = frozenset()
    name: ClassVar[str] = "shape_ports"

    def run(self, graph: Graph, context: Context) -> Outcome:
        count = sum(_fed(graph, value) for value in graph.inputs if value.name in self.inputs)
        count += sum(_fetched(graph, value) for value in graph.outputs)
        return Outcome(count)


def _target(graph: Graph, made: Value | None) -> tuple[int, ...] | None:
    """The shape that a Reshape gives, written out; None of anything else."""
    node = None if made is None else graph.producer(made)
    if node is None or not _is_reshape(node):
        return None
    array = graph.constant_of(graph.input(node, 1))
    return None if array is None or (array <= 0).any() else tuple(int(d) for d in array)


def _is_reshape(node: Node) -> bool:
    return node.op == "Reshape" and not node.domain


def _fed(graph: Graph, value: Value) -> bool:
    readers = [use.node for use in graph.uses(value)]
    if graph.is_output(value) or value.array is not None or not all(_is_reshape(node) for node in readers):
        return False
    wanted = {_target(graph, graph.result(node)) for node in readers}
    if len(wanted) != 1:
        return False
    shape = wanted.pop()
    if shape is None:
        return False
    graph.set_type(value, shape=shape)
    for node in readers:
        graph.replace_uses(graph.result(node), value)
        graph.remove_node(node)
    return True


def _fetched(graph: Graph, value: Value) -> bool:
    node = graph.producer(value)
    if node is None or _target(graph, value) is None or graph.uses(value):
        return False
    source = graph.operand(node, 0)
    if graph.producer(source) is None or graph.is_output(source) or source.shape is None or None in source.shape:
        return False
    graph.replace_uses(value, source)  # which takes over the name
    graph.remove_node(node)
    return True
