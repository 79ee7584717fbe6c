"""Ops that onnx's inference does not know: the shapes and types that ONNX Runtime makes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxslim.analysis.batch import with_batch
from onnxslim.analysis.cost import node_macs
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.onnx_io import from_proto
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.verify import verify
from onnxslim.runtime.session import Session
from onnxslim.stages.base import prepared
from onnxslim.stages.train import mark_roles
from onnxslim.training.ports import Kind, Port
from onnxslim.training.step import StepOptions, build_step
from passes.distill import MeanSquare

OPSETS = (11, 13, 17, 18)
NODES: list[tuple[str, list[tuple[int, ...]], dict[str, Any]]] = [
    ("Attention", [(2, 3, 8), (8, 24), (24,)], {"num_heads": 2}),
    ("Attention", [(2, 3, 8), (8, 20), (20,)], {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 4]}),
    ("BiasGelu", [(2, 3, 8), (8,)], {}),
    ("FastGelu", [(2, 3, 8), (8,)], {}),
    ("FastGelu", [(2, 3, 8)], {}),
    ("FusedConv", [(2, 3, 5, 5), (4, 3, 3, 3), (4,)], {"activation": "Relu", "strides": [2, 2]}),
    ("FusedGemm", [(2, 3), (4, 3), (4,)], {"activation": "Relu", "transB": 1}),
    ("FusedMatMul", [(2, 3, 4), (4, 5)], {"alpha": 2.0}),
    ("FusedMatMul", [(3, 4, 2), (3, 5, 4)], {"transA": 1, "transB": 1}),
    ("FusedMatMul", [(4, 2, 3, 5), (2, 3, 4, 6)], {"transA": 1, "transBatchA": 1}),
    ("FusedMatMul", [(2, 3, 5, 4), (6, 2, 3, 4)], {"transB": 1, "transBatchB": 1}),
    ("Gelu", [(2, 3)], {}),
    ("QuickGelu", [(2, 3, 4, 5)], {}),
    ("SkipLayerNormalization", [(2, 3, 4), (2, 3, 4), (4,), (4,)], {}),
    ("SkipSimplifiedLayerNormalization", [(2, 3, 4), (2, 3, 4), (4,)], {}),
]

BATCHED = [node for node in NODES if not any(key in node[2] for key in ("transA", "transBatchA", "transBatchB"))]
"""Those whose first axis is the batch, in and out."""


def test_what_a_stand_in_leaves_open_is_no_fault_of_what_reads_it() -> None:
    """ReorderOutput that cuts channels off: nothing is said of its result, and a Relu may read it."""
    graph = Graph("net", ir_version=9)
    graph.opsets.update({"": 18, "com.microsoft.nchwc": 1})
    x = graph.add_input("x", DType.FLOAT, ("N", 16, 4, 4))
    whole = graph.op("ReorderOutput", x, name="whole", domain="com.microsoft.nchwc", channels=16)
    cut = graph.op("ReorderOutput", x, name="cut", domain="com.microsoft.nchwc", channels=10)
    for value in (whole, cut):
        graph.add_output(graph.op("Relu", value))
    infer_shapes(graph)
    verify(graph)
    assert (whole.shape, cut.shape) == (("N", 16, 4, 4), None)


def graph_of(op: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], opset: int) -> Graph:
    """x, typed, goes through an op that keeps its shape into the node; everything else is constant."""
    graph = Graph("g", opset)
    graph.opsets["com.microsoft"] = 1
    x = graph.op("Abs", graph.add_input("x", DType.FLOAT, shapes[0]), name="before")
    constants = [graph.add_constant(f"c{i}", np.ones(shape, np.float32)) for i, shape in enumerate(shapes[1:])]
    made = graph.op(op, x, *constants, name="made", domain="com.microsoft", **attributes)
    graph.add_output(graph.op("Neg", made, name="behind"))
    return graph


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(("op", "shapes", "attributes"), NODES)
def test_shapes_are_the_runtimes(
    op: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], opset: int
) -> None:
    graph = graph_of(op, shapes, attributes, opset)
    infer_shapes(graph)
    value = graph.value("behind")
    expected = Session(graph).run({"x": np.ones(shapes[0], np.float32)})["behind"]
    assert (value.dtype, value.shape) == (DType.FLOAT, expected.shape)


@pytest.mark.parametrize(("op", "shapes", "attributes"), BATCHED)
def test_a_free_batch_stays_free(op: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any]) -> None:
    graph = graph_of(op, shapes, attributes, 18)
    graph.set_type(graph.value("x"), shape=("n", *shapes[0][1:]))
    infer_shapes(graph)
    assert graph.value("behind").shape is not None
    assert graph.value("behind").shape[0] == "n"
    if len(shapes) == 1 or shapes[1] != shapes[0]:  # a constant skip is of one batch
        assert with_batch(graph, 7).value("behind").static_shape[0] == 7


def test_types_follow_too() -> None:
    graph = Graph("g")
    graph.opsets["com.microsoft"] = 1
    x = graph.add_input("x", DType.FLOAT16, ("n", 4))
    graph.add_output(graph.op("QuickGelu", x, name="y", domain="com.microsoft"))
    infer_shapes(graph)
    assert (graph.outputs[0].dtype, graph.outputs[0].shape) == (DType.FLOAT16, ("n", 4))


def test_an_output_that_no_rule_makes_keeps_what_the_file_says() -> None:
    weights = [np.ones(shape, np.float32) for shape in ((4, 12), (12,))]
    proto = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Attention", ["x", "w", "b"], ["y", "present"], domain="com.microsoft", num_heads=2),
                helper.make_node("Neg", ["present"], ["z"]),
            ],
            "g",
            [helper.make_tensor_value_info("x", 1, [2, 3, 4])],
            [helper.make_tensor_value_info("y", 1, None), helper.make_tensor_value_info("z", 1, None)],
            [helper.make_tensor(n, 1, a.shape, a.ravel()) for n, a in zip("wb", weights)],
            value_info=[helper.make_tensor_value_info("present", 1, [2, 2, 2, 3, 2])],
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    graph = from_proto(proto)
    infer_shapes(graph)
    assert (graph.value("y").shape, graph.value("z").shape) == ((2, 3, 4), (2, 2, 2, 3, 2))


@pytest.mark.parametrize("opset", OPSETS)
def test_a_norms_statistics_have_one_number_a_row(opset: int) -> None:
    graph = Graph("g", opset)
    graph.opsets["com.microsoft"] = 1
    x, scale = graph.add_input("x", DType.FLOAT, ("n", 3, 4)), graph.add_constant("s", np.ones(4, np.float32))
    node = graph.add_node(
        "SkipLayerNormalization", [x, x, scale], ["y", "mean", "inverse", "sum"], domain="com.microsoft"
    )
    for value in graph.node_outputs(node):
        assert value is not None
        graph.add_output(value)
    infer_shapes(graph)
    assert [v.shape for v in graph.outputs] == [("n", 3, 4), ("n", 3, 1), ("n", 3, 1), ("n", 3, 4)]


@pytest.mark.parametrize("op", ["BiasGelu", "FusedMatMul", "QuickGelu", "SkipLayerNormalization"])
def test_a_training_step_without_value_info(op: str) -> None:
    """In front of a MatMul, whose gradient needs the shape that the op makes."""
    graph = Graph("g")
    graph.opsets["com.microsoft"] = 1
    x = graph.add_input("x", DType.FLOAT, ("n", 4, 8))
    vector, square = (graph.add_constant(s, np.ones(shape, np.float32)) for s, shape in (("v", (8,)), ("m", (8, 8))))
    inputs = {"BiasGelu": [vector], "FusedMatMul": [square], "QuickGelu": [], "SkipLayerNormalization": [x, vector]}
    made = graph.op(op, x, *inputs[op], name="made", domain="com.microsoft")
    graph.add_output(graph.op("MatMul", made, graph.add_constant("w", np.ones((8, 3), np.float32)), name="y"))
    student, teacher = prepared(graph), prepared(graph)
    mark_roles(student)
    step = build_step(student, 4, StepOptions((MeanSquare(1.0, "teacher"),), labelled=False), teacher)
    gradient = step.value(Port(Kind.PARAMETER, "w").gradient)
    assert math.prod(gradient.static_shape) == 8 * 3  # in any shape that the graph computes with


@pytest.mark.parametrize("given", [np.uint16, np.int16, None])
def test_the_runtimes_own_pairs_have_the_types_of_their_zero_point_and_scale(given: type | None) -> None:
    graph = Graph("net")
    scale = graph.add_constant("s", np.float32(0.1))
    grid = [scale] if given is None else [scale, graph.add_constant("z", np.zeros((), given))]
    x = graph.add_input("x", DType.FLOAT, ["N", 3])
    q = graph.op("QuantizeLinear", x, *grid, name="q", domain="com.microsoft")
    y = graph.op("DequantizeLinear", q, *grid, name="y", domain="com.microsoft")
    graph.add_output(y)
    infer_shapes(graph)
    integers = DType.UINT8 if given is None else DType.of(np.empty(0, given))
    assert (q.dtype, q.shape) == (integers, ("N", 3))
    assert (y.dtype, y.shape) == (DType.FLOAT, ("N", 3))
    assert [node_macs(graph, node) for node in graph.nodes()] == [0, 0]
