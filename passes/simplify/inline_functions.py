"""`InlineFunctions`: calls of a model's own functions become the nodes that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx

from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Graph, Node
from onnxslim.ir.graph.calls import call_key
from onnxslim.ir.onnx_io import add_node_proto, node_proto
from onnxslim.ir.onnx_io.bodies import bodies_of
from onnxslim.ir.rewrite import Context, Outcome, Pass
from passes.simplify.convert_opset import convert_node
from passes.simplify.function_calls import Functions, node_label, opsets_of, written_out

__all__ = ["InlineFunctions"]


@dataclass(frozen=True)
class InlineFunctions(Pass):
    """y = F(x; a)  →  the nodes of F, reading x, making y, with a in their attributes; no function is left.

    Functions that call others are followed down; calls in bodies (If, Loop, Scan) are written out there. Names
    of a function's values and nodes get the call's name as a prefix, and are unique in the model. An attribute
    that the call leaves out has the function's default, else the op's own.

    A function may be written in another opset than the model: a node that means something else there is
    converted as by `ConvertOpset`, and UnsupportedError names one that cannot be, or that stands in a body.
    ModelError names a call of a function that calls itself.

    Exact.
    """

    name: ClassVar[str] = "inline_functions"

    def run(self, graph: Graph, context: Context) -> Outcome:
        if not graph.functions:
            return Outcome()
        functions = {call_key(f.domain, f.name, f.overload): f for f in graph.functions}
        opsets = dict(graph.opsets)
        for function in functions.values():
            for domain, version in opsets_of(function).items():
                graph.opsets.setdefault(domain, version)
        count = sum(_inline(graph, node, functions) for node in graph.nodes())
        graph.functions = []
        used = {domain for node in graph.nodes() for domain in _domains(node)}
        own = {domain for domain, _, _ in functions}
        graph.opsets = {d: v for d, v in graph.opsets.items() if d in used or (d in opsets and d not in own)}
        return Outcome(max(count, 1))


def _inline(graph: Graph, node: Node, functions: Functions) -> int:
    """Replaces one node; how many calls that were."""
    called = call_key(node.domain, node.op, node.overload) in functions
    if not called and not any(_calls(body, functions) for body in bodies_of(node.attributes.values())):
        return 0
    proto = node_proto(graph, node)

    def fresh(base: str) -> str:
        name = graph.fresh_name(base)
        graph.reserve_names([name])
        return name

    written = written_out(proto, functions, fresh, None if called else dict(graph.opsets))
    graph.detach(node)
    for made, opsets in written:
        added = add_node_proto(graph, made)
        _into_opset(graph, proto, added, opsets or graph.opsets)
    return 1


def _calls(body: onnx.GraphProto, functions: Functions) -> bool:
    return any(
        call_key(n.domain, n.op_type, n.overload) in functions
        or any(_calls(inner, functions) for inner in bodies_of(n.attribute))
        for n in body.node
    )


def _into_opset(graph: Graph, call: onnx.NodeProto, node: Node, opsets: Mapping[str, int]) -> None:
    """From the opset of a function to the model's."""
    old, new = opsets.get(node.domain), graph.opsets[node.domain]
    if old is None or old == new:
        return
    if node.domain:
        raise UnsupportedError(
            f"{node_label(call)} calls a function with version {old} of domain '{node.domain}', where the model has "
            f"version {new}: {node} may mean something else there; export the model with one version"
        )
    convert_node(graph, node, old, new)


def _domains(node: Node) -> set[str]:
    found = {node.domain}
    stack = list(bodies_of(node.attributes.values()))
    while stack:
        for inner in stack.pop().node:
            found.add("" if inner.domain == "ai.onnx" else inner.domain)
            stack += bodies_of(inner.attribute)
    return found
