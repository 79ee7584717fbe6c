"""`ConvertOpset`: one version of the ONNX operators for all passes to work in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
from onnx import defs, helper

from onnxslim.analysis.bodies import close_bodies, open_bodies
from onnxslim.analysis.scope import place
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import DType, Graph, Node
from onnxslim.ir.onnx_io import add_node_proto, node_proto, type_proto
from onnxslim.ir.rewrite import Context, Outcome, Pass
from onnxslim.ir.shapes import infer_shapes
from passes.simplify.function_calls import expanded, opsets_of
from passes.simplify.opset_rules import RULES

__all__ = ["ConvertOpset", "convert_node", "covered_versions"]

_OLDEST = 7
_OPSET_OF_TYPE = {
    DType.INT4: 21, DType.UINT4: 21, DType.INT2: 25, DType.UINT2: 25, DType.FLOAT4E2M1: 23, DType.FLOAT8E8M0: 24,
    DType.FLOAT8E4M3FN: 19, DType.FLOAT8E4M3FNUZ: 19, DType.FLOAT8E5M2: 19, DType.FLOAT8E5M2FNUZ: 19,
}  # fmt: skip


@dataclass(frozen=True)
class ConvertOpset(Pass):
    """The same model in opset `version` (18 to 21) of ai.onnx, from opset 7 to the newest that onnx knows, IR 9,
    edited in place.

    An op whose definition did not change between the two versions, or only in the types it takes
    or by optional inputs and attributes, stays. Others have a rule of their own (`opset_rules`), and what the
    target lacks is written out as onnx itself defines it (`Node.origin` then says of what):

        Clip(x; min=a, max=b)    → Clip(x, a, b)               up to opset 10; likewise Pad, Slice, TopK
        Upsample(x, s)           → Resize(x, , s; asymmetric)  up to opset 9; Resize of opset 10 too
        ReduceMax(x; axes=[1])   → ReduceMax(x, [1])           up to opset 17; likewise Squeeze, Unsqueeze, Split
        Softmax(x; axis=k)       → Reshape(Softmax(Flatten(x; k)))   up to opset 12, unless k is the last axis
        Gelu(x)                  → x/2 · (1 + Erf(x/√2))       from opset 20; likewise RMSNormalization, Swish …

    Other domains, local functions, names, roles and weights are not touched. Raises UnsupportedError,
    naming node and opset, where an op or a type cannot be expressed; the graph is then unusable. Bodies (If, Loop,
    Scan) are converted as the graph is.

    Exact; what is written out is equal to 1e-6 of the largest output.
    """

    version: int = 18
    name: ClassVar[str] = "convert_opset"

    def run(self, graph: Graph, context: Context) -> Outcome:
        if not 18 <= self.version <= 21:
            raise UnsupportedError(f"Pass '{self.name}' converts to opset 18 to 21, not {self.version}")
        old, ir = graph.opset, graph.ir_version
        newest = defs.onnx_opset_version()
        if old and not _OLDEST <= old <= newest:
            what, how = (
                (f"older than {_OLDEST}", "export it again, or convert it with onnx.version_converter.convert_version")
                if old < _OLDEST
                else (f"newer than {newest}, which onnx {onnx.__version__} knows", "install a newer onnx")
            )
            raise UnsupportedError(f"Graph '{graph.name}' is of opset {old}, {what}: {how} first")
        if old and old != self.version:
            infer_shapes(graph)  # some rules depend on ranks and types
            nodes = graph.nodes()
            own = {node.id for node in nodes}
            for node in nodes:
                mark, origin = graph.mark(), place(graph, node)
                convert_node(graph, node, old, self.version)
                for made in graph.touched(mark):
                    if isinstance(made, Node) and made.id not in own:
                        own.add(made.id)
                        made.origin = node.origin or origin
            _require_types(graph, old, self.version)
            graph.opsets[""] = self.version
        graph.ir_version = _ir_version(graph)
        return Outcome(int((old or self.version, ir) != (self.version, graph.ir_version)))


def convert_node(graph: Graph, node: Node, old: int, new: int) -> None:
    """One node of opset `old` as opset `new` has it, in place or by nodes that it stands for.

    Raises UnsupportedError naming the node where that cannot be said.
    """
    _convert_bodies(graph, node, old, new)
    if node.domain:
        return
    before, after = _schema(node.op, old), _schema(node.op, new)
    if before is None or (after is not None and before.since_version == after.since_version):
        return  # no op of onnx's is for the verifier to name
    rule = RULES.get(node.op)
    if rule is not None:
        why = rule(graph, node, old, new)
    elif after is None:
        why = "has no such op"
    else:
        why = _difference(before, after, node.attributes.values(), len(graph.node_inputs(node)))
        if why is None:
            for name in [name for name in node.attributes if name not in after.attributes]:
                graph.set_attribute(node, name, None)  # it has the value that is meant without it
    if why is not None and not _write_out(graph, node, before, new):
        _refuse(graph, str(node), old, new, why)


def _convert_bodies(graph: Graph, node: Node, old: int, new: int) -> None:
    """The nodes in the bodies of a node (If, Loop, Scan), and in bodies within them."""
    bodies = open_bodies(graph, node, old)
    for body in bodies:
        infer_shapes(body.graph)
        try:
            for inner in body.graph.nodes():
                convert_node(body.graph, inner, old, new)
            _require_types(body.graph, old, new)
        except UnsupportedError as error:
            raise UnsupportedError(f"In a body of {node}: {error}") from error
    if bodies:
        close_bodies(graph, node, bodies)


def covered_versions(op: str, version: int = 18) -> list[int]:
    """The definitions of an op of ai.onnx, by the opset they are from, whose nodes `ConvertOpset` brings to `version`:
    all of them, or those that the definition there can say."""
    found: dict[int, None] = {}
    after = _schema(op, version)
    for old in range(_OLDEST, defs.onnx_opset_version() + 1):
        before: Any = _schema(op, old)
        if before is None or (before.deprecated and op not in RULES):
            continue
        same = after is not None and before.since_version == after.since_version
        taken = after is not None and _difference(before, after, (), min(before.max_input, after.max_input)) is None
        if same or taken or op in RULES or before.has_function or before.has_context_dependent_function:
            found[int(before.since_version)] = None
    return list(found)


def _write_out(graph: Graph, node: Node, schema: Any, new: int) -> bool:
    """Puts the nodes that onnx defines an op by in its place; False where it is no function of others."""
    proto = onnx.NodeProto()
    proto.CopyFrom(node_proto(graph, node))
    function = onnx.FunctionProto()
    if schema.has_function:
        function.CopyFrom(schema.function_body)
    elif schema.has_context_dependent_function:
        types = [onnx.TypeProto() if v is None else type_proto(v) for v in graph.node_inputs(node)]
        since = schema.context_dependent_function_opset_versions[0]
        data = schema.get_context_dependent_function_with_opset_version(
            since, proto.SerializeToString(), [t.SerializeToString() for t in types]
        )
        function.ParseFromString(data)
    if not function.node:
        return False
    given = {formal.type_str: v.dtype for formal, v in zip(schema.inputs, graph.node_inputs(node)) if v is not None}
    for formal, value in zip(schema.outputs, graph.node_outputs(node)):
        if value is not None and value.dtype is DType.UNDEFINED:  # what follows may be written out by its type
            graph.set_type(value, given.get(formal.type_str))
    graph.detach(node)

    def fresh(base: str) -> str:
        name = graph.fresh_name(base)
        graph.reserve_names([name])
        return name

    defaults = [a.default_value for n, a in schema.attributes.items() if n not in node.attributes]
    proto.attribute.extend(a for a in defaults if a.type)
    written = opsets_of(function).get("", schema.since_version)
    for inner in expanded(proto, function, fresh):
        convert_node(graph, add_node_proto(graph, inner), written, new)
    return True


def _refuse(graph: Graph, where: str, old: int, new: int, why: str) -> None:
    raise UnsupportedError(
        f"Graph '{graph.name}': {where} of opset {old} cannot be converted to opset {new}, which {why}; "
        f"export the model with opset {new}"
    )


def _schema(op: str, version: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(op, version, "")
    except defs.SchemaError:
        return None


def _difference(
    before: defs.OpSchema, after: defs.OpSchema, attributes: Iterable[onnx.AttributeProto], inputs: int
) -> str | None:
    """What the newer or older definition cannot say of a node; None where it means the same by it."""
    if after.deprecated and not before.deprecated:
        return "has deprecated the op"
    for attribute in attributes:
        known, default = attribute.name in after.attributes, before.attributes[attribute.name].default_value
        if not known and not _same_value(attribute, default):
            return f"has no attribute '{attribute.name}'"
    given = {attribute.name for attribute in attributes}
    for name, new in after.attributes.items():
        old = before.attributes.get(name)
        if name in given:
            continue
        if old is None and new.required:
            return f"requires an attribute '{name}'"
        if old is not None and not _same_value(old.default_value, new.default_value):
            return f"has another default for attribute '{name}'"
    if inputs > after.max_input:
        return f"takes at most {after.max_input} inputs"
    return None


def _same_value(a: onnx.AttributeProto, b: onnx.AttributeProto) -> bool:
    if not a.type or not b.type:
        return a.type == b.type
    return bool(_plain(a) == _plain(b))


def _plain(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return list(value) if isinstance(value, list) or hasattr(value, "extend") else value


def _require_types(graph: Graph, old: int, new: int) -> None:
    for value in graph.values():
        first = _OPSET_OF_TYPE.get(value.dtype, 0)
        if new < first <= old:
            _refuse(graph, f"value '{value.name}' ({value.dtype.name})", old, new, "has no such type")
    for node in graph.nodes():
        schema = None if node.domain else _schema(node.op, new)
        for slot, operand in enumerate(graph.node_inputs(node) if schema is not None and schema.inputs else ()):
            taken = schema.inputs[min(slot, len(schema.inputs) - 1)].types if schema is not None else ()
            kind = f"tensor({operand.dtype.name.lower()})" if operand is not None and operand.dtype else ""
            if kind and operand is not None and operand.type_proto is None and kind not in taken:
                _refuse(graph, str(node), old, new, f"has no {operand.dtype.name} for its input {slot}")


def _ir_version(graph: Graph) -> int:
    """9, or 10 where the model needs what came with it: overloads of functions, 4-bit integers."""
    overloads = any(f.overload for f in graph.functions)
    small = any(v.dtype in (DType.INT4, DType.UINT4) for v in graph.values())
    return 10 if overloads or small else 9
