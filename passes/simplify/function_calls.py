"""What a call of a function stands for: its nodes, with names of their own and attributes filled in.

    y = F(x; a)   with   F(p; a) → q: { t = Op1(p); q = Op2(t; k=@a) }
    →   F/t = Op1(x);  y = Op2(F/t; k=a)

Works on NodeProtos, so that a call inside a body (If, Loop, Scan) is treated like one in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from typing import NamedTuple, TypeAlias

import onnx
from onnx import helper

from onnxslim.errors import ModelError, UnsupportedError
from onnxslim.ir.graph.calls import Key, call_key
from onnxslim.ir.onnx_io.bodies import bodies_of, captured_names, local_names, renamed

__all__ = ["Functions", "Written", "expanded", "node_label", "written_out"]

Functions: TypeAlias = Mapping[Key, onnx.FunctionProto]


class Written(NamedTuple):
    """A node, and the opsets by domain in which it was written; None: those of the model."""

    node: onnx.NodeProto
    opsets: Mapping[str, int] | None


def node_label(node: onnx.NodeProto) -> str:
    """As `Node` shows itself; one without a name by what it makes."""
    name = node.name or next((n for n in node.output if n), "")
    return f"node '{name}' ({node.domain + '.' if node.domain else ''}{node.op_type})"


def written_out(
    node: onnx.NodeProto, functions: Functions, fresh: Callable[[str], str], around: Mapping[str, int] | None = None
) -> list[Written]:
    """The node without calls of `functions`: itself, or what it stands for, down to ops that are none of them.

    `fresh` makes a name unique in the model and keeps it taken. `around`: the opsets that the node is written in.
    Raises ModelError for a function that calls itself, UnsupportedError for a call inside a body of a function
    whose nodes mean something else in the opset of the nodes around it; both name the node.
    """
    return _written_out(node, functions, fresh, around, ())


def _written_out(
    node: onnx.NodeProto,
    functions: Functions,
    fresh: Callable[[str], str],
    around: Mapping[str, int] | None,
    within: tuple[Key, ...],
) -> list[Written]:
    key = call_key(node.domain, node.op_type, node.overload)
    function = functions.get(key)
    if function is None:
        for body in bodies_of(node.attribute):
            _write_out_body(body, functions, fresh, around, within)
        return [Written(node, around)]
    if key in within:
        chain = " → ".join(name for _, name, _ in (*within[within.index(key) :], key))
        raise ModelError(f"{node_label(node)} calls a function that calls itself ({chain}), which ONNX does not allow")
    opsets = opsets_of(function)
    found = []
    for inner in expanded(node, function, fresh):
        found += _written_out(inner, functions, fresh, opsets, (*within, key))
    return found


def opsets_of(function: onnx.FunctionProto) -> dict[str, int]:
    return {("" if o.domain == "ai.onnx" else o.domain): o.version for o in function.opset_import}


def _write_out_body(
    body: onnx.GraphProto,
    functions: Functions,
    fresh: Callable[[str], str],
    around: Mapping[str, int] | None,
    within: tuple[Key, ...],
) -> None:
    nodes: list[onnx.NodeProto] = []
    for call in body.node:
        for made, opsets in _written_out(call, functions, fresh, around, within):
            if around is not None and opsets is not None:
                _require_same_meaning(call, made, opsets, around)
            nodes.append(made)
    copies = [onnx.NodeProto() for _ in nodes]
    for copy, node in zip(copies, nodes):
        copy.CopyFrom(node)
    del body.node[:]
    body.node.extend(copies)


def _require_same_meaning(
    call: onnx.NodeProto, node: onnx.NodeProto, written: Mapping[str, int], around: Mapping[str, int]
) -> None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    old, new = written.get(domain), around.get(domain)
    if old is None or new is None or old == new or _since(node, domain, old) == _since(node, domain, new) is not None:
        return
    raise UnsupportedError(
        f"{node_label(call)} stands in a body of opset {new} (domain '{domain or 'ai.onnx'}') and calls a function of "
        f"opset {old}, where {node_label(node)} means something else; export the model with one opset"
    )


def _since(node: onnx.NodeProto, domain: str, version: int) -> int | None:
    try:
        return int(onnx.defs.get_schema(node.op_type, version, domain).since_version)
    except onnx.defs.SchemaError:
        return None


def expanded(call: onnx.NodeProto, function: onnx.FunctionProto, fresh: Callable[[str], str]) -> list[onnx.NodeProto]:
    """The function's nodes in place of a call. Names of the function get the call's as a prefix; attributes that
    refer to the function's take the call's value, else the default, and are left out where there is neither."""
    for what, given, known in (("inputs", call.input, function.input), ("outputs", call.output, function.output)):
        if len(given) > len(known):
            raise ModelError(f"{node_label(call)} has {len(given)} {what}; its function has {len(known)}")
    prefix = call.name or next((n for n in call.output if n), call.op_type)
    scope = dict(zip_longest(function.input, call.input, fillvalue=""))
    produced = {name for node in function.node for name in node.output}
    handed_on: list[tuple[str, str]] = []
    for formal, actual in zip(function.output, call.output):
        if actual and formal in produced and formal not in scope:
            scope[formal] = actual
        elif actual:  # an input of the function, or the same output twice
            handed_on.append((formal, actual))
    bound = {a.name: a for a in (*function.attribute_proto, *call.attribute)}
    for node in function.node:
        for name in node.output:
            if name and name not in scope:
                scope[name] = fresh(f"{prefix}/{name}")
    nodes = [_bound(node, prefix, scope, bound, fresh) for node in function.node]
    for formal, actual in handed_on:
        if formal not in scope:
            raise ModelError(f"{node_label(call)}: nothing in its function makes its output '{formal}'")
        nodes.append(helper.make_node("Identity", [scope[formal]], [actual], fresh(f"{prefix}/{formal}")))
    return nodes


def _bound(
    node: onnx.NodeProto,
    prefix: str,
    scope: Mapping[str, str],
    bound: Mapping[str, onnx.AttributeProto],
    fresh: Callable[[str], str],
) -> onnx.NodeProto:
    """A copy of a function's node with the caller's names and attributes."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = fresh(f"{prefix}/{node.name}") if node.name else ""
    for name in node.input:
        if name not in scope and name:
            raise ModelError(f"{node_label(node)} of a function reads '{name}', which nothing in it makes")
    copy.input[:] = [scope.get(name, name) for name in node.input]
    copy.output[:] = [scope.get(name, name) for name in node.output]
    del copy.attribute[:]
    for attribute in _filled_in(node.attribute, bound):
        captured = {name: scope[name] for name in captured_names([attribute]) if name in scope}
        own = {name: fresh(f"{prefix}/{name}") for name in local_names([attribute])}
        copy.attribute.append(renamed(attribute, captured, own) if captured or own else attribute)
    return copy


def _filled_in(
    attributes: Iterable[onnx.AttributeProto], bound: Mapping[str, onnx.AttributeProto]
) -> list[onnx.AttributeProto]:
    found = []
    for attribute in attributes:
        source = attribute
        if attribute.ref_attr_name:
            if attribute.ref_attr_name not in bound:
                continue
            source = bound[attribute.ref_attr_name]
        twin = onnx.AttributeProto()
        twin.CopyFrom(source)
        twin.name = attribute.name
        if not attribute.ref_attr_name:
            for body in bodies_of([twin]):
                for node in body.node:
                    kept = _filled_in(node.attribute, bound)
                    del node.attribute[:]
                    node.attribute.extend(kept)
        found.append(twin)
    return found
