"""Captured values are edges, and bodies follow when these are renamed or replaced."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, reference

from onnxslim.errors import ModelError
from onnxslim.ir.graph import DType
from onnxslim.ir.onnx_io import from_proto, to_proto
from onnxslim.ir.onnx_io.bodies import captured_names, local_names, renamed


def test_captures_are_edges_nested_ones_included(everything: onnx.ModelProto) -> None:
    graph = from_proto(everything)
    branch = next(n for n in graph.nodes() if n.op == "If")
    captured = graph.captures(branch)
    assert list(captured) == ["x", "relu", "condition", "weight"]
    assert graph.consumers(graph.value("relu"))[0] is branch
    assert [u.node for u in graph.uses(graph.value("weight"))] == [branch, graph.nodes()[-1]]
    with pytest.raises(ModelError, match="still read"):
        graph.remove_node(graph.node_named("act"))


def test_local_names_are_kept_off_fresh_ones(everything: onnx.ModelProto) -> None:
    graph = from_proto(everything)
    assert graph.fresh_name("then_sum") == "then_sum_2"
    assert graph.fresh_name("inner_out") == "inner_out_2"
    assert graph.fresh_name("free") == "free"


def _loop_model() -> onnx.ModelProto:
    """y = x after adding `step` (captured, by a nested If as well) three times."""
    add = helper.make_graph(
        [helper.make_node("Add", ["carried", "step"], ["added"])],
        "add",
        [],
        [helper.make_tensor_value_info("added", 1, [2])],
    )
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_out"]),
            helper.make_node("If", ["go"], ["carried_out"], then_branch=add, else_branch=add),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", 7, []),
            helper.make_tensor_value_info("go", 9, []),
            helper.make_tensor_value_info("carried", 1, [2]),
        ],
        [helper.make_tensor_value_info("go_out", 9, []), helper.make_tensor_value_info("carried_out", 1, [2])],
    )
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Neg", ["x"], ["step"], name="negate"),
                helper.make_node("Loop", ["count", "yes", "x"], ["y"], body=body, name="loop"),
            ],
            "loops",
            [helper.make_tensor_value_info("x", 1, [2])],
            [helper.make_tensor_value_info("y", 1, [2])],
            [numpy_helper.from_array(np.array(3), "count"), numpy_helper.from_array(np.array(True), "yes")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )


def _run(model: onnx.ModelProto) -> list[float]:
    onnx.checker.check_model(model)
    (y,) = reference.ReferenceEvaluator(model).run(None, {"x": np.array([1, -2], np.float32)})
    result: list[float] = np.asarray(y).tolist()
    return result


def test_renaming_a_captured_value_renames_it_in_the_bodies() -> None:
    model = _loop_model()
    graph = from_proto(model)
    assert _run(model) == [-2.0, 4.0]
    graph.rename(graph.value("step"), "carried_out")  # a name that a body uses for a value of its own
    written = to_proto(graph)
    assert _run(written) == [-2.0, 4.0]
    graph.rename(graph.value("carried_out"), "plain")
    written = to_proto(graph)
    assert _run(written) == [-2.0, 4.0]
    body = written.graph.node[1].attribute[0].g
    assert body.node[1].attribute[0].g.node[0].input[1] == "plain"
    assert body.output[1].name == "carried_out"


def test_replacing_a_captured_value_rewires_the_bodies() -> None:
    graph = from_proto(_loop_model())
    half = graph.add_constant("half", np.array([0.5, 0.5], np.float32))
    graph.replace_uses(graph.value("step"), half)
    graph.remove_node(graph.node_named("negate"))
    assert _run(to_proto(graph)) == [2.5, -0.5]
    assert graph.captures(graph.node_named("loop")) == {"step": half}


def test_capture_slots_can_be_set_one_by_one() -> None:
    graph = from_proto(_loop_model())
    loop = graph.node_named("loop")
    (use,) = [u for u in graph.uses(graph.value("step")) if u.node is loop]
    one = graph.add_constant("one", np.array([1, 1], np.float32))
    graph.set_input(loop, use.slot, one)
    assert graph.captures(loop) == {"step": one}
    assert _run(to_proto(graph)) == [4.0, 1.0]


def test_merging_prefixes_captures_too() -> None:
    graph = from_proto(_loop_model())
    other = from_proto(_loop_model())
    mapped = graph.merge(other, "teacher.", {"x": graph.value("x")})
    graph.add_output(mapped["y"])
    model = to_proto(graph)
    onnx.checker.check_model(model)
    result = reference.ReferenceEvaluator(model).run(None, {"x": np.array([1, -2], np.float32)})
    assert [np.asarray(r).tolist() for r in result] == [[-2.0, 4.0], [-2.0, 4.0]]


def test_names_of_attributes() -> None:
    loop = _loop_model().graph.node[1]
    assert captured_names(loop.attribute) == ["step"]
    assert list(local_names(loop.attribute)) == ["i", "go", "carried", "go_out", "carried_out", "added"]
    twin = renamed(loop.attribute[0], {"step": "added"})
    assert captured_names([twin]) == ["added"]
    assert "added_2" in local_names([twin])
    assert captured_names(loop.attribute) == ["step"]  # the original is as it was


def test_a_body_may_return_an_outer_value_directly() -> None:
    branch = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("x", 1, [2])])
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
            "direct",
            [helper.make_tensor_value_info("x", 1, [2]), helper.make_tensor_value_info("c", 9, [])],
            [helper.make_tensor_value_info("y", 1, [2])],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    graph = from_proto(model)
    graph.rename(graph.value("x"), "z")
    assert to_proto(graph).graph.node[0].attribute[0].g.output[0].name == "z"
    assert graph.value("z").dtype is DType.FLOAT
