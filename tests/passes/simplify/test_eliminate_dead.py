"""EliminateDead."""

from __future__ import annotations

from pathlib import Path

from onnxslim.ir.graph import DType
from passes.simplify import EliminateDead


def test_every_model_file(model_path: Path, run_on_file, largest_error) -> None:
    before, after, _ = run_on_file(EliminateDead(), model_path)
    assert largest_error(before, after) <= 1e-5


def test_dead_chains_and_their_weights_go(build, largest_error) -> None:
    b = build("N", 3)
    y = b.graph.op("Relu", b.x, name="y")
    b.graph.op("Abs", b.graph.op("MatMul", y, b.weight(3, 5)))
    graph = b.finish(y)
    before = graph.copy()
    assert EliminateDead()(graph).rewrites == 3
    assert [n.op for n in graph.nodes()] == ["Relu"]
    assert graph.initializers() == []
    assert largest_error(before, graph) == 0
    assert EliminateDead()(graph).rewrites == 0


def test_inputs_and_partly_read_nodes_are_retained(build) -> None:
    b = build("N", 4)
    b.graph.add_input("unread", DType.FLOAT, ("N",))
    node = b.graph.add_node("Split", [b.x], 2, {"axis": 1, "num_outputs": 2})
    graph = b.finish(b.graph.result(node))
    assert EliminateDead()(graph).rewrites == 0
    assert [v.name for v in graph.inputs] == ["x", "unread"]


def test_what_a_body_captures_is_retained(build) -> None:
    b = build("N", 4)
    hidden = b.graph.op("Neg", b.x, name="hidden")
    loop = b.graph.add_node("Loop", [None, None], 1, name="loop")
    b.graph.add_capture(loop, hidden, "hidden")
    b.graph.set_type(b.graph.result(loop), DType.FLOAT)
    b.graph.add_output(b.graph.result(loop))
    assert EliminateDead().run(b.graph, None).rewrites == 0
