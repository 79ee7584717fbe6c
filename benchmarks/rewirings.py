"""Changes to how a model is wired, named and versioned, for benchmarks/semantics.py."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import onnx
from mutations import some
from onnx import helper, numpy_helper

__all__ = ["REWIRINGS", "Mutation", "opset_of"]

Mutation = Callable[[Random, onnx.ModelProto], None]


def fresh(model: onnx.ModelProto, stem: str) -> str:
    return f"{stem}_{len(model.graph.node)}_{len(model.graph.initializer)}"


def constant(model: onnx.ModelProto, array: np.ndarray[Any, Any]) -> str:
    name = fresh(model, "k")
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def opset_of(model: onnx.ModelProto) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def op_between(chance: Random, model: onnx.ModelProto) -> None:
    """An op in front of one of a node's inputs; most of them change nothing."""
    graph = model.graph
    nodes = [(i, n) for i, n in enumerate(graph.node) if any(n.input)]
    picked = some(chance, nodes)
    if picked is None:
        return
    place, node = picked
    slot = chance.choice([s for s, name in enumerate(node.input) if name])
    before, after = node.input[slot], fresh(model, "between")
    kind = chance.choice(("Identity", "Relu", "Mul1", "Add0", "Transpose", "Casts", "Dropout", "Unsqueeze", "Flatten",
                          "Concat", "Neg", "Shape", "Softmax", "Sigmoid", "MulV", "AddV"))  # fmt: skip
    given: dict[str, Any] = {}
    inputs = [before]
    op = kind
    if kind in ("Mul1", "Add0"):
        number = np.ones if kind == "Mul1" else np.zeros
        op, inputs = kind[:3], [before, constant(model, number(chance.choice(((), (1,), (1, 1, 1, 1))), np.float32))]
    elif kind in ("MulV", "AddV"):
        row = np.linspace(0.5, 2, 8, dtype=np.float32).reshape(chance.choice(((8,), (8, 1, 1), (1, 8, 1, 1))))
        op, inputs = kind[:3], [before, constant(model, row)]
    elif kind == "Casts":
        op, given = "Cast", {"to": chance.choice((1, 1, 10, 11, 6, 7))}
    elif kind == "Concat":
        inputs, given = [before] * chance.choice((1, 1, 2)), {"axis": chance.choice((0, 1, -1))}
    elif kind == "Unsqueeze":
        inputs = [before, constant(model, np.array([chance.choice((0, 1, -1))], np.int64))]
    elif kind == "Flatten":
        given = {"axis": chance.choice((0, 1, 2, -1))}
    node.input[slot] = after
    graph.node.insert(place, helper.make_node(op, inputs, [after], **given))


def node_skipped(chance: Random, model: onnx.ModelProto) -> None:
    node = some(chance, [n for n in model.graph.node if n.input and n.output])
    if node is not None and node.input[0]:
        name, source = node.output[0], node.input[0]
        for other in model.graph.node:
            for slot, given in enumerate(other.input):
                if given == name:
                    other.input[slot] = source


def inner_output(chance: Random, model: onnx.ModelProto) -> None:
    """An inner value, an input or a constant is given out as well; perhaps twice."""
    names = [n for node in model.graph.node for n in node.output if n]
    names += [t.name for t in model.graph.initializer] + [v.name for v in model.graph.input]
    name = some(chance, names)
    if name is not None:
        model.graph.output.append(onnx.ValueInfoProto(name=name))


def node_doubled(chance: Random, model: onnx.ModelProto) -> None:
    """The same computed twice, the second read by a consumer."""
    graph = model.graph
    node = some(chance, [n for n in graph.node if n.output and n.output[0]])
    if node is None:
        return
    twin = onnx.NodeProto.FromString(node.SerializeToString())
    twin.name = fresh(model, "twin") if twin.name else ""
    twin.output[:] = [f"{n}_twin" if n else "" for n in twin.output]
    readers = [n for n in graph.node if node.output[0] in n.input]
    place = next(i for i, n in enumerate(graph.node) if n is node or n == node)
    reader = some(chance, readers)
    if reader is not None:
        reader.input[list(reader.input).index(node.output[0])] = twin.output[0]
    graph.node.insert(place + 1, twin)


def in_an_if(chance: Random, model: onnx.ModelProto) -> None:
    """A node moves into both branches of an If on a constant, or on nothing known."""
    graph = model.graph
    places = [i for i, n in enumerate(graph.node) if len(n.output) == 1 and n.output[0]]
    place = some(chance, places)
    if place is None:
        return
    node = onnx.NodeProto.FromString(graph.node[place].SerializeToString())
    (name,) = node.output
    bodies = []
    for branch in ("then", "else"):
        twin = onnx.NodeProto.FromString(node.SerializeToString())
        twin.output[0] = f"{name}_{branch}"
        twin.name = f"{twin.name}_{branch}" if twin.name else ""
        bodies.append(helper.make_graph([twin], branch, [], [onnx.ValueInfoProto(name=f"{name}_{branch}")]))
    yes = constant(model, np.array(chance.random() < 0.5))
    del graph.node[place]
    graph.node.insert(place, helper.make_node("If", [yes], [name], then_branch=bodies[0], else_branch=bodies[1]))


def in_a_function(chance: Random, model: onnx.ModelProto) -> None:
    graph = model.graph
    place = some(chance, [i for i, n in enumerate(graph.node) if all(n.input) and all(n.output) and n.input])
    if place is None or any(f.domain == "fuzz" for f in model.functions):
        return
    node = onnx.NodeProto.FromString(graph.node[place].SerializeToString())
    inputs, outputs = list(dict.fromkeys(node.input)), list(node.output)
    opsets = [onnx.OperatorSetIdProto.FromString(o.SerializeToString()) for o in model.opset_import]
    model.functions.append(helper.make_function("fuzz", "wrapped", inputs, outputs, [node], opsets))
    model.opset_import.add(domain="fuzz", version=1)
    del graph.node[place]
    graph.node.insert(place, helper.make_node("wrapped", inputs, outputs, domain="fuzz"))


def names_taken(chance: Random, model: onnx.ModelProto) -> None:
    """Names that are ours, empty, or everyone's."""
    graph = model.graph
    kind = chance.randrange(3)
    if kind < 2:
        for node in graph.node:
            node.name = "" if kind == 0 else "same"
        return
    old = some(chance, [n for node in graph.node for n in (*node.input, *node.output) if n])
    new = chance.choice(("label", "loss", "correct", "lr", "step", "rows/0", "a.next", "grad.w", "teacher.y", "image"))
    if old is None:
        return
    for node in graph.node:
        for names in (node.input, node.output):
            for slot, name in enumerate(names):
                if name == old:
                    names[slot] = new
    for row in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        if row.name == old:
            row.name = new


def another_opset(chance: Random, model: onnx.ModelProto) -> None:
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = chance.choice((7, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21))


REWIRINGS: tuple[Mutation, ...] = (
    op_between, node_skipped, inner_output, node_doubled, in_an_if, in_a_function, names_taken, another_opset,
)  # fmt: skip
