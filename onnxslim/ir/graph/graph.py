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

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import onnx

from onnxslim.errors import ModelError
from onnxslim.ir.graph.calls import call_key, function_names, recalled, recalling
from onnxslim.ir.graph.items import CAPTURE, Array, Dim, DType, Node, Role, Use, Value, attribute
from onnxslim.ir.graph.network import Network

__all__ = ["Graph"]


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
        self._network = Network()
        self._by_name: dict[str, int] = {}
        self._inputs: dict[int, None] = {}
        self._outputs: list[int] = []
        self._output_ids: set[int] = set()  # the same, to be asked for membership
        self._next_id = 0
        self._reserved: dict[str, None] = {}  # names inside subgraph bodies
        self._around: Graph | None = None  # whose body this is
        self._counts: dict[str, int] = {}  # last number that `fresh_name` gave to a base
        self._journal: list[int] = []
        self._notes: dict[str, tuple[Hashable, Any]] = {}

    def __repr__(self) -> str:
        items = list(self._network.items.values())
        nodes = sum(isinstance(item, Node) for item in items)
        size = sum(item.array.nbytes for item in items if isinstance(item, Value) and item.array is not None)
        return f"<graph '{self.name}', opset {self.opset}: {nodes:,} nodes, {size:,} bytes of constants>"

    # ------------------------------------------------------------------ reading

    @property
    def opset(self) -> int:
        """Version of the default ONNX domain."""
        return self.opsets.get("", 0)

    @property
    def view(self) -> nx.MultiDiGraph[int]:
        """The structure as a frozen networkx graph over ids; look items up with `item`."""
        frozen: nx.MultiDiGraph[int] = nx.freeze(self._network.net.copy(as_view=True))
        return frozen

    def item(self, id: int) -> Node | Value:
        """The node or value of an id; KeyError for one that is gone."""
        return self._network.items[id]

    def holds(self, item: Node | Value) -> bool:
        """Whether a node or value is still part of the graph."""
        return item.id in self._network.items

    @property
    def inputs(self) -> list[Value]:
        """What is fed from outside, in the order of the file; initialisers that may be replaced among them."""
        return [self._network.value(i) for i in self._inputs]

    @property
    def outputs(self) -> list[Value]:
        """What is handed out, in the order of the file; a value may stand there twice."""
        return [self._network.value(i) for i in self._outputs]

    def nodes(self) -> list[Node]:
        """All nodes, in topological order, original file order where that is possible."""
        try:
            return list(self._network.ordered())
        except nx.NetworkXUnfeasible as cycle:
            raise ModelError(f"The graph '{self.name}' has a cycle: {cycle}") from None

    def op_types(self) -> frozenset[str]:
        """The ops of ONNX's own domain that it has nodes of."""
        found: frozenset[str] | None = self.noted("op types")
        if found is None:
            items = self._network.items.values()
            found = frozenset(item.op for item in items if isinstance(item, Node) and not item.domain)
            self.note("op types", found)
        return found

    def values(self) -> list[Value]:
        """All values, by id."""
        return [v for v in self._network.items.values() if isinstance(v, Value)]

    def initializers(self) -> list[Value]:
        """All values that carry an array, by id."""
        return [v for v in self.values() if v.array is not None]

    def value(self, name: str) -> Value:
        """The value of that name; KeyError otherwise."""
        return self._network.value(self._by_name[name])

    def find(self, name: str) -> Value | None:
        """The value of that name; None where there is none."""
        id = self._by_name.get(name)
        return None if id is None else self._network.value(id)

    def node_named(self, name: str) -> Node:
        """The first node of that name; KeyError otherwise."""
        for node in self.nodes():
            if node.name == name:
                return node
        raise KeyError(name)

    def producer(self, value: Value) -> Node | None:
        """The node that makes a value; None for inputs and initialisers."""
        return self._network.producer(value)

    def uses(self, value: Value) -> list[Use]:
        """Every node and slot that reads the value, in node order (graph outputs not included)."""
        return list(self._network.uses(value))

    def consumers(self, value: Value) -> list[Node]:
        """The distinct nodes that read the value."""
        return list({use.node.id: use.node for use in self._network.uses(value)}.values())

    def node_inputs(self, node: Node) -> list[Value | None]:
        """One entry a slot; None where an optional input is left out."""
        return list(self._network.reads(node))

    def node_outputs(self, node: Node) -> list[Value | None]:
        """What a node makes, by slot; None in slots that are left out."""
        return list(self._network.makes(node))

    def reads(self, node: Node) -> list[Value]:
        """What is in its input slots, and what its bodies capture."""
        found = [value for value in self._network.reads(node) if value is not None]
        captured = self._network.captures(node)
        return [*found, *captured.values()] if captured else found

    def input(self, node: Node, slot: int) -> Value | None:
        """The value in an input slot; None where there is none."""
        return self._network.reads(node)[slot] if slot < node.arity[0] else None

    def operand(self, node: Node, slot: int) -> Value:
        """The value in an input slot that must be there."""
        value = self.input(node, slot)
        if value is None:
            raise ModelError(f"{node} has no input {slot}")
        return value

    def result(self, node: Node, slot: int = 0) -> Value:
        """The value of an output slot that must be there."""
        value = self._network.makes(node)[slot] if slot < node.arity[1] else None
        if value is None:
            raise ModelError(f"{node} has no output {slot}")
        return value

    def captures(self, node: Node) -> dict[str, Value]:
        """Values that the node's subgraph bodies read from outside, by the name the bodies use."""
        return self._network.captures(node)

    def is_input(self, value: Value) -> bool:
        """Whether it is fed from outside."""
        return value.id in self._inputs

    def is_output(self, value: Value) -> bool:
        """Whether it is handed out."""
        return value.id in self._output_ids

    def is_used(self, value: Value) -> bool:
        """Whether a node reads it, or it is handed out."""
        return value.id in self._output_ids or self._network.is_read(value)

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

    def body(self, name: str) -> Graph:
        """An empty graph for a body (If, Loop, Scan) of one of the nodes: of the same opsets and functions, with fresh
        names that nothing around has."""
        inner = Graph(name, ir_version=self.ir_version)
        inner.opsets, inner.functions, inner._around = dict(self.opsets), list(self.functions), self
        return inner

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
        return value

    def add_input(self, name: str, dtype: DType, shape: Iterable[Dim] | None, *, role: Role = Role.ACTIVATION) -> Value:
        """A new value that is fed from outside; the name must be free (`fresh_name` makes one)."""
        value = self.add_value(name, dtype, shape, role=role)
        self.feed(value)
        return value

    def feed(self, value: Value) -> None:
        """A value that is there, without a producer, is fed from outside from now on."""
        producer = self.producer(value)
        if producer is not None:
            raise ModelError(f"'{value.name}' cannot be an input of graph '{self.name}': {producer} produces it")
        self._inputs[value.id] = None
        self._touch(value)

    def add_output(self, value: Value) -> None:
        """Hands a value out, behind the other outputs."""
        self._outputs.append(value.id)
        self._output_ids.add(value.id)
        self._touch(value)

    def remove_output(self, value: Value) -> None:
        """Hands a value out no longer, once where it stood several times."""
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
        """Declares an element type, a shape, or both; what is not given stays."""
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
        """Says what a value is for, and whose it is."""
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
                node.attributes[key] = attribute(key, value)
        self._insert(node)
        self._network.feed(node, tuple(inputs))
        base = name or op
        wanted = [base if i == 0 else f"{base}_o{i}" for i in range(outputs)] if isinstance(outputs, int) else outputs
        node.arity = (len(inputs), len(wanted))
        for target in wanted:
            if isinstance(target, str):
                target = self.add_value(self.fresh_name(target))
            if target is not None:
                self._claim(target, node)
            self._network.make(node, target)
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
        taken = [slot for source in self._network.sources(node.id) for slot in self._network.edges(source, node.id)]
        self._network.link(value.id, node.id, max([CAPTURE - 1, *taken]) + 1, name)
        self._touch(node)

    def set_captures(self, node: Node, captures: Mapping[str, Value]) -> None:
        """Declares anew what the bodies of `node` read from outside, by the names that they use."""
        for source in list(self._network.sources(node.id)):
            for slot in [slot for slot in self._network.edges(source, node.id) if slot >= CAPTURE]:
                self._network.unlink(source, node.id, slot)
                self._touch(self.item(source))
        self._touch(node)
        for name, value in captures.items():
            self.add_capture(node, value, name)

    def set_attribute(self, node: Node, name: str, value: Any) -> None:
        """Sets an attribute, or removes it where `value` is None."""
        if value is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = attribute(name, value)
        self._touch(node)

    def set_name(self, node: Node, name: str, doc: str = "") -> None:
        """Gives a node another name and doc string."""
        node.name, node.doc = name, doc
        self._touch(node)

    def strip(self, item: Node | Value) -> None:
        """Forgets what an exporter noted beside a node or value: its doc string and metadata."""
        item.doc, item.metadata = "", {}
        if isinstance(item, Value):
            item.extra = None
        self._touch(item)

    def set_op(self, node: Node, op: str, domain: str = "") -> None:
        """Makes a node apply another op; its domain gets version 1 where the graph does not import it."""
        node.op, node.domain = op, domain
        self.opsets.setdefault(domain, 1)
        self._touch(node)

    def set_input(self, node: Node, slot: int, value: Value | None) -> None:
        """Rewires one input slot, appending empty slots where needed; a captured value's slot too.

        Emptied slots at the end go: ONNX Runtime takes a convolution whose bias is there but empty for one that it
        can neither fuse nor run in its blocked layout.
        """
        capture = None
        for source in self._network.sources(node.id):
            edge = self._network.edges(source, node.id).get(slot)
            if edge is not None:
                capture = edge.get("name")
                self._network.unlink(source, node.id, slot)
        if slot < CAPTURE:
            node.arity = (max(node.arity[0], slot + 1), node.arity[1])
            self._network.forget(node.id)
            if value is None:
                filled = [place for place, item in enumerate(self.node_inputs(node), 1) if item is not None]
                node.arity = (max(filled, default=0), node.arity[1])
                self._network.forget(node.id)
        if value is not None:
            self._network.link(value.id, node.id, slot, capture)
        self._touch(node)

    def set_output(self, node: Node, slot: int, value: Value) -> None:
        """Puts an existing value without a producer into an output slot."""
        self._claim(value, node)
        for target in self._network.targets(node.id):
            if slot in self._network.edges(node.id, target):
                self._network.unlink(node.id, target, slot)
        node.arity = (node.arity[0], max(node.arity[1], slot + 1))
        self._network.link(node.id, value.id, slot)
        self._touch(node)

    def replace_uses(self, old: Value, new: Value, *, only: Iterable[Use] | None = None) -> None:
        """Everything that reads `old` reads `new`.

        Where `old` is a graph output, `new` takes over its name and place; where it cannot (it is an
        input, an initialiser or an output itself), an Identity node stands between.
        """
        moved = [
            (reader, slot, edge.get("name"))
            for reader in self._network.targets(old.id)
            for slot, edge in self._network.edges(old.id, reader).items()
        ]
        chosen = None if only is None else {(use.node.id, use.slot) for use in only}
        for node, slot, capture in moved:
            if chosen is None or (node, slot) in chosen:
                self._network.unlink(old.id, node, slot)
                self._network.link(new.id, node, slot, capture)
                self._touch(self.item(node))
        if only is None and old.id in self._output_ids:
            if new.array is not None or self.is_input(new) or self.is_output(new) or self.producer(new) is None:
                new = self.op("Identity", new, name=f"{old.name}_identity")
            name = old.name
            self.rename(old, self.fresh_name(f"{name}_replaced"))
            self.rename(new, name)
            if new.shape is None:
                new.shape = old.shape
            if new.dtype is DType.UNDEFINED:
                new.dtype = old.dtype
            self._outputs = [new.id if id == old.id else id for id in self._outputs]
            self._output_ids = set(self._outputs)
        self._touch(old, new)

    def rename(self, value: Value, name: str) -> None:
        """Gives a value another name; ModelError where it is taken."""
        if name == value.name:
            return
        if name in self._by_name:
            raise ModelError(f"Cannot rename '{value.name}' to '{name}': that name is taken")
        del self._by_name[value.name]
        self._by_name[name] = value.id
        value.name = name
        for id in (*self._network.sources(value.id), *self._network.targets(value.id)):
            self._network.written.pop(id, None)
        self._touch(value)

    def remove_node(self, node: Node) -> None:
        """Removes a node with its outputs, which nothing may read any more."""
        for value in self.node_outputs(node):
            if value is None:
                continue
            if self.is_used(value):
                raise ModelError(f"Cannot remove {node}: its output '{value.name}' is still read")
            self._drop(value)
        self._touch(*map(self.item, self._network.sources(node.id)))
        self._network.drop(node)

    def detach(self, node: Node) -> None:
        """Removes a node but keeps its outputs, now without a producer."""
        for value in self.node_outputs(node):
            if value is not None:
                self._touch(value)
        self._network.drop(node)

    def remove_value(self, value: Value) -> None:
        """Removes a value that nothing produces or reads (it may be an input)."""
        if self.is_used(value) or self.producer(value) is not None:
            raise ModelError(f"Cannot remove value '{value.name}': it is still produced or read")
        self._inputs.pop(value.id, None)
        self._drop(value)

    def become(self, other: Graph) -> None:
        """Takes over everything of another graph, which is used up; all of it counts as edited."""
        journal = [*self._journal, *other._network.items]
        self.__dict__.update(other.__dict__)
        self._journal, self._notes = journal, {}

    def copy(self) -> Graph:
        """An independent copy that shares the arrays; ids stay the same."""
        twin = Graph.__new__(Graph)
        twin.__dict__.update(self.__dict__)
        twin.opsets, twin.metadata, twin.functions = dict(self.opsets), dict(self.metadata), list(self.functions)
        twin.annotations = list(self.annotations)
        twin._network = self._network.copy()
        twin._reserved, twin._counts = dict(self._reserved), dict(self._counts)
        twin._by_name = dict(self._by_name)
        twin._inputs, twin._outputs, twin._output_ids = dict(self._inputs), list(self._outputs), set(self._output_ids)
        twin._journal, twin._notes = [], {}
        return twin

    def merge(self, other: Graph, prefix: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Copies `other` into this graph, every name prefixed; `feeds` gives this graph's values
        for the other's inputs. Returns this graph's value for each value name of the other.

        Both must use the same opset of each domain they share. A local function that this graph has under the same
        name with another meaning gets a name of its own.
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
        calls = function_names(self.functions, other.functions)
        for node in other.nodes():
            ins = [None if v is None else mapped[v.id] for v in other.node_inputs(node)]
            outs = [None if v is None else mapped[v.id] for v in other.node_outputs(node)]
            op = calls.get(call_key(node.domain, node.op, node.overload), node.op)
            attributes = {name: recalled(a, calls) for name, a in node.attributes.items()} if calls else node.attributes
            twin_node = self.add_node(
                op, ins, outs, attributes, domain=node.domain, name=node.name and prefix + node.name
            )
            twin_node.overload, twin_node.extra, twin_node.origin = node.overload, node.extra, node.origin
            twin_node.doc, twin_node.metadata = node.doc, dict(node.metadata)
            for name, value in other.captures(node).items():
                self.add_capture(twin_node, mapped[value.id], name)
        self.annotations += [(mapped[a].id, tuple((k, mapped[v].id) for k, v in e)) for a, e in other.annotations]
        self.reserve_names(other._reserved)
        theirs = [recalling(f, calls) if calls else f for f in other.functions]
        known = {(f.domain, f.name, f.overload) for f in self.functions}
        self.functions += [f for f in theirs if (f.domain, f.name, f.overload) not in known]
        return {other._network.value(id).name: value for id, value in mapped.items()}

    # ------------------------------------------------------------------ what others keep here

    def written(self, node: Node) -> onnx.NodeProto | None:
        """The node as ONNX, where `keep_written` left it and no edit has changed it since. Not to be edited."""
        return self._network.written.get(node.id)

    def keep_written(self, node: Node, proto: onnx.NodeProto) -> None:
        """Keeps a node's ONNX form until it is edited."""
        self._network.written[node.id] = proto

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
            if id in self._network.items:
                yield self.item(id)

    def affected(self, mark: int) -> list[Node]:
        """The nodes that were edited since `mark`, or make or read a value that was; in topological order."""
        ids = {id for id in self._journal[mark:] if id in self._network.items}
        for id in [id for id in ids if isinstance(self.item(id), Value)]:
            ids.update(self._network.sources(id), self._network.targets(id))
        return [node for node in self.nodes() if node.id in ids]

    # ------------------------------------------------------------------ private

    def _edition(self) -> Hashable:
        return len(self._journal), tuple(self.opsets.items()), len(self.functions)

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _taken(self, name: str) -> bool:
        around = self._around is not None and self._around._taken(name)
        return around or name in self._by_name or name in self._reserved

    def _insert(self, item: Node | Value) -> None:
        self._network.insert(item)
        self._touch(item)

    def _drop(self, value: Value) -> None:
        self._network.drop(value)
        del self._by_name[value.name]

    def _claim(self, value: Value, node: Node) -> None:
        other = self.producer(value)
        if other is not None or value.array is not None or value.id in self._inputs:
            what = f"already produced by {other}" if other else "an input or an initialiser"
            raise ModelError(f"{node} cannot produce '{value.name}': it is {what}")

    def _touch(self, *items: Node | Value) -> None:
        """Notes an edit: the verifier looks at these, and a node is no longer as it was written."""
        for item in items:
            self._journal.append(item.id)
            self._network.written.pop(item.id, None)
