"""ShortenNames: inner names get short, outer names stay, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx.parser

from onnxslim.analysis.shapes import infer_shapes
from onnxslim.graph import DType, Graph
from onnxslim.onnx_io import from_proto, to_bytes
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
    assert not any(node.name for node in graph.nodes())
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


def test_is_deterministic_and_idempotent() -> None:
    graphs = [chain(), chain()]
    for graph in graphs:
        ShortenNames()(graph)
    assert to_bytes(graphs[0]) == to_bytes(graphs[1])
    ShortenNames()(graphs[0])
    assert to_bytes(graphs[0]) == to_bytes(graphs[1])
