"""The bodies of If, Loop and Scan as graphs of their own, to be looked at or rewritten like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from onnxslim.errors import ModelError
from onnxslim.ir.graph import Array, DType, Graph, Node, Shape, Value
from onnxslim.ir.onnx_io import body_proto, fill_body, node_proto
from onnxslim.ir.onnx_io.bodies import bodies_of, captured_names, free_names, local_names
from onnxslim.ir.shape_values import LIMIT
from onnxslim.ir.shapes import infer_shapes

__all__ = ["Body", "close_bodies", "count_nodes", "has_bodies", "open_bodies", "walk"]


@dataclass(frozen=True, eq=False)
class Body:
    """A body of a node of `around`, as a graph of its own.

    What it captures comes first in `graph`: as a constant where it is one (small, or read by this body alone), else as
    an input. outer: by the id in `graph`, the captured value of `around` and the array that was taken over. declared:
    the body's own inputs as the file types them; in `graph` they have the shapes that every call gives them.
    """

    node: Node
    attribute: str
    graph: Graph
    outer: dict[int, tuple[Value, Array | None]]
    declared: dict[int, tuple[DType, Shape | None]]


def has_bodies(node: Node) -> bool:
    """Whether a node has subgraphs: If, Loop, Scan and the like."""
    return any(a.HasField("g") or a.graphs for a in node.attributes.values())


def open_bodies(graph: Graph, node: Node, opset: int | None = None) -> list[Body]:
    """The node's bodies, in the order of its attributes. opset: that they are written in, if not the graph's."""
    if not has_bodies(node):
        return []
    return [
        _opened(graph, node, attribute.name, proto, opset)
        for attribute in node_proto(graph, node).attribute
        for proto in bodies_of([attribute])
    ]


def close_bodies(graph: Graph, node: Node, bodies: Sequence[Body]) -> None:
    """Puts bodies that were rewritten back in their places; the node captures what they still read."""
    protos: dict[str, list[onnx.GraphProto]] = {}
    for body in bodies:
        protos.setdefault(body.attribute, []).append(_closed(body))
    for name, found in protos.items():
        old = node.attributes[name]
        copy = onnx.AttributeProto(name=name, type=old.type, doc_string=old.doc_string or None)
        if old.HasField("g"):
            copy.g.CopyFrom(found[0])
        else:
            copy.graphs.extend(found)
        graph.set_attribute(node, name, copy)
    graph.set_captures(node, {name: graph.value(name) for name in captured_names(node.attributes.values())})
    graph.reserve_names(local_names(node.attributes.values()))


def walk(graph: Graph) -> Iterator[Graph]:
    """The graph and all bodies in it, at any depth, each before those inside of it."""
    yield graph
    for node in graph.nodes():
        for body in open_bodies(graph, node):
            yield from walk(body.graph)


def count_nodes(graph: Graph) -> int:
    """Nodes of the graph and of all bodies in it."""
    waiting = [body for node in graph.nodes() for body in bodies_of(node.attributes.values())]
    count = len(graph.nodes())
    while waiting:
        body = waiting.pop()
        count += len(body.node)
        waiting += [inner for node in body.node for inner in bodies_of(node.attribute)]
    return count


def _opened(around: Graph, node: Node, attribute: str, proto: onnx.GraphProto, opset: int | None) -> Body:
    graph = around.body(proto.name)
    if opset is not None:
        graph.opsets[""] = opset
    outer: dict[int, tuple[Value, Array | None]] = {}
    for name in free_names(proto):
        value = around.value(name)
        twin = graph.add_value(name, value.dtype, value.shape, role=value.role, owner=value.owner)
        array = around.constant_of(value)
        if array is not None and (array.size <= LIMIT or len(around.uses(value)) == 1):
            graph.set_array(twin, array)
        else:
            graph.feed(twin)
            twin.type_proto = value.type_proto
        outer[twin.id] = value, twin.array
    fill_body(graph, proto)
    own = [v for v in graph.inputs if v.id not in outer]
    body = Body(node, attribute, graph, outer, {v.id: (v.dtype, v.shape) for v in own})
    _type_inputs(around, body, own)
    return body


def _closed(body: Body) -> onnx.GraphProto:
    graph = body.graph
    kept, found = set(), {value.id: value for value in graph.values()}
    for id, (_, array) in body.outer.items():
        value = found.get(id)
        if value is None:
            continue
        if value.array is array:
            kept.add(id)
        else:  # a pass has given it other contents: it is the body's own now
            graph.rename(value, graph.fresh_name(value.name))
    inner = {id: (found[id].dtype, found[id].shape) for id in body.declared}
    for id, declared in body.declared.items():
        found[id].dtype, found[id].shape = declared
    proto = body_proto(graph, kept)
    for id, typed in inner.items():
        found[id].dtype, found[id].shape = typed
    return proto


def _type_inputs(around: Graph, body: Body, own: Sequence[Value]) -> None:
    """Gives the body's inputs the shapes that hold in every call, whatever the file declares: of a state that is
    carried from one iteration to the next, what it begins with, as far as the body gives it back so."""
    node, graph = body.node, body.graph
    if node.domain or node.op not in ("Loop", "Scan"):
        for value in own:
            graph.clear_shape(value)
        return
    first, states, sliced = _calls(around, node)
    shapes: list[Shape | None] = [*first, *(None if v is None else v.shape for v in states)]
    shapes += [_slice(v, axis) for v, axis in sliced]
    given = [*first, *states, *(v for v, _ in sliced)]
    for value, shape, source in zip(own, shapes, given):
        if value.dtype is DType.UNDEFINED and isinstance(source, Value):
            value.dtype = source.dtype
        _set_shape(graph, value, shape)
    back = graph.outputs[1 if node.op == "Loop" else 0 :]
    carried = list(zip(own[len(first) :], back))[: len(states)]
    for _ in range(1 + sum(len(v.shape or ()) + 1 for v, _ in carried)):
        for value in graph.values():
            if graph.producer(value) is not None:
                graph.clear_shape(value)
        try:
            infer_shapes(graph)
        except ModelError:
            for value, _ in carried:
                graph.clear_shape(value)
            return
        changed = False
        for value, result in carried:
            shape = _common(value.shape, result.shape)
            if shape != value.shape:
                _set_shape(graph, value, shape)
                changed = True
        if not changed:
            return


def _set_shape(graph: Graph, value: Value, shape: Shape | None) -> None:
    if shape is None:
        graph.clear_shape(value)
    else:
        graph.set_type(value, shape=shape)


def _common(a: Shape | None, b: Shape | None) -> Shape | None:
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if x == y else None for x, y in zip(a, b))


def _slice(value: Value | None, axis: int) -> Shape | None:
    """Of what a Scan goes through, one step."""
    if value is None or value.shape is None or not value.shape:
        return None
    axis %= len(value.shape)
    return value.shape[:axis] + value.shape[axis + 1 :]


def _calls(around: Graph, node: Node) -> tuple[list[Shape | None], list[Value | None], list[tuple[Value | None, int]]]:
    """What a Loop or a Scan gives its body: shapes of its own counters, the first states, and what is sliced."""
    inputs = around.node_inputs(node)
    if node.op == "Loop":
        return [(), ()], inputs[2:], []
    if 0 < around.opset < 9:  # which has a batch axis
        return [], [None] * len(inputs), []
    count = int(node.attr("num_scan_inputs", 0))
    axes = list(node.attr("scan_input_axes") or [0] * count)
    return [], inputs[: len(inputs) - count], list(zip(inputs[len(inputs) - count :], axes))
