"""Element types and shapes, by onnx's own inference rules with constant propagation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from onnxslim.analysis.shape_values import LIMIT, evaluate
from onnxslim.errors import ModelError
from onnxslim.graph import Array, Dim, DType, Graph, Node, Shape, Value
from onnxslim.onnx_io import node_proto, tensor_type, type_proto
from onnxslim.onnx_io.bodies import bodies_of
from onnxslim.onnx_io.functions import expansion

__all__ = ["has_rule", "infer_shapes", "inferred_types", "sweep"]

_LONGEST = 1 << 20
_SIZING = ("CenterCropPad", "ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Reshape", "Resize", "Tile")
"""Ops whose result is as large as a number in an input says."""
_OTHERS = (ValueError, RuntimeError, MemoryError)
"""What onnx's rules raise besides: MemoryError for amounts that no tensor has."""
_MOST_NODES, _MOST_CALLS = 10_000, 50
"""Of a call of a local function: inference works through every call anew, and recurses."""


def infer_shapes(graph: Graph) -> int:
    """Fills in what can be known about every produced value's element type and shape.

    An axis is overwritten where inference finds a number, and kept where it finds nothing; values
    after ops without a rule keep what they have. Returns how many values changed. Raises ModelError
    where inference cannot take the graph at all.
    """
    nodes = graph.nodes()
    found = inferred_types(graph, nodes)
    missed = [v for n in nodes for v in graph.node_outputs(n) if v is not None and v.shape is not None]
    missed = [v for v in missed if found.get(v.name, (v.dtype, None))[1] is None]
    if missed:  # the graph knows ranks that inference does not: go on from there
        found = inferred_types(graph, nodes, missed)
    changed = _apply(graph, found)
    if any(not _is_complete(graph, node) for node in nodes):
        changed.update(sweep(graph, nodes, {}))
    return len(changed)


def _apply(graph: Graph, found: Mapping[str, tuple[DType, Shape | None]]) -> dict[str, None]:
    changed: dict[str, None] = {}
    for name, (dtype, shape) in found.items():
        value = graph.value(name)
        new_dtype = value.dtype if dtype is DType.UNDEFINED else dtype
        new_shape = _merged(value.shape, shape)
        if (new_dtype, new_shape) != (value.dtype, value.shape):
            graph.set_type(value, new_dtype, new_shape)
            changed[name] = None
    return changed


def _is_complete(graph: Graph, node: Node) -> bool:
    return all(v is None or (v.shape is not None and None not in v.shape) for v in graph.node_outputs(node))


def sweep(
    graph: Graph, nodes: Sequence[Node], known: dict[int, Array], visit: Callable[[Node], None] | None = None
) -> dict[str, None]:
    """Node by node, with what shape arithmetic computes as further constants, by value id in `known`; the names of
    what changed. `visit` comes to each node when its inputs are done, and may give it other constants."""
    changed: dict[str, None] = {}
    for node in nodes:
        if visit is not None:
            visit(node)
        if not _is_complete(graph, node):
            target = graph.input(node, 1) if (node.domain, node.op) == ("", "Reshape") else None
            if target is not None and target.id in known and not node.attr("allowzero", 0):
                marked = {target.id: _reshape_target(graph.input(node, 0), known[target.id])}
                changed.update(_apply(graph, inferred_types(graph, [node], constants=marked)))
                changed.update(_apply(graph, _named_axes(graph.result(node), known[target.id])))
            else:
                changed.update(_apply(graph, inferred_types(graph, [node], constants=known)))
        elements = evaluate(graph, node, known)
        if elements is not None:
            known[graph.result(node).id] = elements
    return changed


def _named_axes(value: Value, target: Array) -> dict[str, tuple[DType, Shape | None]]:
    """A Reshape's axes that take over a symbol."""
    if value.shape is None or target.shape != (len(value.shape),):
        return {}
    axes = tuple(b if a is None and isinstance(b, str) else a for a, b in zip(value.shape, target))
    return {value.name: (value.dtype, axes)}


def inferred_types(
    graph: Graph,
    nodes: Sequence[Node],
    declared: Iterable[Value] = (),
    *,
    constants: Mapping[int, Array] | None = None,
    strict: bool = False,
) -> dict[str, tuple[DType, Shape | None]]:
    """What inference says about the tensors that `nodes` (in topological order) produce.

    What they read from outside is taken as the graph declares it; of what they produce themselves,
    only `declared` and the outputs of ops without a rule. `constants` has elements of shape arithmetic by
    value id (see `shape_values`). Large constants are replaced by their types.
    Raises ModelError where inference cannot take the graph; with `strict`, where any op cannot take its inputs.
    """
    if not nodes:
        return {}
    model = _skeleton(graph, nodes, {v.id for v in declared}, constants or {})
    result = _inferred(model, graph.name, strict, data_prop=not _is_long(graph, nodes))
    symbols = _symbols(graph, nodes)
    infos = {info.name: info for info in (*result.graph.input, *result.graph.value_info)}
    found: dict[str, tuple[DType, Shape | None]] = {}
    for node in nodes:
        for value in graph.node_outputs(node):
            info = infos.get(value.name) if value is not None else None
            if value is not None and info is not None and info.type.HasField("tensor_type"):
                dtype, shape = tensor_type(info.type, value.name)
                if shape is not None:  # symbols that inference made up mean nothing outside of this call
                    shape = tuple(None if isinstance(d, str) and d not in symbols else d for d in shape)
                found[value.name] = (dtype, shape)
    return found


def _symbols(graph: Graph, nodes: Sequence[Node]) -> set[str]:
    """The names of dynamic axes that the nodes meet."""
    values = (v for n in nodes for v in (*graph.node_inputs(n), *graph.captures(n).values(), *graph.node_outputs(n)))
    return {d for v in values if v is not None and v.shape is not None for d in v.shape if isinstance(d, str)}


def _inferred(model: onnx.ModelProto, name: str, strict: bool, *, data_prop: bool) -> onnx.ModelProto:
    try:
        return shape_inference.infer_shapes(model, data_prop=data_prop, strict_mode=strict)
    except (shape_inference.InferenceError, onnx.checker.ValidationError, *_OTHERS) as error:
        if data_prop:  # which takes every vector for a shape, and refuses an Add that shapes do not have
            return _inferred(model, name, strict, data_prop=False)
        if strict and _is_within(str(error)):
            return _inferred(model, name, False, data_prop=False)
        raise ModelError(f"Shape inference cannot take graph '{name}': {error}") from error


def _is_within(message: str) -> bool:
    """Whether inference stumbled inside of what ONNX itself writes an op out as: that is no fault of the model."""
    ops = re.findall(r"\(op_type:(\w+)", message)
    return len(ops) > 1 and onnx.defs.has(ops[0]) and bool(onnx.defs.get_schema(ops[0]).has_function)  # type: ignore[attr-defined]


def _skeleton(
    graph: Graph, nodes: Sequence[Node], declared: set[int], constants: Mapping[int, Array]
) -> onnx.ModelProto:
    model = onnx.ModelProto(ir_version=max(graph.ir_version, 4))
    for domain, version in graph.opsets.items():
        model.opset_import.add(domain=domain, version=version)
    functions = _entered(graph, nodes)
    model.functions.extend(functions)
    rules = {(f.domain, f.name) for f in functions}
    body = model.graph
    body.name = graph.name or "graph"
    produced = {v.id for n in nodes for v in graph.node_outputs(n) if v is not None}
    seen: set[int] = set()
    for node in nodes:
        for value in (*graph.node_inputs(node), *graph.captures(node).values()):
            if value is not None and value.id not in produced and value.id not in seen:
                seen.add(value.id)
                _declare_source(body, graph, value, constants)
        if _is_large_constant(node):
            body.input.add(name=graph.result(node).name).type.CopyFrom(_constant_type(node))
            continue
        rule = (node.domain, node.op) in rules or _has_rule(graph, node)
        for value in graph.node_outputs(node):
            if value is None:
                continue
            proto = type_proto(value)
            if proto.WhichOneof("value") and (value.id in declared or not rule):
                body.value_info.add(name=value.name).type.CopyFrom(proto)
        body.node.append(_rule_node(graph, node))
    return model


def _entered(graph: Graph, nodes: Iterable[Node]) -> Sequence[onnx.FunctionProto]:
    """The local functions that inference of these nodes goes into: none where none of them calls one, or where calls
    multiply beyond measure."""
    domains = {f.domain for f in graph.functions}
    if not domains or not any(n.domain in domains or any(bodies_of(n.attributes.values())) for n in nodes):
        return ()
    size, depth = expansion(graph.functions)
    return graph.functions if size <= _MOST_NODES and depth <= _MOST_CALLS else ()


def _is_long(graph: Graph, nodes: Sequence[Node]) -> bool:
    """Whether there are vectors of so many elements that onnx must not follow them one by one, as it does with data
    propagation even where it knows none of them."""
    for node in nodes:
        for value in (*graph.node_inputs(node), *graph.node_outputs(node)):
            if value is None:
                continue
            if value.shape is not None and len(value.shape) == 1 and _exceeds(value.shape[0]):
                return True
            array = graph.constant_of(value) if node.op in _SIZING else None
            sizes = array is not None and array.dtype.kind in "iu" and array.size <= LIMIT
            if array is not None and sizes and any(_exceeds(int(n)) for n in array.flat):
                return True
    return False


def _exceeds(dim: Dim) -> bool:
    return isinstance(dim, int) and dim > _LONGEST


def _declare_source(body: onnx.GraphProto, graph: Graph, value: Value, constants: Mapping[int, Array]) -> None:
    array = _integers(constants[value.id]) if value.id in constants else graph.constant_of(value)
    small = {"i": LIMIT, "u": LIMIT, "f": 16}
    if array is not None and array.size <= small.get(array.dtype.kind, -1) and array.dtype.itemsize >= 4:
        tensor = numpy_helper.from_array(np.asarray(array, value.dtype.numpy), value.name)
        body.initializer.append(tensor)
        return
    proto = type_proto(value)
    if proto.WhichOneof("value"):
        body.input.add(name=value.name).type.CopyFrom(proto)


def _is_large_constant(node: Node) -> bool:
    tensor = node.attributes.get("value")
    return node.op == "Constant" and not node.domain and tensor is not None and math.prod(tensor.t.dims) > LIMIT


def _constant_type(node: Node) -> onnx.TypeProto:
    tensor = node.attributes["value"].t
    return helper.make_tensor_type_proto(tensor.data_type, tensor.dims)


def _integers(elements: Array) -> Array | None:
    if not all(isinstance(e, (int, np.integer)) for e in elements.flat):
        return None
    return elements.astype(np.int64)


def _reshape_target(source: Value | None, target: Array) -> Array:
    """A Reshape's target in numbers, as far as the op's own marks go: an axis that stays is 0, and one
    unknown is -1, to be found from the others."""
    elements = target.copy()
    shape = None if source is None else source.shape
    for axis, element in enumerate(elements):
        if isinstance(element, str) and shape is not None and axis < len(shape) and shape[axis] == element:
            elements[axis] = 0
    unknown = [axis for axis, element in enumerate(elements) if not isinstance(element, (int, np.integer))]
    if len(unknown) == 1 and -1 not in elements:
        elements[unknown[0]] = -1
    return elements


def _is_fake_quant(node: Node) -> bool:
    return node.op == "FakeQuant" and node.domain == "onnxslim"


def _rule_node(graph: Graph, node: Node) -> onnx.NodeProto:
    if _is_fake_quant(node):  # same type and shape as its first input
        names = [graph.operand(node, 0).name], [graph.result(node).name]
        return onnx.NodeProto(op_type="Identity", input=names[0], output=names[1])
    return node_proto(graph, node)


def has_rule(graph: Graph, node: Node) -> bool:
    """Whether inference knows what the node makes: by a rule, or by going into the local function it calls."""
    return _has_rule(graph, node) or bool(_entered(graph, [node]))


def _has_rule(graph: Graph, node: Node) -> bool:
    """Of its own: a local function is gone into instead."""
    local = any((f.domain, f.name) == (node.domain, node.op) for f in graph.functions)
    return not local and (_is_fake_quant(node) or bool(onnx.defs.has(node.op, node.domain)))


def _merged(old: Shape | None, new: Shape | None) -> Shape | None:
    if old is None or new is None or len(old) != len(new):
        return old if new is None else new

    def axis(a: Dim, b: Dim) -> Dim:
        if isinstance(b, int) or a is None:
            return b
        return a

    return tuple(axis(a, b) for a, b in zip(old, new))
