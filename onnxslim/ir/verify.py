"""Invariants that every graph must keep, checked between passes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx

from onnxslim.errors import ModelError, VerifyError
from onnxslim.ir.attributes import attribute_fault, nodes_faults
from onnxslim.ir.dialect import DIALECT
from onnxslim.ir.graph import DType, Graph, Node, Shape, Value, shapes_agree, type_name
from onnxslim.ir.operands import misfit
from onnxslim.ir.shapes import TYPES, has_rule, infer_shapes, inferred_types, known_types

__all__ = ["require_sound", "require_sound_at", "require_sound_attributes", "verify", "verify_types"]

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
        nodes = graph.affected(since)
        values = [item for item in items if isinstance(item, Value)]
    else:
        nodes, values = order, graph.values()
    for value in values:
        _check_value(graph, value)
    for value in graph.outputs:
        if not graph.has_source(value):
            raise VerifyError(f"Output '{value.name}' of graph '{graph.name}' is read, but nothing produces it")
    local = {(f.domain, f.name) for f in graph.functions}
    for node in nodes:
        _check_sources(graph, node)
        if (node.domain, node.op) not in local:
            _check_signature(graph, node, types)
    if types:
        _check_types(graph, nodes)


def require_sound(graph: Graph) -> None:
    """Raises VerifyError as `verify` does, and where operands of a graph with inferred shapes do not fit one another;
    what is declared of other types and shapes is not looked at."""
    verify(graph, types=False)
    require_sound_attributes(graph, proven=True)
    for node in graph.nodes():
        why = misfit(graph, node, {})
        if why is not None:
            raise VerifyError(f"{_where(graph, node)}: {why}")


def verify_types(graph: Graph) -> None:
    """The part of `verify` that asks inference: types and shapes agree with what each op makes of its inputs."""
    _check_types(graph, graph.nodes())


def _check_value(graph: Graph, value: Value) -> None:
    if not value.name or graph.find(value.name) is not value:
        raise VerifyError(f"Value '{value.name}' of graph '{graph.name}' has no name, or another value's")
    if not graph.has_source(value) and graph.is_used(value):
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
                f"Initialiser '{value.name}' is declared as {type_name(value.dtype, value.shape)}, "
                f"but its array is {type_name(*expected)}"
            )
    if value.shape is not None and any(isinstance(d, int) and d < 0 for d in value.shape):
        raise VerifyError(f"Value '{value.name}' has a negative axis: {type_name(value.dtype, value.shape)}")


def _check_sources(graph: Graph, node: Node) -> None:
    for value in graph.reads(node):
        if not graph.has_source(value):
            raise VerifyError(f"{node} reads '{value.name}', which nothing produces")
    if node.domain not in graph.opsets:
        raise VerifyError(f"{node} needs an opset of domain '{node.domain}'; the graph has {graph.opsets}")


def _check_signature(graph: Graph, node: Node, proven: bool) -> None:
    """Slots and attributes against the op's definition, where there is one; proven: as `attribute_fault` has it."""
    signature = _signature(node.op, graph.opsets[node.domain], node.domain)
    if signature is None:
        return
    if isinstance(signature, int):
        raise VerifyError(
            f"{_where(graph, node)} does not exist in opset {graph.opsets[node.domain]}; "
            f"its definition there is from opset {signature} on"
        )
    inputs, (count, parts) = graph.node_inputs(node), node.arity
    if count < signature.inputs[0] or None in inputs:
        for slot, name in signature.single.items():
            if slot >= count or inputs[slot] is None:
                raise VerifyError(f"{_where(graph, node)} lacks its input {slot} ({name})")
    if not signature.inputs[0] <= count <= signature.inputs[1]:
        wanted = _range(*signature.inputs)
        raise VerifyError(f"{_where(graph, node)} has {count} inputs; expected {wanted} in opset {graph.opset}")
    if not signature.outputs[0] <= parts <= signature.outputs[1]:
        wanted = _range(*signature.outputs)
        raise VerifyError(f"{_where(graph, node)} has {parts} outputs; expected {wanted} in opset {graph.opset}")
    for name, attribute in node.attributes.items():
        declared, got = signature.attributes.get(name), attribute.type
        if declared is None:
            known = ", ".join(sorted(signature.attributes)) or "none"
            raise VerifyError(
                f"{_where(graph, node)} has an attribute '{name}'; in opset {graph.opset} there are: {known}"
            )
        if got != declared:
            raise VerifyError(
                f"{_where(graph, node)}: expected its attribute '{name}' to be {_KIND_NAMES[declared]}, "
                f"got {_KIND_NAMES.get(got, got)}"
            )
    said = node.attr("num_outputs", parts) if (node.domain, node.op) == ("", "Split") else parts
    if said != parts:  # which onnx's inference would make room for first
        raise VerifyError(f"{_where(graph, node)} splits into {said}; expected {parts}, as it has outputs")
    for name in signature.required:
        if name not in node.attributes:
            raise VerifyError(f"{_where(graph, node)} lacks its attribute '{name}'")
    _check_numbers(graph, node, proven)


def require_sound_attributes(graph: Graph, *, proven: bool = False) -> None:
    """Raises VerifyError where an attribute holds a number that its op cannot take, also in bodies and functions: some
    of them end the process in which ONNX Runtime meets them. proven: as `attribute_fault` has it."""
    local = {(f.domain, f.name) for f in graph.functions}
    for node in graph.nodes():
        if (node.domain, node.op) not in local:
            _check_numbers(graph, node, proven)
    for function in graph.functions:
        fault = next(nodes_faults(function.node), None)
        if fault is not None:
            raise VerifyError(f"Function '{function.name}' of graph '{graph.name}': {fault}")


def require_sound_at(graph: Graph, shapes: Mapping[str, Shape] | None = None) -> None:
    """`require_sound_attributes`, against what follows from the inputs' shapes as well: as they are declared, or those
    given, by name. What else a file says of shapes is believed of ops without a rule only; what inference cannot take
    is not looked at. The graph stays as it is."""
    sized = graph.copy()
    for name, shape in (shapes or {}).items():
        value = sized.value(name)
        sized.set_type(value, value.dtype, shape)
    nodes = sized.nodes()
    ruled = {(node.domain, node.op): has_rule(sized, node) for node in _one_a_kind(nodes)}
    for node in nodes:
        for made in sized.node_outputs(node) if ruled[node.domain, node.op] else ():
            if made is not None and made.shape is not None:
                sized.clear_shape(made)
    with contextlib.suppress(ModelError):
        infer_shapes(sized)
    require_sound_attributes(sized, proven=True)


def _one_a_kind(nodes: Sequence[Node]) -> Iterable[Node]:
    return {(node.domain, node.op): node for node in nodes}.values()


def _check_numbers(graph: Graph, node: Node, proven: bool) -> None:
    fault = attribute_fault(graph, node, proven=proven)
    if fault is not None:
        raise VerifyError(f"{_where(graph, node)}: {fault}")


@dataclass(frozen=True)
class _Signature:
    """What onnx defines of an op, in plain types.

    inputs, outputs: how many at least and at most. single: the names of the inputs that must be there, by slot.
    attributes: the kind of each.
    """

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    single: Mapping[int, str]
    attributes: Mapping[str, int]
    required: tuple[str, ...]


@cache
def _signature(op: str, version: int, domain: str) -> _Signature | int | None:
    """The op's definition; the first opset that has it, where this one does not; None for ops that are neither onnx's
    nor ours, which are left alone."""
    own = DIALECT.get((domain, op))
    if own is not None:
        return _Signature(
            (len(own.inputs) - own.optional, len(own.inputs)),
            (1, 1),
            dict(enumerate(own.inputs[: len(own.inputs) - own.optional])),
            {name: attribute.kind for name, attribute in own.attributes.items()},
            tuple(name for name, attribute in own.attributes.items() if attribute.required),
        )
    if not onnx.defs.has(op, domain):
        return None
    if not onnx.defs.has(op, version, domain):
        return int(onnx.defs.get_schema(op, domain).since_version)
    schema = onnx.defs.get_schema(op, version, domain)
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    attributes: Mapping[str, Any] = schema.attributes
    return _Signature(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        {slot: formal.name for slot, formal in enumerate(schema.inputs) if formal.option == single},
        {name: attribute.type.value for name, attribute in attributes.items()},
        tuple(name for name, attribute in attributes.items() if attribute.required),
    )


def _range(least: int, most: int) -> str:
    return f"{least}" if least == most else f"{least} to {most}" if most < 1 << 30 else f"at least {least}"


def _check_types(graph: Graph, nodes: Sequence[Node]) -> None:
    nodes = _typed(graph, nodes)
    try:
        # of everything where it is known, or not much more: it is kept
        whole = graph.noted(TYPES) is not None or 2 * len(nodes) > len(graph.nodes())
        found = (known_types(graph) if whole else None) or inferred_types(graph, nodes, strict=True)
    except ModelError as error:
        raise VerifyError(str(error)) from error
    for node in nodes:
        why = misfit(graph, node, found)
        if why is not None:
            raise VerifyError(f"{_where(graph, node)}: {why}")
        for value in graph.node_outputs(node):
            if value is None or value.name not in found:
                continue
            dtype, shape = found[value.name]
            if dtype is value.dtype and shape == value.shape:
                continue
            same_type = DType.UNDEFINED in (dtype, value.dtype) or dtype is value.dtype
            if not same_type or not (shape is None or value.shape is None or shapes_agree(shape, value.shape)):
                raise VerifyError(
                    f"{node} makes '{value.name}': expected {type_name(value.dtype, value.shape)} as declared, "
                    f"got {type_name(dtype, shape)} from its inputs"
                )


def _typed(graph: Graph, nodes: Sequence[Node]) -> list[Node]:
    """Those whose operands have types: declared, or from a node before them."""
    known: set[int] = set()
    typed = []
    for node in nodes:
        if all(v.dtype is not DType.UNDEFINED or v.type_proto is not None or v.id in known for v in graph.reads(node)):
            typed.append(node)
            known.update(v.id for v in graph.node_outputs(node) if v is not None)
    return typed


def _where(graph: Graph, node: Node) -> str:
    """The node; one without a name through what it makes."""
    if node.name:
        return str(node)
    made = next((v.name for v in graph.node_outputs(node) if v is not None), "")
    return f"{node} that makes '{made}'"
