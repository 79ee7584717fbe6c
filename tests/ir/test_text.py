"""The golden printer: complete, stable, one line a thing."""

from __future__ import annotations

import numpy as np
from onnx import helper

from onnxslim.ir.graph import DType, Graph, Role
from onnxslim.ir.text import to_text, type_text

_GOLDEN = """\
graph net opset ai.onnx 18, com.example 1
in   x: FLOAT[n, 3, ?]
init high: FLOAT[] {6}
init w: FLOAT[3, 3] parameter of layer 3bd34c56
node clip: ?[...] = Clip(x, _, high) # clip
node y: FLOAT[n, 3, 3], _ = com.example.Odd(clip, w) alpha=0.1 axes=[1, 2] mode='same' \
name=['a', 'b'] value=INT64[2] {1, 2} weights=[0.5, 1]
out  y: FLOAT[n, 3, 3]
"""


def _graph() -> Graph:
    graph = Graph("net")
    x = graph.add_input("x", DType.FLOAT, ("n", 3, None))
    high = graph.add_constant("high", np.float32(6))
    weight = graph.add_constant("w", np.arange(9, dtype=np.float32).reshape(3, 3), role=Role.PARAMETER, owner="layer")
    clip = graph.result(graph.add_node("Clip", [x, None, high], ["clip"], name="clip"))
    attributes = {
        "alpha": 0.1,
        "axes": [1, 2],
        "mode": "same",
        "name": ["a", "b"],
        "value": helper.make_tensor("v", 7, [2], [1, 2]),
        "weights": [0.5, 1.0],
    }
    node = graph.add_node("Odd", [clip, weight], ["y", None], attributes, domain="com.example")
    graph.set_type(graph.result(node), DType.FLOAT, ("n", 3, 3))
    graph.add_output(graph.result(node))
    return graph


def test_golden() -> None:
    assert to_text(_graph()) == _GOLDEN


def test_a_changed_weight_changes_the_text() -> None:
    graph = _graph()
    weight = graph.value("w")
    assert weight.array is not None
    changed = np.array(weight.array)
    changed[0, 0] = 0.001
    graph.set_array(weight, changed)
    assert to_text(graph) != _GOLDEN


def test_types() -> None:
    graph = Graph()
    assert type_text(graph.add_value("a")) == "?[...]"
    assert type_text(graph.add_value("b", DType.INT4, ())) == "INT4[]"
    sequence = graph.add_value("c")
    sequence.type_proto = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None))
    assert type_text(sequence) == "sequence"


def test_strings_and_bodies() -> None:
    graph = Graph("g")
    graph.add_constant("words", np.array([b"a", b"b"], object))
    body = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "body", [], [])
    x = graph.add_input("x", DType.FLOAT, ())
    node = graph.add_node("If", [x], ["z"], {"then_branch": body, "else_branch": body})
    graph.add_capture(node, x, "x")
    text = to_text(graph)
    assert "init words: STRING[2] " in text
    assert "= If(x, ^x) then_branch=<graph body: 1 nodes> else_branch=<graph body: 1 nodes>" in text
