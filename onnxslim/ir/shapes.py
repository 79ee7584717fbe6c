"""Element types and shapes, by onnx's own inference rules with constant propagation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from onnxslim.errors import ModelError
from onnxslim.ir.graph import Array, Dim, DType, Graph, Node, Shape, Value
from onnxslim.ir.onnx_io import node_proto, tensor_type, type_proto
from onnxslim.ir.onnx_io.bodies import bodies_of
from onnxslim.ir.onnx_io.functions import expansion
from onnxslim.ir.op_facts import FACTS
from onnxslim.ir.shape_values import LIMIT, evaluate
from onnxslim.ir.stand_ins import has_stand_in, stand_in

__all__ = ["TYPES", "Types", "has_rule", "infer_shapes", "inferred_types", "known_types", "sweep"]

TYPES = "types"
"""Under which `known_types` notes what it found. A pass that knows it to be true after its edits notes it again."""
_LONGEST = 1 << 20
_SIZING = ("CenterCropPad", "ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Reshape", "Resize", "Tile")
"""Ops whose result is as large as a number in an input says."""
_STAGES = 4
"""Of inference up to a Slice, beyond which none is looked at: each costs as much as inferring what stands before."""
_REFUSALS = (
    shape_inference.InferenceError,
    onnx.checker.ValidationError,
    ValueError,
    RuntimeError,
    MemoryError,
)
"""What onnx's rules raise: MemoryError for amounts that no tensor has."""
_SEPARATE = 4
"""The first IR version in which an initialiser that is an input, too, may be overridden."""
_VALUES = {"i": LIMIT, "u": LIMIT, "f": 16}
"""Elements, by numpy's kind of type, up to which inference is told the values of a constant and not its type alone."""
_MOST_NODES, _MOST_CALLS = 10_000, 50
"""Of a call of a local function: inference works through every call anew, and recurses."""


def infer_shapes(graph: Graph) -> int:
    """Fills in what can be known about every produced value's element type and shape.

    An axis is overwritten where inference finds a number, and kept where it finds nothing; values
    after ops without a rule keep what they have. Returns how many values changed. Raises ModelError
    where inference cannot take the graph at all.
    """
    nodes = graph.nodes()
    known = known_types(graph)
    found = inferred_types(graph, nodes) if known is None else known
    missed = [v for n in nodes for v in graph.node_outputs(n) if v is not None and v.shape is not None]
    missed = [v for v in missed if found.get(v.name, (v.dtype, None))[1] is None]
    if missed:  # the graph knows ranks that inference does not: go on from there
        found = inferred_types(graph, nodes, missed)
    changed = _apply(graph, found)
    if found is known:
        graph.note(TYPES, (known,))  # which its own words do not change
    if any(not _is_complete(graph, node) for node in nodes):
        changed.update(sweep(graph, nodes, {}))
    return len(changed)


def _apply(graph: Graph, found: Types) -> dict[str, None]:
    changed: dict[str, None] = {}
    for name, (dtype, shape) in found.items():
        value = graph.find(name)
        if value is None:  # it was dead, and is no more
            continue
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
    what changed. `visit` comes to each node when its inputs are done, and may give it other constants; without it, only
    nodes that read something new are inferred again."""
    changed: dict[str, None] = {}
    for node in nodes:
        if visit is not None:
            visit(node)
        if not _is_complete(graph, node) and (visit is not None or _reads_news(graph, node, known, changed)):
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


def _reads_news(graph: Graph, node: Node, known: Mapping[int, Array], changed: Mapping[str, None]) -> bool:
    """Whether something that the node reads has other types, or elements, than inference of the whole graph knew; what
    stands in for a node is made of what was known before it."""
    return has_stand_in(node.domain, node.op) or any(v.id in known or v.name in changed for v in graph.reads(node))


def _named_axes(value: Value, target: Array) -> Types:
    """A Reshape's axes that take over a symbol."""
    if value.shape is None or target.shape != (len(value.shape),):
        return {}
    axes = tuple(b if a is None and isinstance(b, str) else a for a, b in zip(value.shape, target))
    return {value.name: (value.dtype, axes)}


Types: TypeAlias = dict[str, tuple[DType, Shape | None]]
"""By the name of a value."""


def inferred_types(
    graph: Graph,
    nodes: Sequence[Node],
    declared: Iterable[Value] = (),
    *,
    constants: Mapping[int, Array] | None = None,
    strict: bool = False,
) -> Types:
    """What inference says about the tensors that `nodes` (in topological order) produce.

    What they read from outside is taken as the graph declares it; of what they produce themselves,
    only `declared` and the outputs of ops without a rule. `constants` has elements of shape arithmetic by
    value id (see `shape_values`). Large constants are replaced by their types.
    Raises ModelError where inference cannot take the graph; with `strict`, where any op cannot take its inputs.
    """
    if not nodes:
        return {}
    met = _met(graph, nodes)
    model = _skeleton(graph, nodes, met, {v.id for v in declared}, constants or {})
    return _read_types(
        graph, nodes, met, _inferred(model, graph.name, strict, data_prop=not _is_long(graph, nodes, met))
    )


def known_types(graph: Graph) -> Types | None:
    """What inference says about everything that the graph produces, noted in the graph; None where an op cannot take
    its inputs."""
    kept: tuple[Types | None] | None = graph.noted(TYPES)
    if kept is None:
        nodes = graph.nodes()
        met = _met(graph, nodes)
        model = _skeleton(graph, nodes, met, set(), {})
        try:
            result = _run(model, strict=True, data_prop=not _is_long(graph, nodes, met))
            kept = (_read_types(graph, nodes, met, result),)
        except _REFUSALS:
            kept = (None,)
        graph.note(TYPES, kept)
    return kept[0]


def _met(graph: Graph, nodes: Sequence[Node]) -> dict[int, Value]:
    """All values that the nodes read or make, by id."""
    return {v.id: v for n in nodes for v in (*graph.reads(n), *graph.node_outputs(n)) if v is not None}


def _read_types(graph: Graph, nodes: Sequence[Node], met: Mapping[int, Value], result: onnx.ModelProto) -> Types:
    """What inference wrote into the model about what `nodes` produce."""
    symbols = {d for v in met.values() if v.shape is not None for d in v.shape if isinstance(d, str)}
    infos = {info.name: info.type for info in (*result.graph.input, *result.graph.value_info)}
    found: Types = {}
    for node in nodes:
        for value in graph.node_outputs(node):
            proto = infos.get(value.name) if value is not None else None
            if value is not None and proto is not None and proto.HasField("tensor_type"):
                dtype, shape = tensor_type(proto, value.name)
                # symbols that inference made up mean nothing outside of this call
                if shape is not None and any(isinstance(d, str) and d not in symbols for d in shape):
                    shape = tuple(None if isinstance(d, str) and d not in symbols else d for d in shape)
                found[value.name] = (dtype, shape)
    return found


def _inferred(model: onnx.ModelProto, name: str, strict: bool, *, data_prop: bool) -> onnx.ModelProto:
    try:
        return _run(model, strict=strict, data_prop=data_prop)
    except _REFUSALS as error:
        if data_prop:  # which takes every vector for a shape, and refuses an Add that shapes do not have
            return _inferred(model, name, strict, data_prop=False)
        if strict and _is_within(str(error)):
            return _inferred(model, name, False, data_prop=False)
        raise ModelError(f"Shape inference cannot take graph '{name}': {error}") from error


def _run(model: onnx.ModelProto, *, strict: bool, data_prop: bool) -> onnx.ModelProto:
    _require_sizes(model)
    return shape_inference.infer_shapes(model, data_prop=data_prop, strict_mode=strict)


def _require_sizes(model: onnx.ModelProto) -> None:
    """Nothing that is sliced has a size below 0, as a window larger than its input makes: onnx's rule for Slice ends
    the process there. Raises ValueError naming the value. What stands before a Slice is inferred first, where a window
    was met since the Slice before."""
    ends, window = [], False
    for place, node in enumerate(model.graph.node):
        if node.op_type == "Slice" and window:
            ends.append(place)
        window = _may_shrink(node) or (window and node.op_type != "Slice")
    for end in ends[:_STAGES]:
        before = onnx.ModelProto()
        before.CopyFrom(model)
        del before.graph.node[end:]
        try:
            found = shape_inference.infer_shapes(before)
        except _REFUSALS:
            return  # it is said of the whole
        for info in found.graph.value_info:
            sizes = [d.dim_value for d in info.type.tensor_type.shape.dim if d.HasField("dim_value")]
            if min(sizes, default=0) < 0:
                raise ValueError(
                    f"'{info.name}' would have the size {min(sizes)}: a window is larger than what it reads"
                )


def _may_shrink(node: onnx.NodeProto) -> bool:
    """Whether a node's result may be smaller than nothing, by what inference reckons."""
    facts = FACTS.get((node.domain, node.op_type))
    return node.op_type == "Pad" or (facts is not None and facts.window)


def _is_within(message: str) -> bool:
    """Whether inference stumbled inside of what ONNX itself writes an op out as: that is no fault of the model."""
    ops = re.findall(r"\(op_type:(\w+)", message)
    return len(ops) > 1 and onnx.defs.has(ops[0]) and bool(onnx.defs.get_schema(ops[0]).has_function)  # type: ignore[attr-defined]


def _skeleton(
    graph: Graph, nodes: Sequence[Node], met: Mapping[int, Value], declared: set[int], constants: Mapping[int, Array]
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
    for value in met.values():
        if value.id not in produced:
            _declare_source(body, graph, value, constants)
    for node in nodes:
        if _is_large_constant(node):
            body.input.add(name=graph.result(node).name).type.CopyFrom(_constant_type(node))
            continue
        protos, made = _rule_nodes(graph, node)
        rule = (node.domain, node.op) in rules or _has_rule(graph, node)
        for output in () if rule and not declared and made is None else graph.node_outputs(node):
            found = rule and (made is None or (output is not None and output.name in made))
            if output is None or (found and output.id not in declared):
                continue
            proto = type_proto(output)
            if proto.WhichOneof("value"):
                body.value_info.add(name=output.name).type.CopyFrom(proto)
        body.node.extend(protos)
    return model


def _entered(graph: Graph, nodes: Iterable[Node]) -> Sequence[onnx.FunctionProto]:
    """The local functions that inference of these nodes goes into: none where none of them calls one, or where calls
    multiply beyond measure."""
    domains = {f.domain for f in graph.functions}
    if not domains or not any(n.domain in domains or any(bodies_of(n.attributes.values())) for n in nodes):
        return ()
    size, depth = expansion(graph.functions)
    return graph.functions if size <= _MOST_NODES and depth <= _MOST_CALLS else ()


def _is_long(graph: Graph, nodes: Sequence[Node], met: Mapping[int, Value]) -> bool:
    """Whether there are vectors of so many elements that onnx must not follow them one by one, as it does with data
    propagation even where it knows none of them."""
    if any(v.shape is not None and len(v.shape) == 1 and _exceeds(v.shape[0]) for v in met.values()):
        return True
    sizes = (_fixed(graph, v) for n in nodes if n.op in _SIZING for v in graph.node_inputs(n) if v is not None)
    return any(
        a is not None and a.dtype.kind in "iu" and a.size <= LIMIT and _exceeds(int(a.max(initial=0))) for a in sizes
    )


def _exceeds(dim: Dim) -> bool:
    return isinstance(dim, int) and dim > _LONGEST


def _fixed(graph: Graph, value: Value) -> Array | None:
    """The array of an initialiser; in files whose format has initialisers among the inputs, of those too."""
    return value.array if graph.ir_version < _SEPARATE or not graph.is_input(value) else None


def _declare_source(body: onnx.GraphProto, graph: Graph, value: Value, constants: Mapping[int, Array]) -> None:
    array = _integers(constants[value.id]) if value.id in constants else _fixed(graph, value)
    if array is not None and array.size <= _VALUES.get(array.dtype.kind, -1) and array.dtype.itemsize >= 4:
        known = np.asarray(array) if value.dtype is DType.UNDEFINED else np.asarray(array, value.dtype.numpy)
        tensor = numpy_helper.from_array(known, value.name)
        body.initializer.append(tensor)
        return
    proto = type_proto(value)
    if proto.WhichOneof("value"):
        body.input.add(name=value.name, type=proto)


def _is_large_constant(node: Node) -> bool:
    tensor = node.attributes.get("value") if (node.op, node.domain) == ("Constant", "") else None
    return tensor is not None and math.prod(tensor.t.dims) > LIMIT


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


def _rule_nodes(graph: Graph, node: Node) -> tuple[Sequence[onnx.NodeProto], set[str] | None]:
    """What inference is given for a node, and which of the node's outputs that makes; None: all that the op's own rule
    knows."""
    if has_stand_in(node.domain, node.op) and not _is_local(graph, node):
        protos = list(stand_in(graph, node))
        made = {name for proto in protos for name in proto.output}
        left = [v for v in graph.node_outputs(node) if v is not None and v.name not in made]
        if any(v.dtype is DType.UNDEFINED and graph.is_used(v) for v in left):  # inference knows that they are there
            protos.append(onnx.NodeProto(op_type="Unknown", domain=node.domain, output=[v.name for v in left]))
        return protos, made
    return [node_proto(graph, node)], None


def has_rule(graph: Graph, node: Node) -> bool:
    """Whether inference knows what the node makes: by a rule, or by going into the local function it calls."""
    return _has_rule(graph, node) or bool(_entered(graph, [node]))


def _has_rule(graph: Graph, node: Node) -> bool:
    """Of its own: a local function is gone into instead."""
    return not _is_local(graph, node) and (has_stand_in(node.domain, node.op) or _is_defined(node.op, node.domain))


def _is_local(graph: Graph, node: Node) -> bool:
    return any((f.domain, f.name) == (node.domain, node.op) for f in graph.functions)


@lru_cache(4096)
def _is_defined(op: str, domain: str) -> bool:
    return bool(onnx.defs.has(op, domain))


def _merged(old: Shape | None, new: Shape | None) -> Shape | None:
    if old is None or new is None or len(old) != len(new):
        return old if new is None else new

    def axis(a: Dim, b: Dim) -> Dim:
        if isinstance(b, int) or a is None:
            return b
        return a

    return tuple(axis(a, b) for a, b in zip(old, new))
