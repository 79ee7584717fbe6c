"""The whole simplifier: every file, the same function, a fixed point; and what `onnxslim simplify` counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxslim import simplify as simplify_model
from onnxslim.ir import shapes
from onnxslim.ir.graph import Array
from onnxslim.ir.onnx_io import from_proto, to_bytes, to_proto
from onnxslim.runtime.session import Session
from passes.simplify import simplify


def test_every_model_file(model_path: Path, run_on_file, largest_error) -> None:
    before, after, outcome = run_on_file(simplify(), model_path)
    assert after.opset == before.opset
    assert len(after.nodes()) <= len(before.nodes())
    assert {v.name for v in after.outputs} == {v.name for v in before.outputs}
    assert largest_error(before, after) <= 1e-5
    assert sum(outcome.by_pass.values()) == outcome.rewrites
    again = simplify()(after)
    assert (again.rewrites, again.by_pass) == (0, {})


def test_every_rule_on_its_own_under_the_checker(model_path: Path) -> None:
    checked, plain = simplify_model(model_path, check=True), simplify_model(model_path)
    assert checked.outcome == plain.outcome
    assert to_bytes(checked.graph) == to_bytes(plain.graph)


def test_on_real_images(trained_path: Path, images: Array, run_on_file, largest_error) -> None:
    before, after, _ = run_on_file(simplify(), trained_path)
    assert largest_error(before, after, {"image": images}) <= 1e-5


def test_a_graph_that_is_given_stays_as_it_is(build) -> None:
    b = build("N", 3)
    graph = b.finish(b.graph.op("Neg", b.graph.op("Identity", b.x)))
    before = to_bytes(graph)
    result = simplify_model(graph)
    assert result.outcome.by_pass == {"eliminate_identity": 1}
    assert len(result.graph.nodes()) == 1
    assert to_bytes(graph) == before


def test_rules_that_need_each_other_reach_the_fixed_point(build, ops, largest_error) -> None:
    """Equal convolutions before unlike batch norms: each takes in its own, and is not shared before that."""
    b = build("N", 3, 8, 8)
    pads = b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    weight = b.weight(4, 3, 3, 3)
    branches = [b.graph.op("Conv", b.graph.op("Pad", b.x, pads), b.constant(weight.array)) for _ in range(2)]
    y = b.graph.op("Add", b.batchnorm(branches[0], 4, "bn"), b.batchnorm(branches[1], 4, "bn2"))
    graph = b.finish(b.graph.op("Mul", y, b.constant(np.float32(0.5))))
    before = graph.copy()
    simplify()(graph)
    assert largest_error(before, graph) <= 1e-5
    assert ops(graph) == ["Conv", "Conv", "Add", "Mul"]


def test_opsets_before_broadcasting_keep_the_meaning_of_their_ops(build) -> None:
    """Only what is dead, double or constant goes: a Mul of two Adds is not folded."""
    b = build("N", 3, opset=6)
    twice = [b.graph.op("Neg", b.x), b.graph.op("Neg", b.x)]
    b.graph.op("Abs", b.x)  # nothing reads it
    graph = b.finish(b.graph.op("Add", *twice), infer=False)
    found = simplify_model(graph)
    assert [n.op for n in found.graph.nodes()] == ["Neg", "Add"]
    assert found.graph.opset == 6


def test_a_constant_sequence_is_not_folded(build) -> None:
    """Initialisers are tensors: what a SequenceConstruct of constants gives has no place among them."""
    b = build("N", 3)
    part = b.graph.add_constant("part", np.ones(3, np.float32))
    sequence = b.graph.op("SequenceConstruct", part, part)
    first = b.graph.op("SequenceAt", sequence, b.graph.add_constant("index", np.int64(0)))
    graph = b.finish(b.graph.op("Add", b.x, first), infer=False)
    simplified = simplify_model(graph).graph
    feeds = {"x": np.zeros((2, 3), np.float32)}
    np.testing.assert_array_equal(Session(simplified).run(feeds)[simplified.outputs[0].name], np.ones((2, 3)))


def test_types_are_inferred_once_for_each_round_of_edits(mobilenet: Path, monkeypatch) -> None:
    """A model without a constant left to fold: what the first verification infers serves every pass and the last."""
    graph = simplify_model(mobilenet).graph
    for node in graph.nodes():
        for value in graph.node_outputs(node):
            if value is not None and not graph.is_output(value):
                graph.clear_shape(value)
    called: list[bool] = []
    real = shapes._run

    def run(model: onnx.ModelProto, *, strict: bool, data_prop: bool) -> onnx.ModelProto:
        called.append(strict)
        return real(model, strict=strict, data_prop=data_prop)

    monkeypatch.setattr(shapes, "_run", run)
    outcome = simplify_model(graph).outcome
    assert (outcome.by_pass, outcome.rewrites) == ({}, 0)  # to know a shape rewrites nothing
    assert called == [True]


@pytest.mark.parametrize("last", ["Identity", "BatchNormalization", "Relu"])
def test_a_value_that_is_an_output_twice(last: str, build, ops, largest_error) -> None:
    """Also one whose node a rule takes away; the file is written and read as any other."""
    b = build(2, 3, 6, 6)
    x = b.graph.op("Conv", b.x, b.weight(4, 3, 3, 3), name="conv")
    y = b.batchnorm(x, 4, name="y") if last == "BatchNormalization" else b.graph.op(last, x, name="y")
    graph = b.finish(y, y)
    before = graph.copy()
    simplified = simplify()(graph)
    assert simplified.rewrites > 0 or last == "Relu"
    assert ops(graph) == (["Conv", "Relu"] if last == "Relu" else ["Conv"])
    again = from_proto(to_proto(graph))
    assert [v.name for v in again.outputs] == ["y", "y"]
    assert largest_error(before, again) <= 1e-5
