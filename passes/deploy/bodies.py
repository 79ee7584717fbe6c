"""Editing what stands inside subgraph bodies (If, Loop, Scan), at any depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx

from onnxslim.ir.graph import Graph, Node
from onnxslim.ir.onnx_io.bodies import bodies_of

__all__ = ["all_bodies", "edit_bodies"]


def all_bodies(attributes: Mapping[str, onnx.AttributeProto]) -> Iterator[onnx.GraphProto]:
    """A node's bodies and the bodies within them."""
    for body in bodies_of(attributes.values()):
        yield from _with_inner(body)


def edit_bodies(graph: Graph, node: Node, edit: Callable[[onnx.GraphProto], int]) -> int:
    """Applies `edit`, which says how much it changed, to copies of a node's bodies; returns the sum.

    An attribute is replaced only where something changed.
    """
    total = 0
    for name, attribute in list(node.attributes.items()):
        if not attribute.HasField("g") and not attribute.graphs:
            continue
        copy = onnx.AttributeProto()
        copy.CopyFrom(attribute)
        changed = sum(edit(body) for body in all_bodies({name: copy}))
        if changed:
            graph.set_attribute(node, name, copy)
        total += changed
    return total


def _with_inner(body: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield body
    for node in body.node:
        for inner in bodies_of(node.attribute):
            yield from _with_inner(inner)
