"""Invariants that every graph must keep, checked between passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

from onnxslim.analysis.shapes import inferred_types
from onnxslim.errors import ModelError, VerifyError
from onnxslim.graph import DType, Graph, Node, Shape, Value

__all__ = ["verify"]

_KIND_NAMES = {code: name for name, code in onnx.AttributeProto.AttributeType.items()}


def verify(graph: Graph, since: int | None = None, *, types: bool = True) -> None:
    """Raises VerifyError naming node, op, expected and got, where an invariant fails.

    Checked: every value that is read has exactly one source; names are there and unique; initialisers
    are what their values declare; ops, their slots and attributes exist in the graph's opset; types
    and shapes agree with what each op makes of its inputs; there is no cycle.

    With `since`, a mark of the graph's journal, only what was edited after it is looked at (the order
    of nodes is always checked); None means everything. `types=False` leaves out types and shapes.
    """
    try:
        order = graph.nodes()
    except ModelError as error:
        raise VerifyError(str(error)) from error
    if since is not None:
        items = list(graph.touched(since))
        if not items:
            return
        nodes = _affected(graph, items, order)
        values = [item for item in items if isinstance(item, Value)]
    else:
        nodes, values = order, graph.values()
    for value in values:
        _check_value(graph, value)
    for value in graph.outputs:
        if not graph.has_source(value):
            raise VerifyError(f"Output '{value.name}' of graph '{graph.name}' is read, but nothing produces it")
    schemas: dict[tuple[str, str], onnx.defs.OpSchema | None] = {}
    for node in nodes:
        _check_sources(graph, node)
        _check_signature(graph, node, schemas)
        _check_fake_quant(graph, node)
    if types:
        _check_types(graph, nodes)


def _affected(graph: Graph, items: Sequence[Node | Value], order: Sequence[Node]) -> list[Node]:
    """Nodes that were edited, or that produce or read a value that was; in topological order."""
    chosen: dict[int, None] = {}
    for item in items:
        if isinstance(item, Node):
            chosen[item.id] = None
        else:
            producer = graph.producer(item)
            readers = graph.consumers(item)
            chosen.update(dict.fromkeys(n.id for n in ([producer] if producer else []) + readers))
    return [n for n in order if n.id in chosen]


def _check_value(graph: Graph, value: Value) -> None:
    if not value.name or graph.find(value.name) is not value:
        raise VerifyError(f"Value '{value.name}' of graph '{graph.name}' has no name, or another value's")
    if graph.is_used(value) and not graph.has_source(value):
        uses = graph.uses(value)
        reader = str(uses[0].node) if uses else "the graph's output"
        raise VerifyError(f"{reader} reads '{value.name}', which nothing produces")
    if value.array is not None:
        producer = graph.producer(value)
        if producer is not None:
            raise VerifyError(f"Value '{value.name}' has two sources: it is an initialiser, and {producer} produces it")
        expected = (DType.of(value.array), value.array.shape)
        if (value.dtype, value.shape) != expected:
            raise VerifyError(
                f"Initialiser '{value.name}' is declared as {_type(value.dtype, value.shape)}, "
                f"but its array is {_type(*expected)}"
            )
    if value.shape is not None and any(isinstance(d, int) and d < 0 for d in value.shape):
        raise VerifyError(f"Value '{value.name}' has a negative axis: {_type(value.dtype, value.shape)}")


def _check_sources(graph: Graph, node: Node) -> None:
    captured = graph.captures(node)
    for value in (*graph.node_inputs(node), *captured.values()):
        if value is not None and not graph.has_source(value):
            raise VerifyError(f"{node} reads '{value.name}', which nothing produces")
    if node.domain not in graph.opsets:
        raise VerifyError(f"{node} needs an opset of domain '{node.domain}'; the graph has {graph.opsets}")


def _check_signature(graph: Graph, node: Node, schemas: dict[tuple[str, str], onnx.defs.OpSchema | None]) -> None:
    """Slots and attributes against the op's definition, where there is one."""
    key = (node.domain, node.op)
    if key not in schemas:
        schemas[key] = _schema(graph, node)
    schema = schemas[key]
    if schema is None:
        return
    inputs, outputs = graph.node_inputs(node), graph.node_outputs(node)
    for what, count, least, most in (
        ("inputs", len(inputs), schema.min_input, schema.max_input),
        ("outputs", len(outputs), schema.min_output, schema.max_output),
    ):
        if not least <= count <= most:
            wanted = f"{least}" if least == most else f"{least} to {most}" if most < 1 << 30 else f"at least {least}"
            raise VerifyError(f"{_where(graph, node)} has {count} {what}; expected {wanted} in opset {graph.opset}")
    for slot, (value, formal) in enumerate(zip(inputs, schema.inputs)):
        if value is None and formal.option == onnx.defs.OpSchema.FormalParameterOption.Single:
            raise VerifyError(f"{_where(graph, node)} lacks its input {slot} ({formal.name})")
    for name in node.attributes:
        if name not in schema.attributes:
            known = ", ".join(sorted(schema.attributes)) or "none"
            raise VerifyError(
                f"{_where(graph, node)} has an attribute '{name}'; in opset {graph.opset} there are: {known}"
            )
        kind: Any = schema.attributes[name].type
        declared, got = kind.value, node.attributes[name].type
        if got != declared:
            raise VerifyError(
                f"{_where(graph, node)}: expected its attribute '{name}' to be {_KIND_NAMES[declared]}, "
                f"got {_KIND_NAMES.get(got, got)}"
            )
    parts = node.attr("num_outputs", len(outputs)) if key == ("", "Split") else len(outputs)
    if parts != len(outputs):  # which onnx's inference would make room for first
        raise VerifyError(f"{_where(graph, node)} splits into {parts}; expected {len(outputs)}, as it has outputs")
    for name, attribute in schema.attributes.items():
        if attribute.required and name not in node.attributes:
            raise VerifyError(f"{_where(graph, node)} lacks its attribute '{name}'")


def _schema(graph: Graph, node: Node) -> onnx.defs.OpSchema | None:
    """The op's definition; None for ops that are not onnx's, which are left alone."""
    if any((f.domain, f.name) == (node.domain, node.op) for f in graph.functions):
        return None
    if not onnx.defs.has(node.op, node.domain):
        return None
    version = graph.opsets.get(node.domain, 0)
    if not onnx.defs.has(node.op, version, node.domain):
        first = onnx.defs.get_schema(node.op, node.domain).since_version
        raise VerifyError(
            f"{_where(graph, node)} does not exist in opset {version}; its definition there is from opset {first} on"
        )
    return onnx.defs.get_schema(node.op, version, node.domain)


def _check_fake_quant(graph: Graph, node: Node) -> None:
    if node.op != "FakeQuant" or node.domain != "onnxslim":
        return
    if node.arity[0] not in (3, 4) or node.arity[1] != 1:
        raise VerifyError(f"{_where(graph, node)} has {node.arity} slots; expected x, scale, zero_point(, range) → y")
    for name in ("bits", "signed", "narrow", "kind"):
        if name not in node.attributes:
            raise VerifyError(f"{_where(graph, node)} lacks its attribute '{name}'")
    x, axis = graph.operand(node, 0), node.attr("axis")
    if axis is not None and x.shape is not None and not 0 <= axis < len(x.shape):
        raise VerifyError(
            f"{_where(graph, node)} has axis {axis}; expected one of '{x.name}' {_type(x.dtype, x.shape)}"
        )
    for slot in (1, 2):
        value = graph.operand(node, slot)
        if value.dtype not in (DType.FLOAT, DType.UNDEFINED):
            raise VerifyError(f"{_where(graph, node)}: expected '{value.name}' to be FLOAT, got {value.dtype.name}")
        channels = None if axis is None or x.shape is None else x.shape[axis]
        expected: Shape = () if axis is None else (channels,)
        if value.shape is not None and not _agree(value.shape, expected):
            raise VerifyError(
                f"{_where(graph, node)}: expected '{value.name}' of shape {expected} (axis {axis} of '{x.name}' "
                f"{x.shape}), got {value.shape}"
            )


def _check_types(graph: Graph, nodes: Sequence[Node]) -> None:
    nodes = _typed(graph, nodes)
    try:
        found = inferred_types(graph, nodes, strict=True)
    except ModelError as error:
        raise VerifyError(str(error)) from error
    for node in nodes:
        for value in graph.node_outputs(node):
            if value is None or value.name not in found:
                continue
            dtype, shape = found[value.name]
            same_type = DType.UNDEFINED in (dtype, value.dtype) or dtype is value.dtype
            if not same_type or not (shape is None or value.shape is None or _agree(shape, value.shape)):
                raise VerifyError(
                    f"{node} makes '{value.name}': expected {_type(value.dtype, value.shape)} as declared, "
                    f"got {_type(dtype, shape)} from its inputs"
                )


def _typed(graph: Graph, nodes: Sequence[Node]) -> list[Node]:
    """Those whose operands have types: declared, or from a node before them."""
    known: set[int] = set()
    typed = []
    for node in nodes:
        operands = [v for v in (*graph.node_inputs(node), *graph.captures(node).values()) if v is not None]
        if all(v.id in known or v.dtype is not DType.UNDEFINED or v.type_proto is not None for v in operands):
            typed.append(node)
            known.update(v.id for v in graph.node_outputs(node) if v is not None)
    return typed


def _agree(a: Shape, b: Shape) -> bool:
    return len(a) == len(b) and all(not isinstance(x, int) or not isinstance(y, int) or x == y for x, y in zip(a, b))


def _type(dtype: DType, shape: Shape | None) -> str:
    dims = "?" if shape is None else ", ".join("?" if d is None else str(d) for d in shape)
    return f"{dtype.name}[{dims}]"


def _where(graph: Graph, node: Node) -> str:
    """The node; one without a name through what it makes."""
    if node.name:
        return str(node)
    made = next((v.name for v in graph.node_outputs(node) if v is not None), "")
    return f"{node} that makes '{made}'"
