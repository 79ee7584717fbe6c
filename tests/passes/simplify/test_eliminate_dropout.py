"""EliminateDropout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxslim.ir.graph import DType, Graph
from passes.simplify import EliminateDropout


def test_every_model_file(model_path: Path, run_on_file, largest_error) -> None:
    before, after, outcome = run_on_file(EliminateDropout(), model_path)
    assert outcome.refused == ()
    assert largest_error(before, after) <= 1e-5


def dropout(b: object, mode: object = None) -> Graph:
    inner = b.graph.op("Relu", b.x, name="relu")
    inputs = [inner, b.constant(np.float32(0.5)), mode][: 2 if mode is None else 3]
    node = b.graph.add_node("Dropout", inputs, ["kept", "mask"], name="drop")
    b.graph.set_type(b.graph.result(node, 1), DType.BOOL)
    return b.finish(b.graph.op("Neg", b.graph.result(node), name="y"))


@pytest.mark.parametrize("mode", [None, False])
def test_fires_in_inference(mode: bool | None, build, largest_error, ops) -> None:
    b = build("N", 4)
    graph = dropout(b, None if mode is None else b.constant(np.array(mode)))
    before = graph.copy()
    assert EliminateDropout()(graph).rewrites == 1
    assert ops(graph) == ["Relu", "Neg"]
    assert largest_error(before, graph) == 0


def test_training_mode_is_retained(build) -> None:
    b = build("N", 4)
    outcome = EliminateDropout()(dropout(b, b.constant(np.array(True))))
    assert outcome.rewrites == 0
    assert outcome.refused[0].why == "it is in training mode"


def test_a_fed_training_mode_is_retained(build) -> None:
    b = build("N", 4)
    outcome = EliminateDropout()(dropout(b, b.graph.add_input("training", DType.BOOL, ())))
    assert (outcome.rewrites, outcome.refused[0].why) == (0, "its training mode is computed or fed")


def test_a_mask_that_is_read_is_retained(build) -> None:
    b = build("N", 4)
    graph = dropout(b)
    graph.add_output(graph.value("mask"))
    outcome = EliminateDropout()(graph)
    assert (outcome.rewrites, outcome.refused[0].where) == (0, "node 'drop' (Dropout)")
