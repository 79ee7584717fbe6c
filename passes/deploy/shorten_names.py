"""`ShortenNames`: inner names as short as they come, and nothing that only exporters read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, product
from string import ascii_letters, digits
from typing import ClassVar

import onnx

from onnxslim.ir.graph import Graph
from onnxslim.ir.rewrite import Context, Outcome, Pass
from passes.deploy.bodies import all_bodies, edit_bodies

__all__ = ["ShortenNames"]


@dataclass(frozen=True)
class ShortenNames(Pass):
    """Values are named a, b, … z, A, … Z, aa, ab, …, and so are nodes, by themselves: ONNX Runtime's own fusions
    need nodes with names that differ. Doc strings and metadata go from graph, nodes and values, from bodies (If, Loop,
    Scan) and from local functions; the model's own stay.

    Inputs and outputs of the graph keep their names, and so does what a subgraph body captures, and what
    a body defines, which no outer value is given. Deterministic in the order of the graph.
    Exact: nothing but names changes.
    """

    name: ClassVar[str] = "shorten_names"
    keeps_types: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> Outcome:
        kept = {value.name for value in graph.inputs + graph.outputs}
        for node in graph.nodes():
            kept.update(value.name for value in graph.captures(node).values())
        values = [value for value in graph.values() if value.name not in kept]
        for number, value in enumerate(values):  # out of the way first: short names may be taken
            graph.rename(value, graph.fresh_name(f"{number}.renamed"))
        names = _names()
        for value in values:
            graph.rename(value, next(name for name in names if graph.fresh_name(name) == name))
        for value in graph.values():
            if value.doc or value.metadata or value.extra is not None:
                graph.strip(value)
        self._name_nodes(graph)
        _strip_the_rest(graph)
        return Outcome(len(values))

    def _name_nodes(self, graph: Graph) -> None:
        names = _names()

        def inside(body: onnx.GraphProto) -> int:
            _strip(body)
            for node in body.node:
                node.name = next(names)
            return 1

        for node in graph.nodes():
            graph.strip(node)
            graph.set_name(node, next(names))
            edit_bodies(graph, node, inside)


def _strip_the_rest(graph: Graph) -> None:
    """Doc strings and metadata of the graph and of local functions."""
    graph.doc = ""
    header = onnx.ModelProto()
    header.CopyFrom(graph.header)
    header.graph.ClearField("metadata_props")
    graph.header = header
    functions = []
    for function in graph.functions:
        twin = onnx.FunctionProto()
        twin.CopyFrom(function)
        _strip(twin)
        for node in twin.node:
            for body in all_bodies({attribute.name: attribute for attribute in node.attribute}):
                _strip(body)
        functions.append(twin)
    graph.functions = functions


def _strip(holder: onnx.GraphProto | onnx.FunctionProto) -> None:
    """Doc strings and metadata of a body or function, its nodes and values."""
    told: list[onnx.GraphProto | onnx.FunctionProto | onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto]
    told = [holder, *holder.node, *holder.value_info]
    if isinstance(holder, onnx.GraphProto):
        told += [*holder.input, *holder.output, *holder.initializer]
    for item in told:
        item.ClearField("doc_string")
        item.ClearField("metadata_props")


def _names() -> Iterator[str]:
    for length in count(1):
        for first, *rest in product(ascii_letters, *[ascii_letters + digits] * (length - 1)):
            yield first + "".join(rest)
