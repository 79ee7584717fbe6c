"""EliminateIdentity: Identity, and what is one by its operands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxslim.ir.graph import DType
from passes.simplify import EliminateIdentity


def test_every_model_file(model_path: Path, run_on_file, largest_error) -> None:
    before, after, _ = run_on_file(EliminateIdentity(), model_path)
    assert not [n for n in after.nodes() if n.op == "Identity"]
    assert largest_error(before, after) <= 1e-5


FIRES = {
    "Identity": ([], {}),
    "Cast": ([], {"to": 1}),
    "Concat": ([], {"axis": 1}),
    "Sum": ([], {}),
    "Max": ([], {}),
    "Transpose": ([], {"perm": [0, 1, 2]}),
    "Pad": ([np.zeros(6, np.int64)], {}),
    "Expand": ([np.array([1, 1, 1])], {}),
    "Reshape": ([np.array([0, 3, 4])], {}),
}
RETAINED = {
    "Cast": ([], {"to": 11}),
    "Transpose": ([], {"perm": [0, 2, 1]}),
    "Pad": ([np.array([0, 0, 1, 0, 0, 0])], {}),
    "Expand": ([np.array([2, 1, 1, 1])], {}),
    "Reshape": ([np.array([0, 4, 3])], {}),
    "Neg": ([], {}),
}


def one(build, op: str, operands: list[np.ndarray], attributes: dict[str, object]):
    b = build("N", 3, 4)
    inner = b.graph.op("Relu", b.x, name="relu")
    y = b.graph.op(op, inner, *(b.constant(o) for o in operands), name="candidate", **attributes)
    if op == "Cast":
        b.graph.set_type(y, DType(attributes["to"]))
    return b.finish(b.graph.op("Neg", y, name="y") if op != "Cast" else y)


@pytest.mark.parametrize("op", FIRES)
def test_fires(op: str, build, largest_error, ops) -> None:
    graph = one(build, op, *FIRES[op])
    before = graph.copy()
    assert EliminateIdentity()(graph).rewrites == 1
    assert op not in ops(graph)
    assert largest_error(before, graph) == 0


@pytest.mark.parametrize("op", RETAINED)
def test_retained(op: str, build) -> None:
    graph = one(build, op, *RETAINED[op])
    assert EliminateIdentity()(graph).rewrites == 0


def test_a_reshape_to_an_unknown_order_of_axes_is_retained(build) -> None:
    b = build("N", "T", 4)
    y = b.graph.op("Reshape", b.x, b.graph.add_input("shape", DType.INT64, (3,)), name="r")
    b.graph.set_type(y, DType.FLOAT, ("N", "T", 4))
    graph = b.finish(b.graph.op("Neg", y), infer=False)
    assert EliminateIdentity().run(graph, None).rewrites == 0


def test_the_outputs_name_stays(build, largest_error) -> None:
    b = build("N", 3)
    graph = b.finish(b.graph.op("Identity", b.graph.op("Relu", b.x, name="relu"), name="logits"))
    before = graph.copy()
    assert EliminateIdentity()(graph).rewrites == 1
    assert [v.name for v in graph.outputs] == ["logits"]
    assert largest_error(before, graph) == 0


@pytest.mark.parametrize("what", ["input", "initialiser", "output"])
def test_what_cannot_be_an_output_itself_is_retained(what: str, build, largest_error) -> None:
    b = build("N", 3)
    relu = b.graph.op("Relu", b.x, name="relu")
    source = {"input": b.x, "initialiser": b.weight(3), "output": relu}[what]
    graph = b.finish(relu, b.graph.op("Identity", source, name="same"))
    before = graph.copy()
    assert EliminateIdentity()(graph).rewrites == 0
    assert largest_error(before, graph) == 0
