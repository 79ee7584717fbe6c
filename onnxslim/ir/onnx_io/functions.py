"""Local functions: which calls which, and how much a call amounts to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import networkx as nx
import onnx

from onnxslim.errors import ModelFormatError
from onnxslim.ir.onnx_io.node_names import all_nodes

__all__ = ["expansion", "require_no_recursion"]

_Key: TypeAlias = tuple[str, str, str]


def require_no_recursion(functions: Sequence[onnx.FunctionProto]) -> None:
    """Raises ModelFormatError, naming them, where functions call one another in a circle."""
    if not functions:
        return
    calls, _ = _calls(functions)
    if not nx.is_directed_acyclic_graph(calls):
        names = [function[1] for function, *_ in nx.find_cycle(calls)]
        shown = " → ".join(f"'{name}'" for name in (*names[:8], *(["…"] if len(names) > 8 else []), names[0]))
        raise ModelFormatError(
            f"expected local functions that do not call themselves, got {shown}; the file is damaged"
        )


def expansion(functions: Sequence[onnx.FunctionProto]) -> tuple[int, int]:
    """Of the largest function: how many nodes a call amounts to, and how many calls lie inside one another."""
    calls, own = _calls(functions)
    size: dict[_Key, int] = {}
    depth: dict[_Key, int] = {}
    for key in reversed(list(nx.topological_sort(calls))):
        edges: list[tuple[_Key, _Key, int]] = list(calls.out_edges(key, data="times"))
        size[key] = own[key] + sum(times * size[callee] for _, callee, times in edges)
        depth[key] = 1 + max((depth[callee] for _, callee, _ in edges), default=0)
    return max(size.values(), default=0), max(depth.values(), default=0)


def _calls(functions: Sequence[onnx.FunctionProto]) -> tuple[nx.DiGraph[_Key], dict[_Key, int]]:
    """Who calls whom, how often (`times`), and how many nodes each function has itself."""
    graph: nx.DiGraph[_Key] = nx.DiGraph()
    own: dict[_Key, int] = {}
    for function in functions:
        key = (function.domain, function.name, function.overload)
        graph.add_node(key)
        own[key] = 0
    for function in functions:
        key = (function.domain, function.name, function.overload)
        for node in all_nodes(function.node):
            own[key] += 1
            callee = (node.domain, node.op_type, node.overload)
            if callee in own:
                times = graph.edges[key, callee]["times"] if graph.has_edge(key, callee) else 0
                graph.add_edge(key, callee, times=times + 1)
    return graph, own
