"""ShortenNames: inner names get short, outer names stay, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx.parser

from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.onnx_io import from_proto, to_bytes
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.session import Session
from passes.deploy import ShortenNames


def chain(length: int = 80) -> Graph:
    graph = Graph()
    x = graph.add_input("a", DType.FLOAT, [2])  # its name is a short one, and must not be given away
    for i in range(length):
        bias = graph.add_constant(f"some/long/constant/{i}", np.full(2, i, np.float32))
        x = graph.op("Add", x, bias, name=f"some/long/node/{i}")
    graph.rename(x, "b")
    graph.set_type(x, DType.FLOAT, [2])
    graph.add_output(x)
    return graph


def test_inner_names_are_short_and_unique() -> None:
    graph = chain()
    before = Session(graph).run({"a": np.ones(2, np.float32)})["b"]
    size = len(to_bytes(graph))
    outcome = ShortenNames()(graph)
    names = [value.name for value in graph.values()]
    assert outcome.rewrites == len(names) - 2
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 2
    nodes = [node.name for node in graph.nodes()]
    assert len(set(nodes)) == len(nodes)
    assert max(map(len, nodes)) <= 2
    assert min(map(len, nodes)) == 1
    assert (graph.inputs[0].name, graph.outputs[0].name) == ("a", "b")
    assert len(to_bytes(graph)) < size / 2
    np.testing.assert_array_equal(Session(graph).run({"a": np.ones(2, np.float32)})["b"], before)


def test_subgraph_bodies_keep_working() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18]>
        main (float[2] x, bool flag) => (float[2] y) {
            captured = Neg(x)
            inner = Abs(captured)
            chosen = If (flag) <
                then_branch = yes () => (float[2] b) { b = Add(captured, captured) },
                else_branch = no () => (float[2] a) { a = Identity(captured) }
            >
            y = Add(chosen, inner)
        }
    """)
    graph = from_proto(model)
    infer_shapes(graph)
    ShortenNames()(graph)
    names = {value.name for value in graph.values()}
    assert "captured" in names
    assert not names & {"a", "b", "inner", "chosen"}
    for flag, expected in ((True, [-1.0, 6.0]), (False, [0.0, 4.0])):
        found = Session(graph).run({"x": np.array([1, -2], np.float32), "flag": np.array(flag)})["y"]
        np.testing.assert_array_equal(found, expected)


def traced() -> onnx.ModelProto:
    """A model with notes of an exporter wherever ONNX has room for them."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18, "own" : 1]>
        main (float[2] x, bool flag) => (float[2] y) {
            half = own.twice (x)
            y = If (flag) <
                then_branch = yes () => (float[2] b) { b = If (flag) <
                    then_branch = deep () => (float[2] c) { c = Abs(half) },
                    else_branch = flat () => (float[2] d) { d = Neg(half) }
                > },
                else_branch = no () => (float[2] a) { a = Identity(half) }
            >
        }
        <domain: "own", opset_import: ["" : 18]> twice (v) => (w) { w = Add(v, v) }
    """)
    holders: list[object] = [model.graph, model.functions[0]]
    while holders:
        holder = holders.pop()
        note(holder)
        for node in getattr(holder, "node", ()):
            holders += [node, *(attribute.g for attribute in node.attribute if attribute.HasField("g"))]
        holders += [*getattr(holder, "input", ()), *getattr(holder, "output", ())] if hasattr(holder, "node") else []
    model.metadata_props.add(key="licence", value="MIT")
    return model


def note(holder: object) -> None:
    if hasattr(holder, "metadata_props"):
        holder.doc_string = "SECRET doc"  # type: ignore[attr-defined]
        holder.metadata_props.add(key="stack_trace", value="SECRET trace")


def test_what_exporters_noted_goes_at_every_level() -> None:
    graph = from_proto(traced())
    assert to_bytes(graph).count(b"SECRET") >= 20
    ShortenNames()(graph)
    data = to_bytes(graph)
    assert b"SECRET" not in data
    assert onnx.load_from_string(data).metadata_props[0].value == "MIT"
    for flag, expected in ((True, [2.0, 4.0]), (False, [2.0, -4.0])):
        found = Session(graph).run({"x": np.array([1, -2], np.float32), "flag": np.array(flag)})["y"]
        np.testing.assert_array_equal(found, expected)


def test_nodes_in_bodies_share_no_name_with_any_other() -> None:
    graph = from_proto(traced())
    ShortenNames()(graph)
    names = names_of(onnx.load_from_string(to_bytes(graph)).graph)
    assert len(names) == 6
    assert "" not in names
    assert len(set(names)) == len(names)


def names_of(body: onnx.GraphProto) -> list[str]:
    """The names of all nodes, those of bodies too."""
    found = []
    for node in body.node:
        found.append(node.name)
        for attribute in node.attribute:
            found += names_of(attribute.g) if attribute.HasField("g") else []
    return found


def test_is_deterministic_and_idempotent() -> None:
    graphs = [chain(), chain()]
    for graph in graphs:
        ShortenNames()(graph)
    assert to_bytes(graphs[0]) == to_bytes(graphs[1])
    ShortenNames()(graphs[0])
    assert to_bytes(graphs[0]) == to_bytes(graphs[1])
