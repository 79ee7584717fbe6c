"""EliminateCommon: equal nodes, equal constants to the bit, and what may not be shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from passes.simplify import EliminateCommon


def test_every_model_file(model_path: Path, run_on_file, largest_error) -> None:
    before, after, _ = run_on_file(EliminateCommon(), model_path)
    assert largest_error(before, after) == 0


def test_fires_through_a_chain(build, ops, largest_error) -> None:
    b = build("N", 4)
    ends = []
    for _ in range(2):
        y = b.graph.op("Add", b.x, b.constant(np.arange(4, dtype=np.float32)))
        ends.append(b.graph.op("LeakyRelu", y, alpha=0.2))
    graph = b.finish(b.graph.op("Sub", *ends))
    before = graph.copy()
    assert EliminateCommon()(graph).rewrites == 2
    assert ops(graph) == ["Add", "LeakyRelu", "Sub"]
    assert largest_error(before, graph) == 0


@pytest.mark.parametrize(
    "pair",
    [
        (("Div", 0.0, {}), ("Div", -0.0, {})),
        (("Add", 1.0, {}), ("Add", 2.0, {})),
        (("Add", 1.0, {}), ("Mul", 1.0, {})),
        (("Gemm", [[1.0] * 4] * 4, {}), ("Gemm", [[1.0] * 4] * 4, {"transB": 1})),
    ],
)
def test_retained_where_anything_differs(pair, build) -> None:
    b = build("N", 4)
    ends = [b.graph.op(op, b.x, b.constant(np.array(c, np.float32)), **attributes) for op, c, attributes in pair]
    graph = b.finish(b.graph.op("Max", *ends))
    assert EliminateCommon()(graph).rewrites == 0


def test_random_ops_and_graph_outputs_are_retained(build) -> None:
    b = build("N", 4)
    noise = [b.graph.op("RandomNormalLike", b.x, seed=1.0) for _ in range(2)]
    outputs = [b.graph.op("Relu", b.x, name=f"y{i}") for i in range(2)]
    graph = b.finish(b.graph.op("Add", *noise), *outputs)
    assert EliminateCommon()(graph).rewrites == 0
