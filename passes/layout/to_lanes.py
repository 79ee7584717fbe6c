"""`ToLanes`: lays the images of a batch side by side in the vector lanes, the channels outermost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.dialect import FAKE_QUANT, LANES
from onnxslim.ir.graph import DType, Graph, Node, Value
from onnxslim.ir.op_facts import FACTS, OpFacts
from onnxslim.ir.ops import axes_of, axis_of
from onnxslim.ir.rewrite import Context, Outcome, Pass, Refusal
from passes.layout.builder import TypedBuilder
from passes.layout.geometry import geometry_attributes

__all__ = ["RULES", "ToLanes"]


@dataclass(frozen=True)
class ToLanes(Pass):
    """x [N, C, H, W] → [C, N·H·W] in the order [C, N/lanes, H, W, lanes], from each convolution on.

    A pointwise convolution is then one matrix product whatever the number of channels, a depthwise one
    runs over images instead of channels, and a batch norm reads rows. Elementwise ops, norms, pools,
    concatenations and per-channel fake-quant follow; where another op reads a value, it is put back.

    nodes: ids of the nodes that may change (None: all). Refuses a batch that is no multiple of `lanes`
    and convolutions that are not over two axes. Contract: what reordering float32 sums explains.
    """

    lanes: int = 16
    nodes: frozenset[int] | None = None
    name: ClassVar[str] = "to_lanes"

    def run(self, graph: Graph, context: Context) -> Outcome:
        builder = _LaneBuilder(graph, self.lanes)
        refused = []
        done: list[Node] = []
        for node in graph.nodes():
            rule = RULES.get((node.domain, node.op))
            if rule is None or (self.nodes is not None and node.id not in self.nodes):
                continue
            if node.op not in _ANCHORS and not builder.touches(node):
                continue
            if rule(builder, node):
                done.append(node)
            elif node.op in _ANCHORS or builder.touches(node):
                refused.append(Refusal(str(node), f"stays in its own layout: {node.op} of {_shapes(graph, node)}"))
        builder.finish(done)
        return Outcome(len(done), tuple(refused))


def _shapes(graph: Graph, node: Node) -> str:
    return ", ".join(str(v.shape) for v in graph.node_inputs(node) if v is not None)


class _LaneBuilder(TypedBuilder):
    """The values in lanes so far, [C, P], P = N·H·W; `in_lanes` maps the plain one's id to it."""

    def __init__(self, graph: Graph, lanes: int) -> None:
        super().__init__(graph)
        self.lanes = lanes
        self.in_lanes: dict[int, Value] = {}
        self.plain: dict[int, Value] = {}  # of nodes that give a plain value in another way

    def touches(self, node: Node) -> bool:
        return any(v is not None and v.id in self.in_lanes for v in self.graph.node_inputs(node))

    def fits(self, value: Value | None) -> bool:
        """Whether a value is, or can be, in lanes: a float activation [N, C, H, W] of full blocks of images."""
        if value is None:
            return False
        if value.id in self.in_lanes:
            return True
        shape = value.shape
        if shape is None or len(shape) != 4 or value.array is not None or value.dtype is not DType.FLOAT:
            return False
        return all(isinstance(d, int) for d in shape) and value.static_shape[0] % self.lanes == 0

    def of(self, value: Value) -> Value:
        """A value that fits, in lanes."""
        if value.id not in self.in_lanes:
            n, c, h, w = value.static_shape
            # Images into the lanes, then channels outermost: ONNX Runtime moves both faster than all axes at once.
            blocks = self.cut(value, [n // self.lanes, self.lanes, c * h * w], "blocks")
            lanes = self.transpose(blocks, [0, 2, 1], name=f"{value.name}/lanes")
            rows = self.cut(lanes, [n // self.lanes, c, h * w * self.lanes], "rows")
            turned = self.transpose(rows, [1, 0, 2], name=f"{value.name}/channels")
            self.in_lanes[value.id] = self.cut(turned, [c, n * h * w], "in_lanes")
        return self.in_lanes[value.id]

    def cut(self, value: Value, shape: Sequence[int], name: str) -> Value:
        """The value in another shape, named after it."""
        return self.reshape(value, *shape, name=f"{value.name}/{name}")

    def flat(self, value: Value) -> list[int]:
        """The shape in lanes of [N, C, H, W]."""
        n, c, h, w = value.static_shape
        return [c, n * h * w]

    def put(self, old: Value, new: Value) -> bool:
        """`new`, [C, P], is `old` in lanes."""
        self.in_lanes[old.id] = new
        return True

    def hand_over(self, old: Node, slot: int, new: Node) -> None:
        """A further output of the old node is the new node's from now on, under its name."""
        value = self.graph.node_outputs(old)[slot] if slot < old.arity[1] else None
        if value is not None:
            twin = self.graph.result(new, slot)
            self.graph.set_type(twin, value.dtype, value.shape)
            self.plain[value.id] = twin

    def finish(self, done: Sequence[Node]) -> None:
        """Nodes that stay plain read plain values again; the old nodes of the others go."""
        graph, gone = self.graph, {node.id for node in done}
        for node in done:
            for value in graph.node_outputs(node):
                if value is None:
                    continue
                outside = graph.is_output(value) or any(u.node.id not in gone for u in graph.uses(value))
                name, role, owner = value.name, value.role, value.owner
                if outside and value.id not in self.plain:
                    self.plain[value.id] = self._back(value)
                if value.id in self.plain:
                    new = self.plain[value.id]
                    graph.replace_uses(value, new, only=[u for u in graph.uses(value) if u.node.id not in gone])
                    if graph.is_output(value):
                        graph.replace_uses(value, new)
                    elif value.id not in self.in_lanes:  # statistics keep the name that the update knows
                        graph.rename(value, graph.fresh_name(f"{name}/old"))
                        graph.rename(new, name)
                    graph.set_role(new, role, owner)
        for node in reversed(done):
            graph.remove_node(node)

    def _back(self, value: Value) -> Value:
        n, c, h, w = value.static_shape
        rows = self.cut(self.in_lanes[value.id], [c, n // self.lanes, h * w * self.lanes], "rows")
        turned = self.transpose(rows, [1, 0, 2], name=f"{value.name}/blocks")
        lanes = self.cut(turned, [n // self.lanes, c * h * w, self.lanes], "lanes")
        plain = self.transpose(lanes, [0, 2, 1], name=f"{value.name}/plain")
        return self.cut(plain, [n, c, h, w], "images")


# ---------------------------------------------------------------------- rules: True where the node went into lanes


def _conv(r: _LaneBuilder, node: Node) -> bool:
    graph = r.graph
    x, w = graph.operand(node, 0), graph.operand(node, 1)
    y, bias = graph.result(node), graph.input(node, 2)
    if not (r.fits(x) and r.fits(y)) or len(w.static_shape) != 4:
        return False
    attributes = geometry_attributes(graph, node, r.lanes)
    shape = r.flat(y)
    lanes = r.op("Conv", r.of(x), w, name=f"{y.name}/in_lanes", shape=shape, domain=LANES, **attributes)
    if bias is not None:
        column = r.cut(bias, [shape[0], 1], "column")
        lanes = r.op("Add", lanes, column, name=f"{y.name}/biased", shape=shape)
    return r.put(y, lanes)


def _batch_norm(r: _LaneBuilder, node: Node) -> bool:
    """Over [1, C, P], where a channel is a row."""
    graph = r.graph
    x, y = graph.operand(node, 0), graph.result(node)
    if not r.fits(x):
        return False
    lanes = r.of(x)
    rows = r.cut(lanes, [1, *lanes.static_shape], "rows")
    inputs = [rows, *graph.node_inputs(node)[1:]]
    names = [f"{y.name}/rows"] + [None if v is None else f"{v.name}/of_rows" for v in graph.node_outputs(node)[1:]]
    made = graph.add_node("BatchNormalization", inputs, names, node.attributes, name=f"{node.name}/rows")
    graph.set_type(graph.result(made), DType.FLOAT, rows.shape)
    for slot in range(1, node.arity[1]):
        r.hand_over(node, slot, made)
    return r.put(y, r.cut(graph.result(made), lanes.static_shape, "in_lanes"))


def _unary(r: _LaneBuilder, node: Node) -> bool:
    """Each element for itself, with scalars or constants as further inputs: bounds, scales, zero points."""
    graph = r.graph
    x, y = graph.operand(node, 0), graph.result(node)
    others = graph.node_inputs(node)[1:]
    if y.dtype is not DType.FLOAT or any(v is not None and v.shape not in ((), (1,)) for v in others[:2]):
        return False
    lanes = r.of(x)
    attributes = {k: v for k, v in node.attributes.items() if k != "axis"}
    shape = lanes.static_shape
    made = r.op(node.op, lanes, *others, name=f"{y.name}/in_lanes", shape=shape, domain=node.domain, **attributes)
    return r.put(y, made)


def _broadcast(r: _LaneBuilder, node: Node) -> bool:
    """Operands of the same size, one value a channel, one a channel and image, or one."""
    graph = r.graph
    y, inputs = graph.result(node), [v for v in graph.node_inputs(node) if v is not None]
    if not r.fits(y):
        return False
    full = y.static_shape
    shape = r.flat(y)
    kinds = [_kind(r, value, full) for value in inputs]
    if "other" in kinds:
        return False
    by_image = "image" in kinds
    blocks = [full[1], full[0] // r.lanes, full[2] * full[3], r.lanes]
    found = []
    for value, kind in zip(inputs, kinds):
        if kind == "full":
            found.append(r.cut(r.of(value), blocks if by_image else shape, "operand"))
        elif kind == "image":
            found.append(r.cut(r.of(value), [shape[0], blocks[1], 1, r.lanes], "by_image"))
        elif kind == "channel":
            found.append(r.cut(value, [shape[0], 1, 1, 1] if by_image else [shape[0], 1], "column"))
        else:
            found.append(r.cut(value, [1], "scalar"))
    made = r.op(node.op, *found, name=f"{y.name}/in_lanes", shape=blocks if by_image else shape, **node.attributes)
    return r.put(y, r.cut(made, shape, "in_lanes"))


def _kind(r: _LaneBuilder, value: Value, full: tuple[int, ...]) -> str:
    """How an operand spreads over [N, C, H, W]."""
    size = value.shape
    if size is None or not all(isinstance(d, int) for d in size):
        return "other"
    if size == full and r.fits(value):
        return "full"
    if size == (*full[:2], 1, 1) and r.fits(value):
        return "image"
    if math.prod(value.static_shape) == 1:
        return "one"
    return "channel" if (1,) * (4 - len(size)) + size == (1, full[1], 1, 1) else "other"


def _average(r: _LaneBuilder, node: Node) -> bool:
    """The mean over all pixels: [C, N], which is [N, C, 1, 1] in lanes."""
    graph = r.graph
    x, y = graph.operand(node, 0), graph.result(node)
    if node.op == "ReduceMean" and axes_of(graph, node, 4) != (2, 3):
        return False
    n, c, h, w = x.static_shape
    blocks = r.cut(r.of(x), [c, n // r.lanes, h * w, r.lanes], "blocks")
    means = r.op(
        "ReduceMean", blocks, r.const([2]), name=f"{y.name}/means", shape=[c, n // r.lanes, r.lanes], keepdims=0
    )
    lanes = r.cut(means, [c, n], "in_lanes")
    if len(y.static_shape) == 4:
        return r.put(y, lanes)
    r.plain[y.id] = r.transpose(lanes, [1, 0], name=f"{y.name}/plain")
    return True


def _flatten(r: _LaneBuilder, node: Node) -> bool:
    """[N, C, 1, 1] → [N, C] is a transposition of [C, N]."""
    graph = r.graph
    x, y = graph.operand(node, 0), graph.result(node)
    if y.shape != x.static_shape[:2] or x.id not in r.in_lanes:
        return False
    lanes = r.of(x)
    r.plain[y.id] = r.transpose(lanes, [1, 0], name=f"{y.name}/plain")
    return True


def _over_all(r: _LaneBuilder, node: Node) -> bool:
    """One number of all elements, whatever their order: what observers ask for."""
    graph = r.graph
    x, y = graph.operand(node, 0), graph.result(node)
    axes = axes_of(graph, node, 4)
    if axes is None or len(axes) < 4 or y.shape != ():
        return False
    r.plain[y.id] = r.op(node.op, r.of(x), name=f"{y.name}/in_lanes", shape=(), keepdims=0)
    return True


def _concat(r: _LaneBuilder, node: Node) -> bool:
    graph = r.graph
    y, inputs = graph.result(node), graph.node_inputs(node)
    if axis_of(node, 4, 0) != 1 or not r.fits(y) or not all(r.fits(v) for v in inputs):
        return False
    shape = r.flat(y)
    return r.put(y, r.op("Concat", *(r.of(v) for v in inputs if v), name=f"{y.name}/in_lanes", shape=shape, axis=0))


def _max_pool(r: _LaneBuilder, node: Node) -> bool:
    graph = r.graph
    x, y = graph.operand(node, 0), graph.result(node)
    if node.arity[1] > 1 or node.attr("ceil_mode", 0) or node.attr("storage_order", 0) or not r.fits(y):
        return False
    attributes = geometry_attributes(graph, node, r.lanes)
    shape = r.flat(y)
    return r.put(y, r.op("MaxPool", r.of(x), name=f"{y.name}/in_lanes", shape=shape, domain=LANES, **attributes))


def _keeps_floats(facts: OpFacts) -> bool:
    return facts.elementwise == "broadcast" and not facts.discrete


_ANCHORS = ("Conv",)
RULES: dict[tuple[str, str], Callable[[_LaneBuilder, Node], bool]] = {
    ("", "Conv"): _conv,
    ("", "BatchNormalization"): _batch_norm,
    ("", "Concat"): _concat,
    ("", "Flatten"): _flatten,
    ("", "GlobalAveragePool"): _average,
    ("", "MaxPool"): _max_pool,
    ("", "ReduceMax"): _over_all,
    ("", "ReduceMean"): _average,
    ("", "ReduceMin"): _over_all,
    ("", "Reshape"): _flatten,
    ("", "Squeeze"): _flatten,
    FAKE_QUANT: _unary,
    ("", "Clip"): _unary,
    **{key: _unary for key, facts in FACTS.items() if facts.elementwise == "unary" and not facts.discrete},
    **{("", op): _broadcast for (domain, op), facts in FACTS.items() if not domain and _keeps_floats(facts)},
}
