"""Quantisation regions: which tensors get a grid, which of them share one, and what stays float.

A *compute* op (Conv, Gemm …) reads a quantised input and a quantised weight, and its output is
quantised after the batch norm and ReLU that fuse with it. An *integer* op (Add, Concat, pools …) joins
where it stands between quantised ops; each of its inputs, and its output, has a grid of its own. A
*shared-scale* op (MaxPool, Reshape …) hands integers on, so the grid of what it reads is also that of
what it writes, which is not quantised again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from onnxslim.ir.graph import CAPTURE, DType, Graph, Node, Use, Value
from onnxslim.ir.op_facts import bias_slot, channel_axes, facts_of, weight_slot
from onnxslim.ir.ops import given_numbers, is_left_out, is_training
from onnxslim.targets import Target

__all__ = [
    "Regions", "Site", "Weight", "bias_fits", "cuts_at_zero", "find_regions", "fused_tail", "hands_on",
    "weight_axis",
]  # fmt: skip


@dataclass(frozen=True)
class Weight:
    """A constant weight: the uses that read it quantised, and its per-channel axis (None: per tensor)."""

    value: Value
    uses: tuple[Use, ...]
    axis: int | None


@dataclass(frozen=True)
class Site:
    """A place for one activation FakeQuant: the float value, and the uses that read its quantised form.

    `everywhere`: its producer's kernel writes integers, so that all uses and a graph output read them.
    """

    value: Value
    uses: tuple[Use, ...]
    everywhere: bool


@dataclass(frozen=True)
class Regions:
    """What can be quantised: `compute` and `integer` nodes, and per (node, reason) what cannot."""

    weights: tuple[Weight, ...]
    sites: tuple[Site, ...]
    compute: tuple[Node, ...]
    integer: tuple[Node, ...]
    refused: tuple[tuple[Node, str], ...]


def weight_axis(node: Node, weight: Value) -> int | None:
    """The axis of output channels of a compute node's weight; None where only one scale per tensor fits."""
    axes = channel_axes(node, len(weight.static_shape))
    return None if axes is None else axes[0]


def bias_fits(graph: Graph, node: Node) -> bool:
    """Whether a compute node's bias is there, and a constant that adds one number to each output channel.

    Gemm's C may be any shape that broadcasts to [M, N]; a column [M, 1] adds one to each row, which no kernel's
    bias does, even where M equals N.
    """
    slot, weight = bias_slot(node), graph.operand(node, weight_slot(node))
    bias = None if slot is None else graph.constant_of(graph.input(node, slot))
    axis = weight_axis(node, weight)
    if bias is None or axis is None or weight.shape is None or axis >= len(weight.shape):
        return False
    return bias.size == 1 or bias.shape[-1] == bias.size == weight.static_shape[axis]


def fused_tail(graph: Graph, node: Node) -> Value:
    """The value after what a kernel computes in one go: op [→ BatchNormalization] [→ Relu or Clip(0, ·)].

    A ReLU is the saturation of the quantised output, so its input needs no grid of its own.
    """
    value = graph.result(node)
    follower = _only_reader(graph, value)
    norm = follower is not None and follower.op == "BatchNormalization" and not is_training(graph, follower)
    if follower is not None and norm and _absorbs_norm(node):
        value = graph.result(follower)
        follower = _only_reader(graph, value)
    if follower is not None and cuts_at_zero(graph, follower):
        value = graph.result(follower)
    return value


def _absorbs_norm(node: Node) -> bool:
    """Whether a batch norm behind a layer can become part of it: it is linear, and has a bias to take the shift."""
    facts = facts_of(node)
    return facts.linear and bool(facts.biases)


def hands_on(graph: Graph, node: Node, target: Target) -> bool:
    """Whether a node hands its data on unchanged, so that one grid serves both sides.

    Padding must be with 0, or with values of the tensor itself; MaxPool must not give indices; Resize must repeat
    what it reads (mode nearest).
    """
    if node.kind not in (*target.shared_scale_ops, *target.through_float_ops):
        return False
    data = graph.input(node, 0)
    if data is None or data.array is not None or not _may_be_float(data):
        return False
    if node.op == "Resize":
        return str(node.attr("mode", "nearest")) == "nearest"
    if node.op == "Pad" and node.attr("mode", "constant") == "constant":
        fill = given_numbers(graph, node, "value", 2)
        return is_left_out(graph, node, "value", 2) or (fill is not None and not fill.any())
    return node.op != "MaxPool" or node.arity[1] == 1


def _may_be_float(value: Value) -> bool:
    return value.dtype in (DType.FLOAT, DType.UNDEFINED)


def find_regions(graph: Graph, target: Target, skip: Collection[int] = ()) -> Regions:
    """The quantisation regions of a float graph for one target. `skip` holds ids of nodes to leave in float."""
    return _Finder(graph, target, skip).find()


def _only_reader(graph: Graph, value: Value) -> Node | None:
    """The one node that reads a value in slot 0; None where there are others, or it is a graph output."""
    uses = graph.uses(value)
    return uses[0].node if len(uses) == 1 and uses[0].slot == 0 and not graph.is_output(value) else None


def cuts_at_zero(graph: Graph, node: Node) -> bool:
    """Whether a node is a Relu or a Clip(0, ·): what comes out is never negative, and 0 where it was cut."""
    if node.op != "Clip":
        return node.op == "Relu"
    lowest = given_numbers(graph, node, "min", 1)
    return lowest is not None and lowest.size == 1 and float(lowest.reshape(())) == 0.0


class _Finder:
    """One search: demands spread from compute ops until nothing changes, then sites are read off."""

    def __init__(self, graph: Graph, target: Target, skip: Collection[int]) -> None:
        self.graph, self.target, self.skip = graph, target, skip
        self.order = graph.nodes()
        self.refused: list[tuple[Node, str]] = []
        self.source: dict[int, int] = {}  # of what a shared-scale op writes: the value that it reads
        self.demanded: set[int] = set()  # sources that need a grid
        self.kernel_outputs: set[int] = set()  # values that a quantised kernel writes
        self.handing: set[int] = set()  # shared-scale ops

    def find(self) -> Regions:
        for node in self.order:
            if node.id not in self.skip and hands_on(self.graph, node, self.target):
                self.handing.add(node.id)
                read = self.graph.operand(node, 0).id
                self.source |= {v.id: read for v in self.graph.node_outputs(node) if v is not None}
        compute = [node for node in self.order if self._is_compute(node)]
        for node in compute:
            self._demand(node)
        integer: list[Node] = []
        ops = self.target.integer_ops
        candidates = [n for n in self.order if n.kind in ops and n.id not in self.skip]
        while fresh := self._candidates_between(candidates, {n.id for n in integer}):
            for node in fresh:
                self._demand(node)
            integer += fresh
        order = {node.id: place for place, node in enumerate(self.order)}
        integer.sort(key=lambda node: order[node.id])
        chosen = {node.id for node in compute + integer}
        self._explain(chosen)
        weights, sites = self._weights(compute), self._sites(chosen)
        return Regions(weights, sites, tuple(compute), tuple(integer), tuple(self.refused))

    # ------------------------------------------------------------------ who is quantised

    def _data_inputs(self, node: Node) -> list[Value]:
        """The inputs of a node that are activations: not constant (Gemm's and Conv's bias left out)."""
        slots = self.graph.node_inputs(node)
        read = slots[:2] if node.kind in self.target.quantized_ops else slots
        return [v for v in read if v is not None and v.array is None]

    def _is_compute(self, node: Node) -> bool:
        if node.kind not in self.target.quantized_ops:
            return False
        reason = self._obstacle(node)
        if reason is not None:
            self.refused.append((node, reason))
        return reason is None

    def _obstacle(self, node: Node) -> str | None:
        """Why a compute node cannot be quantised."""
        if node.id in self.skip:
            return "skipped as asked"
        for value in self.graph.node_inputs(node)[:2]:
            if value is not None and not _may_be_float(value):
                return f"'{value.name}' is {value.dtype.name.lower()}; only float32 is quantised"
        weight = self.graph.operand(node, weight_slot(node))
        if node.op != "MatMul" and self.graph.constant_of(weight) is None:
            return f"its weight '{weight.name}' is not a constant"
        if self.graph.constant_of(self.graph.operand(node, 0)) is not None:
            return "integer kernels take a constant as the second operand only"
        if node.op == "Gemm" and node.attr("alpha", 1.0) != 1.0:
            return "integer kernels need alpha = 1"
        plain = self.graph.input(node, 2) is None or (node.attr("beta", 1.0) == 1.0 and bias_fits(self.graph, node))
        if node.op == "Gemm" and not plain:
            return "integer kernels add a constant bias of one number a channel with beta = 1 only"
        return None

    def _outputs(self, node: Node) -> Value:
        return fused_tail(self.graph, node)

    def _demand(self, node: Node) -> None:
        for value in self._data_inputs(node):
            self.demanded.add(self._root(value.id))
        tail = self._outputs(node)
        self.kernel_outputs.add(tail.id)
        if node.kind not in self.target.float_output_ops:
            self.demanded.add(self._root(tail.id))

    def _candidates_between(self, candidates: list[Node], known: set[int]) -> list[Node]:
        """Integer ops whose output is demanded and whose inputs all come from, or can come from, integers."""
        demanded = {n.id: n for n in candidates if n.id not in known}
        hopeful = dict(demanded)
        wanted = {self._root(id) for id in self.demanded}
        for node in reversed(self.order):  # backwards: an op that feeds a hopeful one is wanted too
            if node.id in hopeful:
                if self._root(self._outputs(node).id) in wanted:
                    wanted.update(self._root(v.id) for v in self._data_inputs(node))
                else:
                    del hopeful[node.id]
        ready = {self._root(id) for id in self.demanded} | {self._root(id) for id in self.kernel_outputs}
        fresh: list[Node] = []
        for node in self.order:  # forwards: what it reads must be integers, or written by such a kernel
            if node.id in hopeful:
                inputs = [v for v in self.graph.node_inputs(node) if v is not None]
                data = self._data_inputs(node)
                if data and len(inputs) == len(data) and all(self._root(v.id) in ready for v in data):
                    ready.add(self._root(self._outputs(node).id))
                    fresh.append(node)
        return fresh

    def _root(self, id: int) -> int:
        """The value whose grid a value has: itself, or what shared-scale ops handed on."""
        while id in self.source:
            id = self.source[id]
        return id

    # ------------------------------------------------------------------ the answer

    def _sites(self, chosen: set[int]) -> tuple[Site, ...]:
        demanded = {self._root(id) for id in self.demanded}
        sites: list[Site] = []
        for value in self.graph.values():
            if value.id not in demanded or value.array is not None:
                continue
            everywhere = value.id in self.kernel_outputs
            direct = [use for use in self.graph.uses(value) if use.slot < CAPTURE]  # bodies keep reading floats
            uses = tuple(use for use in direct if everywhere or self._reads_integers(use, chosen))
            if uses or (everywhere and self.graph.is_output(value)):
                sites.append(Site(value, uses, everywhere))
        return tuple(sites)

    def _reads_integers(self, use: Use, chosen: set[int]) -> bool:
        return use.node.id in chosen or (use.node.id in self.handing and use.slot == 0)

    def _weights(self, compute: list[Node]) -> tuple[Weight, ...]:
        found: dict[int, tuple[Value, list[Use], list[int | None]]] = {}
        for node in compute:
            value = self.graph.operand(node, weight_slot(node))
            if self.graph.constant_of(value) is not None:
                _, uses, axes = found.setdefault(value.id, (value, [], []))
                uses.append(Use(node, weight_slot(node)))
                axes.append(weight_axis(node, value) if self.target.weight_per_channel else None)
        return tuple(
            Weight(value, tuple(uses), axes[0] if len(set(axes)) == 1 else None) for value, uses, axes in found.values()
        )

    def _explain(self, chosen: set[int]) -> None:
        """A reason for every op that has an integer kernel but stays float, and for ops without one in between."""
        told = chosen | {node.id for node, _ in self.refused}
        fused = {"Relu", "Clip", "BatchNormalization", "Identity", "Constant"}
        for node in self.order:
            if node.id in told or node.op in fused or node.id in self.handing:
                continue
            if node.id in self.skip:
                self.refused.append((node, "skipped as asked"))
            elif node.kind in self.target.integer_ops:
                self.refused.append((node, "not between quantised ops"))
            elif node.kind in self.target.float_by_choice:
                self.refused.append((node, f"{node.op} stays in float, which is faster than its integer kernel"))
            elif any(v is not None and _may_be_float(v) for v in self.graph.node_outputs(node)):
                self.refused.append((node, f"no integer kernel for {_described(node)} on target '{self.target.name}'"))


def _described(node: Node) -> str:
    """An op, and what about it no kernel takes where it is one that others of its kind take."""
    if node.op == "Resize":
        return f"Resize of mode '{node.attr('mode', 'nearest')}'"
    if node.op == "MaxPool":
        return "MaxPool with indices"
    return "Pad with another value than 0" if node.op == "Pad" else node.op
