"""`Graph`: a model as one bipartite networkx graph, and the only place that edits it.

Vertices are `Node`s (an op application) and `Value`s (a tensor), keyed by integer id; an edge's
key is the slot it fills. A subgraph body's captured values are edges too, in slots from `CAPTURE`
on. Ids grow in file order, and `nodes()` keeps that order wherever the topology allows it, so
reading and writing a model preserves its layout and equal inputs give equal bytes.

Passes read structure through `view` (a frozen networkx graph) or the accessors here, and edit
through methods of `Graph` only; each edit is journalled, so that a verifier can check what a
pass touched instead of everything.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import networkx as nx
import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from onnxslim.errors import ModelError

__all__ = ["CAPTURE", "Array", "DType", "Dim", "Graph", "Node", "Role", "Shape", "Use", "Value"]

Array: TypeAlias = npt.NDArray[Any]
Dim: TypeAlias = int | str | None
Shape: TypeAlias = tuple[Dim, ...]

CAPTURE = 1 << 20
"""First slot of the values that an If/Loop/Scan body captures from outside."""


class DType(IntEnum):
    """ONNX element types (TensorProto.DataType)."""

    UNDEFINED = 0
    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    UINT16 = 4
    INT16 = 5
    INT32 = 6
    INT64 = 7
    STRING = 8
    BOOL = 9
    FLOAT16 = 10
    DOUBLE = 11
    UINT32 = 12
    UINT64 = 13
    COMPLEX64 = 14
    COMPLEX128 = 15
    BFLOAT16 = 16
    FLOAT8E4M3FN = 17
    FLOAT8E4M3FNUZ = 18
    FLOAT8E5M2 = 19
    FLOAT8E5M2FNUZ = 20
    UINT4 = 21
    INT4 = 22
    FLOAT4E2M1 = 23
    FLOAT8E8M0 = 24
    UINT2 = 25
    INT2 = 26

    @classmethod
    def of(cls, array: Array) -> DType:
        """The ONNX type of a numpy array (object arrays are strings)."""
        return _code(array.dtype)

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy type that holds this one (ml_dtypes for bfloat16, float8 and sub-byte types)."""
        return _numpy(self)

    @property
    def is_float(self) -> bool:
        return self in (DType.FLOAT, DType.FLOAT16, DType.DOUBLE, DType.BFLOAT16)


@cache
def _code(dtype: np.dtype[Any]) -> DType:
    return DType.STRING if dtype.kind in "OSU" else DType(helper.np_dtype_to_tensor_dtype(dtype))


@cache
def _numpy(dtype: DType) -> np.dtype[Any]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(int(dtype)))


class Role(Enum):
    """What a value is for; state that follows a parameter also names it as `owner`."""

    ACTIVATION = "activation"
    CONSTANT = "constant"
    PARAMETER = "parameter"
    STATISTIC = "statistic"
    SCALE = "scale"
    MOMENT = "moment"
    GRADIENT = "gradient"


@dataclass(slots=True, eq=False)
class Value:
    """A tensor: `shape` has ints, symbols or None per axis, and is None where the rank is unknown.

    `array` is the payload of an initialiser (read-only, possibly memory-mapped), `sparse` that of a
    sparse one, which is only carried through.
    """

    id: int
    name: str
    dtype: DType = DType.UNDEFINED
    shape: Shape | None = None
    array: Array | None = None
    role: Role = Role.ACTIVATION
    owner: str = ""
    type_proto: onnx.TypeProto | None = None  # kept for sequences, optionals and maps
    doc: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    sparse: onnx.SparseTensorProto | None = None
    extra: onnx.TensorProto | None = None  # an initialiser's own doc string and metadata, carried through

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape, every axis known; raises ModelError naming the value otherwise."""
        if self.shape is None or not all(isinstance(d, int) for d in self.shape):
            raise ModelError(f"Value '{self.name}' needs a static shape, but has {self.shape}")
        return tuple(d for d in self.shape if isinstance(d, int))


@dataclass(slots=True, eq=False)
class Node:
    """One application of an op. `inputs` and `outputs` are found through the graph."""

    id: int
    op: str
    name: str = ""
    domain: str = ""
    attributes: dict[str, onnx.AttributeProto] = field(default_factory=dict)
    arity: tuple[int, int] = (0, 0)  # slots, empty ones included
    doc: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    overload: str = ""
    extra: onnx.NodeProto | None = None  # fields that have no place here, carried through

    def attr(self, name: str, default: Any = None) -> Any:
        """The attribute as a Python value (bytes decoded to str where they are text)."""
        proto = self.attributes.get(name)
        if proto is None:
            return default
        value = helper.get_attribute_value(proto)
        if isinstance(value, bytes):
            return value.decode("utf-8", "surrogateescape")
        if isinstance(value, list) or type(value).__name__ == "RepeatedScalarContainer":
            return [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else v for v in value]
        return value

    def __str__(self) -> str:
        kind = f"{self.domain}.{self.op}" if self.domain else self.op
        return f"node '{self.name}' ({kind})"


class Use(NamedTuple):
    """A place that reads a value."""

    node: Node
    slot: int


def _attribute(name: str, value: Any) -> onnx.AttributeProto:
    if isinstance(value, onnx.AttributeProto):
        return value
    return helper.make_attribute(name, value)


class Graph:
    """A model. See the module's docstring for the representation."""

    def __init__(self, name: str = "graph", opset: int = 18, ir_version: int = 9) -> None:
        self.name = name
        self.doc = ""
        self.ir_version = ir_version
        self.opsets: dict[str, int] = {"": opset}
        self.metadata: dict[str, str] = {}
        self.functions: list[onnx.FunctionProto] = []
        self.header = onnx.ModelProto()  # producer, version, training info: carried through untouched
        self.annotations: list[tuple[int, tuple[tuple[str, int], ...]]] = []  # quantisation parameters, by ids
        self._net: nx.MultiDiGraph[int] = nx.MultiDiGraph()
        self._items: dict[int, Node | Value] = {}
        self._by_name: dict[str, int] = {}
        self._inputs: dict[int, None] = {}
        self._outputs: list[int] = []
        self._output_ids: set[int] = set()  # the same, to be asked for membership
        self._next_id = 0
        self._reserved: dict[str, None] = {}  # names inside subgraph bodies
        self._capturing: dict[int, None] = {}  # nodes whose bodies have captured something
        self._counts: dict[str, int] = {}  # last number that `fresh_name` gave to a base
        self._journal: list[int] = []
        self._notes: dict[str, tuple[Hashable, Any]] = {}
        self._order: list[Node] | None = None
        self._forget_all()

    # ------------------------------------------------------------------ reading

    @property
    def opset(self) -> int:
        """Version of the default ONNX domain."""
        return self.opsets.get("", 0)

    @property
    def view(self) -> nx.MultiDiGraph[int]:
        """The structure as a frozen networkx graph over ids; look items up with `item`."""
        frozen: nx.MultiDiGraph[int] = nx.freeze(self._net.copy(as_view=True))
        return frozen

    def item(self, id: int) -> Node | Value:
        return self._items[id]

    @property
    def inputs(self) -> list[Value]:
        return [self._value(i) for i in self._inputs]

    @property
    def outputs(self) -> list[Value]:
        return [self._value(i) for i in self._outputs]

    def nodes(self) -> list[Node]:
        """All nodes, in topological order, original file order where that is possible."""
        if self._order is None:
            self._order = self._sorted()
        return list(self._order)

    def values(self) -> list[Value]:
        """All values, by id."""
        return [v for v in self._items.values() if isinstance(v, Value)]

    def initializers(self) -> list[Value]:
        """All values that carry an array, by id."""
        return [v for v in self.values() if v.array is not None]

    def value(self, name: str) -> Value:
        """The value of that name; KeyError otherwise."""
        return self._value(self._by_name[name])

    def find(self, name: str) -> Value | None:
        id = self._by_name.get(name)
        return None if id is None else self._value(id)

    def node_named(self, name: str) -> Node:
        """The first node of that name; KeyError otherwise."""
        for node in self.nodes():
            if node.name == name:
                return node
        raise KeyError(name)

    def producer(self, value: Value) -> Node | None:
        try:
            return self._sources[value.id]
        except KeyError:
            source = next(iter(self._net.predecessors(value.id)), None)
            found = self._sources[value.id] = None if source is None else self._node(source)
            return found

    def uses(self, value: Value) -> list[Use]:
        """Every node and slot that reads the value, in node order (graph outputs not included)."""
        return list(self._uses_of(value))

    def consumers(self, value: Value) -> list[Node]:
        """The distinct nodes that read the value."""
        return list({use.node.id: use.node for use in self._uses_of(value)}.values())

    def node_inputs(self, node: Node) -> list[Value | None]:
        """One entry a slot; None where an optional input is left out."""
        kept = self._reads.get(node.id)
        return list(self._reads_of(node) if kept is None else kept)

    def node_outputs(self, node: Node) -> list[Value | None]:
        kept = self._makes.get(node.id)
        return list(self._makes_of(node) if kept is None else kept)

    def reads(self, node: Node) -> list[Value]:
        """What is in its input slots, and what its bodies capture."""
        found = [value for value in self._reads_of(node) if value is not None]
        return [*found, *self.captures(node).values()] if node.id in self._capturing else found

    def input(self, node: Node, slot: int) -> Value | None:
        """The value in an input slot; None where there is none."""
        return self._reads_of(node)[slot] if slot < node.arity[0] else None

    def operand(self, node: Node, slot: int) -> Value:
        """The value in an input slot that must be there."""
        value = self.input(node, slot)
        if value is None:
            raise ModelError(f"{node} has no input {slot}")
        return value

    def result(self, node: Node, slot: int = 0) -> Value:
        """The value of an output slot that must be there."""
        value = self._makes_of(node)[slot] if slot < node.arity[1] else None
        if value is None:
            raise ModelError(f"{node} has no output {slot}")
        return value

    def captures(self, node: Node) -> dict[str, Value]:
        """Values that the node's subgraph bodies read from outside, by the name the bodies use."""
        if node.id not in self._capturing:
            return {}
        edges: Any = self._net.in_edges(node.id, keys=True, data="name")
        found = [(slot, name, source) for source, _, slot, name in edges if slot >= CAPTURE]
        return {name: self._value(source) for _, name, source in sorted(found)}

    def is_input(self, value: Value) -> bool:
        return value.id in self._inputs

    def is_output(self, value: Value) -> bool:
        return value.id in self._output_ids

    def is_used(self, value: Value) -> bool:
        return value.id in self._output_ids or any(True for _ in self._net.successors(value.id))

    def has_source(self, value: Value) -> bool:
        """Whether something gives the value: a node, an initialiser or the caller."""
        if value.array is not None or value.sparse is not None:
            return True
        return value.id in self._inputs or self.producer(value) is not None

    def constant_of(self, value: Value | None) -> Array | None:
        """The array of an initialiser that nothing from outside can override; None otherwise."""
        if value is None or value.array is None or value.id in self._inputs:
            return None
        return value.array

    def fresh_name(self, base: str) -> str:
        """`base`, or `base_2`, `base_3` … where it is taken, here or in a subgraph's body."""
        if base and not self._taken(base):
            return base
        count = self._counts.get(base, 1) + 1
        while self._taken(f"{base}_{count}"):
            count += 1
        self._counts[base] = count
        return f"{base}_{count}"

    def reserve_names(self, names: Iterable[str]) -> None:
        """Keeps `fresh_name` off these: a body defines them, and an outer value must not be hidden."""
        self._reserved.update(dict.fromkeys(names))

    # ------------------------------------------------------------------ editing

    def add_value(
        self,
        name: str,
        dtype: DType = DType.UNDEFINED,
        shape: Iterable[Dim] | None = None,
        *,
        role: Role = Role.ACTIVATION,
        owner: str = "",
    ) -> Value:
        """A value with no producer yet; the name must be free."""
        if name in self._by_name:
            raise ModelError(f"The name '{name}' is already used in graph '{self.name}'")
        value = Value(self._id(), name, dtype, None if shape is None else tuple(shape), role=role, owner=owner)
        self._insert(value)
        self._by_name[name] = value.id
        self._sources[value.id] = None
        return value

    def add_input(self, name: str, dtype: DType, shape: Iterable[Dim] | None, *, role: Role = Role.ACTIVATION) -> Value:
        value = self.find(name) or self.add_value(name, dtype, shape, role=role)
        self._inputs[value.id] = None
        self._touch(value)
        return value

    def add_output(self, value: Value) -> None:
        self._outputs.append(value.id)
        self._output_ids.add(value.id)
        self._touch(value)

    def remove_output(self, value: Value) -> None:
        self._outputs.remove(value.id)
        self._output_ids = set(self._outputs)
        self._touch(value)

    def remove_input(self, value: Value) -> None:
        """The value is no longer fed from outside; the value itself stays."""
        del self._inputs[value.id]
        self._touch(value)

    def add_constant(self, name: str, array: npt.ArrayLike, *, role: Role = Role.CONSTANT, owner: str = "") -> Value:
        """An initialiser. The name is made unique; the array is not copied, and becomes read-only."""
        value = self.add_value(self.fresh_name(name), role=role, owner=owner)
        self.set_array(value, np.asarray(array))
        return value

    def set_array(self, value: Value, array: Array | None) -> None:
        """Gives a value its payload (and with it dtype and shape), or takes it away."""
        if array is not None:
            array = array.view()
            array.flags.writeable = False
            value.dtype, value.shape = DType.of(array), tuple(array.shape)
            if value.role is Role.ACTIVATION:
                value.role = Role.CONSTANT
        value.array = array
        self._touch(value)

    def set_type(self, value: Value, dtype: DType | None = None, shape: Iterable[Dim] | None = None) -> None:
        if dtype is not None:
            value.dtype = dtype
        if shape is not None:
            value.shape = tuple(shape)
        self._touch(value)

    def clear_shape(self, value: Value) -> None:
        """Forgets a value's shape, so that it can be inferred anew."""
        value.shape = None
        self._touch(value)

    def set_role(self, value: Value, role: Role, owner: str = "") -> None:
        value.role, value.owner = role, owner
        self._touch(value)

    def add_node(
        self,
        op: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[str | Value | None] | int = 1,
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        name: str = "",
    ) -> Node:
        """Adds a node. `outputs` names new values (made unique), or gives existing ones without a
        producer, or is how many to make. Attributes that are None are left out."""
        node = Node(self._id(), op, name, domain)
        self.opsets.setdefault(domain, 1)
        for key, value in (attributes or {}).items():
            if value is not None:
                node.attributes[key] = _attribute(key, value)
        self._insert(node)
        for slot, source in enumerate(inputs):
            if source is not None:
                self._net.add_edge(source.id, node.id, slot)
                self._uses.pop(source.id, None)
        base = name or op
        wanted = [base if i == 0 else f"{base}_o{i}" for i in range(outputs)] if isinstance(outputs, int) else outputs
        node.arity = (len(inputs), len(wanted))
        made: list[Value | None] = []
        for slot, target in enumerate(wanted):
            if isinstance(target, str):
                target = self.add_value(self.fresh_name(target))
            if target is not None:
                self._claim(target, node)
                self._net.add_edge(node.id, target.id, slot)
                self._sources[target.id] = node
            made.append(target)
        self._reads[node.id], self._makes[node.id] = tuple(inputs), tuple(made)
        return node

    def op(
        self, op: str, *inputs: Value | None, name: str = "", domain: str = "", outputs: int = 1, **attributes: Any
    ) -> Value:
        """Adds a node and returns its first output: the shorthand in which rewrites are written."""
        node = self.add_node(op, inputs, outputs, attributes, domain=domain, name=name)
        made = self.result(node)
        if name:
            node.name = made.name  # made unique, which ONNX Runtime wants of node names too
        return made

    def add_capture(self, node: Node, value: Value, name: str) -> None:
        """Declares that a body of `node` reads `value`, under `name`."""
        taken = [slot for _, _, slot in self._net.in_edges(node.id, keys=True)]
        self._link(value.id, node.id, max([CAPTURE - 1, *taken]) + 1, name)
        self._touch(node)

    def set_attribute(self, node: Node, name: str, value: Any) -> None:
        """Sets an attribute, or removes it where `value` is None."""
        self._protos.pop(node.id, None)
        node.attributes.pop(name, None)
        if value is not None:
            node.attributes[name] = _attribute(name, value)
        self._touch(node)

    def set_name(self, node: Node, name: str, doc: str = "") -> None:
        self._protos.pop(node.id, None)
        node.name, node.doc = name, doc
        self._touch(node)

    def set_op(self, node: Node, op: str, domain: str = "") -> None:
        self._protos.pop(node.id, None)
        node.op, node.domain = op, domain
        self.opsets.setdefault(domain, 1)
        self._touch(node)

    def set_input(self, node: Node, slot: int, value: Value | None) -> None:
        """Rewires one input slot, appending empty slots where needed; a captured value's slot too.

        Emptied slots at the end go: ONNX Runtime takes a convolution whose bias is there but empty for one that it
        can neither fuse nor run in its blocked layout.
        """
        capture = None
        for source in list(self._net.predecessors(node.id)):
            edge = self._edges(source, node.id).get(slot)
            if edge is not None:
                capture = edge.get("name")
                self._unlink(source, node.id, slot)
        if slot < CAPTURE:
            node.arity = (max(node.arity[0], slot + 1), node.arity[1])
            self._forget(node.id)
            if value is None:
                filled = [place for place, item in enumerate(self.node_inputs(node), 1) if item is not None]
                node.arity = (max(filled, default=0), node.arity[1])
                self._forget(node.id)
        if value is not None:
            self._link(value.id, node.id, slot, capture)
        self._touch(node)

    def set_output(self, node: Node, slot: int, value: Value) -> None:
        """Puts an existing value without a producer into an output slot."""
        self._claim(value, node)
        for _, target, key in list(self._net.out_edges(node.id, keys=True)):
            if key == slot:
                self._unlink(node.id, target, key)
        node.arity = (node.arity[0], max(node.arity[1], slot + 1))
        self._link(node.id, value.id, slot)
        self._touch(node)

    def replace_uses(self, old: Value, new: Value, *, only: Iterable[Use] | None = None) -> None:
        """Everything that reads `old` reads `new`.

        Where `old` is a graph output, `new` takes over its name and place; where it cannot (it is an
        input, an initialiser or an output itself), an Identity node stands between.
        """
        moved = [
            (n, slot, e.get("name")) for n in self._net.successors(old.id) for slot, e in self._edges(old.id, n).items()
        ]
        chosen = None if only is None else {(use.node.id, use.slot) for use in only}
        for node, slot, capture in moved:
            if chosen is None or (node, slot) in chosen:
                self._unlink(old.id, node, slot)
                self._link(new.id, node, slot, capture)
                self._touch(self._items[node])
        if only is None and old.id in self._output_ids:
            place = self._outputs.index(old.id)
            if new.array is not None or self.is_input(new) or self.is_output(new) or self.producer(new) is None:
                new = self.op("Identity", new, name=f"{old.name}_identity")
            name = old.name
            self.rename(old, self.fresh_name(f"{name}_replaced"))
            self.rename(new, name)
            if new.shape is None:
                new.shape = old.shape
            if new.dtype is DType.UNDEFINED:
                new.dtype = old.dtype
            self._outputs[place] = new.id
            self._output_ids = set(self._outputs)
        self._touch(old, new)

    def rename(self, value: Value, name: str) -> None:
        if name == value.name:
            return
        if name in self._by_name:
            raise ModelError(f"Cannot rename '{value.name}' to '{name}': that name is taken")
        del self._by_name[value.name]
        self._by_name[name] = value.id
        value.name = name
        for id in (*self._net.predecessors(value.id), *self._net.successors(value.id)):
            self._protos.pop(id, None)
        self._touch(value)

    def remove_node(self, node: Node) -> None:
        """Removes a node with its outputs, which nothing may read any more."""
        for value in self.node_outputs(node):
            if value is None:
                continue
            if self.is_used(value):
                raise ModelError(f"Cannot remove {node}: its output '{value.name}' is still read")
            self._drop(value)
        for source in list(self._net.predecessors(node.id)):
            self._touch(self._items[source])
        self._drop(node)

    def detach(self, node: Node) -> None:
        """Removes a node but keeps its outputs, now without a producer."""
        for value in self.node_outputs(node):
            if value is not None:
                self._touch(value)
        self._drop(node)

    def remove_value(self, value: Value) -> None:
        """Removes a value that nothing produces or reads (it may be an input)."""
        if self.is_used(value) or self.producer(value) is not None:
            raise ModelError(f"Cannot remove value '{value.name}': it is still produced or read")
        self._inputs.pop(value.id, None)
        self._drop(value)

    def copy(self) -> Graph:
        """An independent copy that shares the arrays; ids stay the same."""
        twin = Graph.__new__(Graph)
        twin.__dict__.update(self.__dict__)
        twin.opsets, twin.metadata, twin.functions = dict(self.opsets), dict(self.metadata), list(self.functions)
        twin.annotations = list(self.annotations)
        twin._net = self._net.copy()
        twin._items = {
            id: dataclasses.replace(item, attributes=dict(item.attributes), metadata=dict(item.metadata))
            if isinstance(item, Node)
            else dataclasses.replace(item, metadata=dict(item.metadata))
            for id, item in self._items.items()
        }
        twin._reserved, twin._counts = dict(self._reserved), dict(self._counts)
        twin._by_name = dict(self._by_name)
        twin._inputs, twin._outputs, twin._output_ids = dict(self._inputs), list(self._outputs), set(self._output_ids)
        twin._capturing, twin._journal, twin._notes = dict(self._capturing), [], {}
        twin._forget_all()
        twin._protos = dict(self._protos)
        return twin

    def merge(self, other: Graph, prefix: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Copies `other` into this graph, every name prefixed; `feeds` gives this graph's values
        for the other's inputs. Returns this graph's value for each value name of the other.

        Both must use the same opset of each domain they share.
        """
        for domain, version in other.opsets.items():
            if self.opsets.setdefault(domain, version) != version:
                raise ModelError(
                    f"Cannot merge '{other.name}' (opset {version} of domain '{domain or 'ai.onnx'}') into "
                    f"'{self.name}' (opset {self.opsets[domain]}): convert both to one opset first"
                )
        mapped: dict[int, Value] = {}
        for value in other.inputs:
            if value.name in feeds:
                mapped[value.id] = feeds[value.name]
            elif value.array is None:
                raise ModelError(f"Merging '{other.name}': nothing feeds its input '{value.name}'")
        for value in other.values():
            if value.id not in mapped:
                twin = self.add_value(self.fresh_name(prefix + value.name), value.dtype, value.shape, role=value.role)
                twin.array, twin.sparse, twin.type_proto = value.array, value.sparse, value.type_proto
                twin.owner = value.owner and prefix + value.owner
                twin.doc, twin.metadata, twin.extra = value.doc, dict(value.metadata), value.extra
                mapped[value.id] = twin
        for node in other.nodes():
            ins = [None if v is None else mapped[v.id] for v in other.node_inputs(node)]
            outs = [None if v is None else mapped[v.id] for v in other.node_outputs(node)]
            twin_node = self.add_node(
                node.op, ins, outs, node.attributes, domain=node.domain, name=node.name and prefix + node.name
            )
            twin_node.overload, twin_node.extra = node.overload, node.extra
            twin_node.doc, twin_node.metadata = node.doc, dict(node.metadata)
            for name, value in other.captures(node).items():
                self.add_capture(twin_node, mapped[value.id], name)
        self.annotations += [(mapped[a].id, tuple((k, mapped[v].id) for k, v in e)) for a, e in other.annotations]
        self.reserve_names(other._reserved)
        known = {(f.domain, f.name, f.overload) for f in self.functions}
        self.functions += [f for f in other.functions if (f.domain, f.name, f.overload) not in known]
        return {other._value(id).name: value for id, value in mapped.items()}

    # ------------------------------------------------------------------ what others keep here

    def written(self, node: Node) -> onnx.NodeProto | None:
        """The node as ONNX, where `keep_written` left it and no edit has changed it since. Not to be edited."""
        return self._protos.get(node.id)

    def keep_written(self, node: Node, proto: onnx.NodeProto) -> None:
        self._protos[node.id] = proto

    def note(self, what: str, found: Any) -> None:
        """Keeps what was worked out of the graph as it is, until the next edit."""
        self._notes[what] = (self._edition(), found)

    def noted(self, what: str) -> Any:
        """What `note` was given, where the graph has not been edited since; None otherwise."""
        edition, found = self._notes.get(what, (None, None))
        return found if edition == self._edition() else None

    # ------------------------------------------------------------------ journal

    def mark(self) -> int:
        """A point in the journal of edits."""
        return len(self._journal)

    def touched(self, mark: int = 0) -> Iterator[Node | Value]:
        """Each item edited since `mark` that still exists, once, in order of first edit."""
        for id in dict.fromkeys(self._journal[mark:]):
            if id in self._items:
                yield self._items[id]

    def affected(self, mark: int) -> list[Node]:
        """The nodes that were edited since `mark`, or make or read a value that was; in topological order."""
        ids = {id for id in self._journal[mark:] if id in self._items}
        for id in [id for id in ids if isinstance(self._items[id], Value)]:
            ids.update(self._net.predecessors(id), self._net.successors(id))
        return [node for node in self.nodes() if node.id in ids]

    # ------------------------------------------------------------------ private

    def _edition(self) -> Hashable:
        return len(self._journal), tuple(self.opsets.items()), len(self.functions)

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _taken(self, name: str) -> bool:
        return name in self._by_name or name in self._reserved

    def _value(self, id: int) -> Value:
        item = self._items[id]
        assert isinstance(item, Value)
        return item

    def _node(self, id: int) -> Node:
        item = self._items[id]
        assert isinstance(item, Node)
        return item

    def _insert(self, item: Node | Value) -> None:
        self._items[item.id] = item
        self._net.add_node(item.id)
        self._touch(item)
        if isinstance(item, Node):
            self._order = None

    def _drop(self, item: Node | Value) -> None:
        self._forget(*self._net.predecessors(item.id), *self._net.successors(item.id), item.id)
        self._net.remove_node(item.id)
        del self._items[item.id]
        if isinstance(item, Value):
            del self._by_name[item.name]

    def _link(self, source: int, target: int, slot: int, capture: str | None = None) -> None:
        if capture is None:
            self._net.add_edge(source, target, key=slot)
        else:
            self._net.add_edge(source, target, key=slot, name=capture)
            self._capturing[target] = None
        self._forget_edge(source, target)

    def _edges(self, source: int, target: int) -> dict[int, dict[str, str]]:
        """By slot, the edges between two vertices that have some, and under which name a body captures."""
        edges: Any = self._net.get_edge_data(source, target)  # much faster than networkx's views
        found: dict[int, dict[str, str]] = edges
        return found

    def _unlink(self, source: int, target: int, slot: int) -> None:
        self._net.remove_edge(source, target, slot)
        self._forget_edge(source, target)

    # What the network says, kept until an edge changes there: a pass asks much oftener than it edits.

    def _forget_all(self) -> None:
        self._order = None
        self._reads: dict[int, tuple[Value | None, ...]] = {}
        self._makes: dict[int, tuple[Value | None, ...]] = {}
        self._uses: dict[int, tuple[Use, ...]] = {}
        self._sources: dict[int, Node | None] = {}
        self._protos: dict[int, onnx.NodeProto] = {}

    def _forget(self, *ids: int) -> None:
        self._order = None
        for kept in (self._reads, self._makes, self._uses, self._sources, self._protos):
            for id in ids:
                kept.pop(id, None)

    def _forget_edge(self, source: int, target: int) -> None:
        self._order = None
        self._makes.pop(source, None)
        self._uses.pop(source, None)
        self._protos.pop(source, None)
        self._reads.pop(target, None)
        self._sources.pop(target, None)
        self._protos.pop(target, None)

    def _reads_of(self, node: Node) -> tuple[Value | None, ...]:
        kept = self._reads.get(node.id)
        if kept is None:
            slots: list[Value | None] = [None] * node.arity[0]
            for source in self._net.predecessors(node.id):
                for slot in self._edges(source, node.id):
                    if slot < CAPTURE:
                        slots[slot] = self._value(source)
            kept = self._reads[node.id] = tuple(slots)
        return kept

    def _makes_of(self, node: Node) -> tuple[Value | None, ...]:
        kept = self._makes.get(node.id)
        if kept is None:
            slots: list[Value | None] = [None] * node.arity[1]
            for target in self._net.successors(node.id):
                for slot in self._edges(node.id, target):
                    slots[slot] = self._value(target)
            kept = self._makes[node.id] = tuple(slots)
        return kept

    def _uses_of(self, value: Value) -> tuple[Use, ...]:
        kept = self._uses.get(value.id)
        if kept is None:
            readers = sorted(self._net.successors(value.id))
            edges = [(node, slot) for node in readers for slot in sorted(self._edges(value.id, node))]
            kept = self._uses[value.id] = tuple(Use(self._node(node), slot) for node, slot in edges)
        return kept

    def _sorted(self) -> list[Node]:
        """The nodes by id, each after those that it reads from."""
        nodes = [item for item in self._items.values() if isinstance(item, Node)]
        before = {node.id: self._before(node) for node in nodes}
        if all(not sources or max(sources) < id for id, sources in before.items()):
            return nodes
        after: dict[int, list[int]] = {}
        for id, sources in before.items():
            for source in sources:
                after.setdefault(source, []).append(id)
        waiting = {id: len(sources) for id, sources in before.items()}
        ready = [id for id, count in waiting.items() if not count]  # sorted, and so a heap
        order: list[Node] = []
        while ready:
            id = heapq.heappop(ready)
            order.append(self._node(id))
            for reader in after.get(id, ()):
                waiting[reader] -= 1
                if not waiting[reader]:
                    heapq.heappush(ready, reader)
        if len(order) < len(nodes):
            cycle = [self._items[a] for a, *_ in nx.find_cycle(self._net)]
            names = " → ".join(str(n) for n in cycle if isinstance(n, Node))
            raise ModelError(f"The graph '{self.name}' has a cycle: {names}")
        return order

    def _before(self, node: Node) -> set[int]:
        """Ids of the nodes whose results the node reads, those that its bodies capture too."""
        read = (*self._reads_of(node), *(self.captures(node).values() if node.id in self._capturing else ()))
        sources = (self.producer(value) for value in read if value is not None)
        return {source.id for source in sources if source is not None}

    def _claim(self, value: Value, node: Node) -> None:
        other = self.producer(value)
        if other is not None or value.array is not None or value.id in self._inputs:
            what = f"already produced by {other}" if other else "an input or an initialiser"
            raise ModelError(f"{node} cannot produce '{value.name}': it is {what}")

    def _touch(self, *items: Node | Value) -> None:
        for item in items:
            self._journal.append(item.id)
