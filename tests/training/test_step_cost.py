"""What a step is foreseen to take: the work of single nodes against hand counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from onnxslim.ir.graph import DType, Graph
from onnxslim.training.step_cost import RATES, Rates, Work, foresee, work_of

BLOCKED, TRAINING = "com.microsoft.nchwc", "com.microsoft"


def node_of(op: str, inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], **attributes: Any) -> Graph:
    """A graph of that node alone, of float values of these shapes."""
    graph, domain = Graph("one", 18), str(attributes.pop("domain", ""))
    values = [graph.add_input(f"x{i}", DType.FLOAT, shape) for i, shape in enumerate(inputs)]
    node = graph.add_node(op, values, [f"y{i}" for i in range(len(outputs))], attributes, domain=domain)
    for slot, shape in enumerate(outputs):
        graph.set_type(graph.result(node, slot), DType.FLOAT, shape)
    return graph


@pytest.mark.parametrize(
    ("graph", "kind", "work"),
    [
        # 2 stacked products of 5 rows, which count as 8, with 6 columns over 7; each number read or written once
        (node_of("MatMul", [(2, 5, 7), (2, 7, 6)], [(2, 5, 6)]), "product", Work(2 * 8 * 7 * 6, 0, 4 * (70 + 84 + 60))),
        (node_of("Gemm", [(7, 4), (7, 6)], [(4, 6)], transA=1), "product", Work(4 * 7 * 6, 0, 4 * (28 + 42 + 24))),
        (node_of("Gemm", [(4, 7), (6, 7)], [(4, 6)], transB=1), "product_turned", Work(168, 0, 4 * (28 + 42 + 24))),
        # 16·3·3 products for each of 2·8·6·6 numbers; its unfolded image has 2 images of 36 pixels of as many bytes ·4
        (
            node_of("Conv", [(2, 16, 8, 8), (8, 16, 3, 3)], [(2, 8, 6, 6)]),
            "convolution",
            Work(2 * 8 * 36 * 144, 4 * 2 * 36 * 144, 4 * (2048 + 1152 + 576)),
        ),
        (
            node_of("Conv", [(2, 16, 8, 8), (8, 16, 1, 1)], [(2, 8, 8, 8)]),
            "convolution",
            Work(2 * 8 * 64 * 16, 0, 4 * (2048 + 128 + 1024)),
        ),
        (
            node_of("Conv", [(2, 4, 8, 8), (4, 1, 3, 3)], [(2, 4, 6, 6)], group=4),
            "convolution_grouped",
            Work(2 * 4 * 36 * 9, 4 * 8 * 36 * 9, 4 * (512 + 36 + 288), 8),
        ),
        (
            node_of("Conv", [(2, 16, 8, 8), (16, 16, 3, 3)], [(2, 16, 6, 6)], domain=BLOCKED),
            "block",
            Work(2 * 16 * 36 * 144, 0, 4 * (2048 + 2304 + 1152)),
        ),
        (
            node_of("Conv", [(1, 32, 8, 8), (32, 1, 3, 3)], [(1, 32, 6, 6)], domain=BLOCKED, group=32),
            "block_depthwise",
            Work(32 * 36 * 9, 0, 4 * (2048 + 288 + 1152)),
        ),
        # of dY [2, 8, 6, 6], X and W: both gradients take as many products as the way forward
        (
            node_of("ConvGrad", [(2, 8, 6, 6), (2, 16, 8, 8), (8, 16, 3, 3)], [(2, 16, 8, 8), (8, 16, 3, 3)],
                    domain=TRAINING),
            "gradient",
            Work(2 * 2 * 8 * 36 * 144, 4 * 2 * 36 * 144, 4 * (576 + 2 * 2048 + 2 * 1152)),
        ),
        (node_of("Gather", [(9, 16), (5,)], [(5, 16)], axis=0), "gather", Work(0, 0, 8 * 80, 5)),
        (node_of("Relu", [(4, 5)], [(4, 5)]), "each", Work(0, 0, 4 * 40)),
        (node_of("Transpose", [(4, 5)], [(5, 4)], perm=[1, 0]), "transpose", Work(0, 0, 4 * 40)),
        (node_of("Reshape", [(4, 5), (2,)], [(20,)]), "", Work()),
    ],
)  # fmt: skip
def test_the_work_of_a_node(graph: Graph, kind: str, work: Work) -> None:
    (node,) = graph.nodes()
    assert work_of(graph, node) == (kind, work)


def test_a_shape_that_is_not_known_counts_what_is() -> None:
    graph = node_of("Conv", [(2, 16, 8, 8), (8, 16, 3, 3)], [(2, 8, 6, 6)])
    graph.set_type(graph.value("x0"), shape=("N", 16, 8, 8))
    (node,) = graph.nodes()
    assert work_of(graph, node) == ("each", Work(moved=4.0 * (1024 + 1152 + 576)))


@pytest.mark.parametrize("lanes", [0, 8, 16, 32])
def test_a_step_takes_the_sum_of_its_nodes(lanes: int) -> None:
    graph = node_of("Relu", [(4, 5)], [(4, 5)])
    graph.add_output(graph.op("MatMul", graph.value("y0"), graph.add_constant("w", np.ones((5, 8), np.float32))))
    table = RATES[16 if lanes >= 16 else 8]
    expected = table["each"].of(Work(moved=160.0)) + table["product"].of(Work(4 * 5 * 8, moved=4.0 * (20 + 40 + 32)))
    assert foresee(graph, lanes) == pytest.approx(expected * 1e-9, rel=1e-12)


def test_both_tables_have_every_kind() -> None:
    assert set(RATES[8]) == set(RATES[16])
    assert all(
        isinstance(rates, Rates) and min(vars(rates).values()) >= 0 for t in RATES.values() for rates in t.values()
    )
