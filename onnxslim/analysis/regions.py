"""Quantisation regions: which tensors get a grid, which of them share one, and what stays float.

A *compute* op (Conv, Gemm …) reads a quantised input and a quantised weight, and its output is
quantised after the batch norm and ReLU that fuse with it. An *integer* op (Add, pools …) joins
where it stands between quantised ops. A *shared-scale* op (Concat, MaxPool, Reshape …) hands
integers on, so the values around it form one group with one grid, quantised at the group's
sources only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from onnxslim.graph import CAPTURE, DType, Graph, Node, Use, Value
from onnxslim.ops import given_numbers, is_left_out, is_training
from onnxslim.targets import Target

__all__ = [
    "Group", "Regions", "Site", "Weight", "cuts_at_zero", "find_regions", "fused_tail", "handed_data", "hands_on",
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
class Group:
    """Sites that share one grid."""

    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Regions:
    """What can be quantised: `compute` and `integer` nodes, and per (node, reason) what cannot."""

    weights: tuple[Weight, ...]
    groups: tuple[Group, ...]
    compute: tuple[Node, ...]
    integer: tuple[Node, ...]
    refused: tuple[tuple[Node, str], ...]


def weight_axis(node: Node, weight: Value) -> int | None:
    """The axis of output channels of a compute node's weight; None where only one scale per tensor fits."""
    rank = len(weight.static_shape)
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose":
        return 1 if node.attr("group", 1) == 1 else None
    if node.op == "Gemm":
        return 0 if node.attr("transB", 0) else 1
    return 1 if rank == 2 else None


def fused_tail(graph: Graph, node: Node) -> Value:
    """The value after what a kernel computes in one go: op [→ BatchNormalization] [→ Relu or Clip(0, ·)].

    A ReLU is the saturation of the quantised output, so its input needs no grid of its own.
    """
    value = graph.result(node)
    follower = _only_reader(graph, value)
    norm = follower is not None and follower.op == "BatchNormalization" and not is_training(graph, follower)
    if follower is not None and norm and node.op in ("Conv", "ConvTranspose", "Gemm"):
        value = graph.result(follower)
        follower = _only_reader(graph, value)
    if follower is not None and cuts_at_zero(graph, follower):
        value = graph.result(follower)
    return value


def hands_on(graph: Graph, node: Node, target: Target) -> bool:
    """Whether a node hands its data on unchanged, so that one grid serves both sides.

    Padding must be with 0, or with values of the tensor itself; MaxPool must not give indices.
    """
    if node.op not in target.shared_scale_ops or node.domain:
        return False
    if any(v is None or v.array is not None or not _may_be_float(v) for v in handed_data(graph, node)):
        return False
    if node.op == "MaxPool":
        return node.arity[1] == 1
    if node.op != "Pad" or node.attr("mode", "constant") != "constant":
        return True
    fill = given_numbers(graph, node, "value", 2)
    return is_left_out(graph, node, "value", 2) or (fill is not None and not fill.any())


def handed_data(graph: Graph, node: Node) -> list[Value | None]:
    """The inputs that a shared-scale op hands on: all of Concat, the first of others."""
    inputs = graph.node_inputs(node)
    return inputs if node.op == "Concat" else inputs[:1]


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
    return lowest is not None and float(lowest) == 0.0


class _Finder:
    """One search: demands spread from compute ops until nothing changes, then groups are read off."""

    def __init__(self, graph: Graph, target: Target, skip: Collection[int]) -> None:
        self.graph, self.target, self.skip = graph, target, skip
        self.order = graph.nodes()
        self.refused: list[tuple[Node, str]] = []
        self.parent: dict[int, int] = {}  # union-find over value ids: one grid a class
        self.demanded: set[int] = set()  # class roots that need a grid
        self.kernel_outputs: set[int] = set()  # values that a quantised kernel writes
        self.handed_on: set[int] = set()  # values that a shared-scale op writes

    def find(self) -> Regions:
        for node in self.order:
            if node.id not in self.skip and hands_on(self.graph, node, self.target):
                self._join(node)
        compute = [node for node in self.order if self._is_compute(node)]
        for node in compute:
            self._demand(node)
        integer: list[Node] = []
        ops = self.target.integer_ops
        candidates = [n for n in self.order if n.op in ops and not n.domain and n.id not in self.skip]
        while fresh := self._candidates_between(candidates, {n.id for n in integer}):
            for node in fresh:
                self._demand(node)
            integer += fresh
        order = {node.id: place for place, node in enumerate(self.order)}
        integer.sort(key=lambda node: order[node.id])
        chosen = {node.id for node in compute + integer}
        self._explain(chosen)
        weights, groups = self._weights(compute), self._groups(chosen)
        return Regions(weights, groups, tuple(compute), tuple(integer), tuple(self.refused))

    # ------------------------------------------------------------------ who is quantised

    def _data_inputs(self, node: Node) -> list[Value]:
        """The inputs of a node that are activations: not constant (Gemm's and Conv's bias left out)."""
        slots = self.graph.node_inputs(node)
        read = slots[:2] if node.op in self.target.quantized_ops else slots
        return [v for v in read if v is not None and v.array is None]

    def _is_compute(self, node: Node) -> bool:
        if node.op not in self.target.quantized_ops or node.domain:
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
        weight = self.graph.operand(node, 1)
        if node.op != "MatMul" and self.graph.constant_of(weight) is None:
            return f"its weight '{weight.name}' is not a constant"
        if node.op == "Gemm" and node.attr("alpha", 1.0) != 1.0:
            return "integer kernels need alpha = 1"
        if node.op == "Gemm" and self.graph.input(node, 2) is not None:
            bias = self.graph.operand(node, 2)
            if node.attr("beta", 1.0) != 1.0 or self.graph.constant_of(bias) is None:
                return "integer kernels add a constant bias with beta = 1 only"
        return None

    def _outputs(self, node: Node) -> Value:
        return fused_tail(self.graph, node)

    def _demand(self, node: Node) -> None:
        for value in self._data_inputs(node):
            self.demanded.add(self._root(value.id))
        tail = self._outputs(node)
        self.kernel_outputs.add(tail.id)
        if node.op not in self.target.float_output_ops:
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
                constants_allowed = node.op == "ReduceMean"
                if (
                    data
                    and (constants_allowed or len(inputs) == len(data))
                    and all(self._root(v.id) in ready for v in data)
                ):
                    ready.add(self._root(self._outputs(node).id))
                    fresh.append(node)
        return fresh

    # ------------------------------------------------------------------ one grid for several values

    def _join(self, node: Node) -> None:
        data = handed_data(self.graph, node)
        outputs = [v for v in self.graph.node_outputs(node) if v is not None]
        members = [v.id for v in data if v is not None] + [v.id for v in outputs]
        self.handed_on.update(v.id for v in outputs)
        for id in members[1:]:
            a, b = sorted((self._root(members[0]), self._root(id)))
            if a != b:
                self.parent[b] = a

    def _root(self, id: int) -> int:
        while id in self.parent:
            id = self.parent[id]
        return id

    # ------------------------------------------------------------------ the answer

    def _groups(self, chosen: set[int]) -> tuple[Group, ...]:
        demanded = {self._root(id) for id in self.demanded}
        sites: dict[int, list[Site]] = {}
        for value in self.graph.values():
            root = self._root(value.id)
            if root not in demanded or value.array is not None or value.id in self.handed_on:
                continue
            everywhere = value.id in self.kernel_outputs
            direct = [use for use in self.graph.uses(value) if use.slot < CAPTURE]  # bodies keep reading floats
            uses = tuple(use for use in direct if everywhere or self._reads_integers(use, chosen))
            if uses or (everywhere and self.graph.is_output(value)):
                sites.setdefault(root, []).append(Site(value, uses, everywhere))
        return tuple(Group(tuple(found)) for found in sites.values())

    def _reads_integers(self, use: Use, chosen: set[int]) -> bool:
        node = use.node
        if node.id in chosen:
            return True
        return node.op in self.target.shared_scale_ops and (use.slot == 0 or node.op == "Concat")

    def _weights(self, compute: list[Node]) -> tuple[Weight, ...]:
        found: dict[int, tuple[Value, list[Use], list[int | None]]] = {}
        for node in compute:
            for slot in (0, 1):
                value = self.graph.operand(node, slot)
                if self.graph.constant_of(value) is not None:
                    _, uses, axes = found.setdefault(value.id, (value, [], []))
                    uses.append(Use(node, slot))
                    per_channel = self.target.weight_per_channel and slot == 1
                    axes.append(weight_axis(node, value) if per_channel else None)
        return tuple(
            Weight(value, tuple(uses), axes[0] if len(set(axes)) == 1 else None) for value, uses, axes in found.values()
        )

    def _explain(self, chosen: set[int]) -> None:
        """A reason for every op that has an integer kernel but stays float, and for ops without one in between."""
        told = chosen | {node.id for node, _ in self.refused}
        fused = {"Relu", "Clip", "BatchNormalization", "Identity", "Constant"}
        for node in self.order:
            if node.id in told or node.op in fused or node.op in self.target.shared_scale_ops:
                continue
            if node.id in self.skip:
                self.refused.append((node, "skipped as asked"))
            elif node.op in self.target.integer_ops:
                self.refused.append((node, "not between quantised ops"))
            elif any(v is not None and _may_be_float(v) for v in self.graph.node_outputs(node)):
                self.refused.append((node, f"no integer kernel for {node.op} on target '{self.target.name}'"))
