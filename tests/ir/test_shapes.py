"""Inferred shapes are those that ONNX Runtime computes; another batch size is set or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from onnxslim.analysis.batch import with_batch
from onnxslim.errors import ModelError, UnsupportedError
from onnxslim.ir.graph import DType, Graph, Role
from onnxslim.ir.onnx_io import read, to_bytes
from onnxslim.ir.shapes import infer_shapes, inferred_types
from onnxslim.ir.verify import verify


def _native_batch(graph: Graph) -> int | None:
    shape = graph.inputs[0].shape
    assert shape is not None
    return shape[0] if isinstance(shape[0], int) else None


def test_shapes_are_what_the_runtime_computes(model_path: Path) -> None:
    graph = read(model_path)
    batch = _native_batch(graph) or 3
    fixed = with_batch(graph, batch)
    verify(fixed)
    tapped = fixed.copy()
    inner = [v for v in tapped.values() if tapped.producer(v) is not None and not tapped.is_output(v)]
    for value in inner:
        tapped.add_output(value)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(to_bytes(tapped), options, providers=["CPUExecutionProvider"])
    feeds = {v.name: np.zeros(v.static_shape, v.dtype.numpy) for v in tapped.inputs if v.array is None}
    names = [v.name for v in tapped.outputs]
    for name, array in zip(names, session.run(names, feeds)):
        value = fixed.value(name)
        assert (value.shape, value.dtype) == (array.shape, DType.of(array)), name


def test_a_dynamic_batch_stays_a_symbol(model_path: Path) -> None:
    graph = read(model_path)
    first = infer_shapes(graph)
    assert all(v.shape is not None and v.dtype is not DType.UNDEFINED for v in graph.values())
    mark = graph.mark()
    assert infer_shapes(graph) == 0
    assert graph.mark() == mark
    assert first <= len(graph.values())
    verify(graph)


def _reshaper(target: list[int], batch: int | str) -> Graph:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (batch, 4, 2))
    flat = graph.op("Reshape", x, graph.add_constant("target", np.array(target, np.int64)), name="flatten")
    weight = graph.add_constant("w", np.zeros((8, 5), np.float32))
    graph.add_output(graph.op("MatMul", flat, weight, name="y"))
    infer_shapes(graph)
    return graph


def test_a_batch_that_was_written_in_is_rewritten() -> None:
    graph = _reshaper([2, 8], 2)
    for batch in (2, 4):
        assert with_batch(graph, batch).value("y").shape == (batch, 5)
    assert with_batch(_reshaper([-1, 8], 2), 4).value("y").shape == (4, 5)
    assert with_batch(_reshaper([0, 8], "n"), 4).value("y").shape == (4, 5)
    with pytest.raises(UnsupportedError, match=r"With batch 4, node 'flatten' \(Reshape\) cannot reshape \(4, 4, 2\)"):
        with_batch(_reshaper([2, 8], "n"), 4)


def test_an_output_of_another_batch_is_refused() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ("n", 3))
    fixed = graph.op("Slice", x, *(graph.add_constant("c", np.array([v], np.int64)) for v in (0, 1, 0)), name="first")
    graph.set_type(fixed, DType.FLOAT, ("n", 3))  # as an exporter claims
    graph.add_output(fixed)
    with pytest.raises(UnsupportedError, match=r"Output 'first' has shape \(1, 3\) where the inputs have batch 4"):
        with_batch(graph, 4)


def test_with_batch_leaves_the_graph_and_other_inputs_alone() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ("n", 3))
    rate = graph.add_input("rate", DType.FLOAT, ())
    weight = graph.add_input("w", DType.FLOAT, (5, 3), role=Role.PARAMETER)
    graph.add_input("given", DType.FLOAT, (3,))
    graph.set_array(graph.value("given"), np.zeros(3, np.float32))
    product = graph.op("Gemm", x, weight, transB=1)
    graph.add_output(graph.op("Mul", product, rate))
    twin = with_batch(graph, 6)
    assert [v.shape for v in twin.inputs] == [(6, 3), (), (5, 3), (3,)]
    assert twin.outputs[0].shape == (6, 5)
    assert [v.shape for v in graph.inputs] == [("n", 3), (), (5, 3), (3,)]
    assert graph.outputs[0].shape is None
    with pytest.raises(ModelError, match="from 1 to 65,536, got 0"):
        with_batch(graph, 0)


def test_fake_quant_passes_types_through() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ("n", 3))
    scale, zero = (graph.add_constant(n, np.float32(1), role=Role.SCALE, owner="x") for n in ("s", "z"))
    attributes = {"bits": 8, "signed": 1, "narrow": 0, "kind": "activation"}
    node = graph.add_node("FakeQuant", [x, scale, zero], ["q"], attributes, domain="onnxslim")
    graph.add_output(graph.op("Relu", graph.result(node), name="y"))
    infer_shapes(graph)
    assert (graph.value("y").dtype, graph.value("y").shape) == (DType.FLOAT, ("n", 3))
    verify(with_batch(graph, 2))


def test_ops_without_rule_keep_what_they_have_and_feed_others() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ("n", 3))
    odd = graph.op("Odd", x, domain="com.example")
    graph.add_output(graph.op("Relu", odd, name="y"))
    infer_shapes(graph)
    assert graph.value("y").shape is None
    graph.set_type(odd, DType.FLOAT, ("n", 7))
    infer_shapes(graph)
    assert graph.value("y").shape == ("n", 7)
    assert with_batch(graph, 2).value("y").shape == (2, 7)


def test_stale_shapes_are_overwritten_and_refined_ones_kept() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ("n", 3, 8, 8))
    weight = graph.add_constant("w", np.zeros((4, 3, 3, 3), np.float32))
    y = graph.op("Conv", x, weight, strides=[2, 2])
    graph.set_type(y, DType.FLOAT16, (5, 4, 8, 8))
    graph.add_output(y)
    infer_shapes(graph)
    assert (y.dtype, y.shape) == (DType.FLOAT, (5, 4, 3, 3))


def test_bodies_and_functions_are_followed() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ("n", 3))
    go = graph.add_input("go", DType.BOOL, ())
    body = helper.make_graph(
        [helper.make_node("Relu", ["outer"], ["inner"])], "b", [], [helper.make_empty_tensor_value_info("inner")]
    )
    node = graph.add_node("If", [go], ["chosen"], {"then_branch": body, "else_branch": body})
    graph.add_capture(node, x, "outer")
    graph.functions.append(
        helper.make_function(
            "f", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
        )
    )
    graph.add_output(graph.op("Twice", graph.result(node), domain="f", name="y"))
    infer_shapes(graph)
    assert (graph.value("y").dtype, graph.value("y").shape) == (DType.FLOAT, ("n", 3))


def test_large_constants_are_not_copied() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (1 << 10,))
    huge = np.broadcast_to(np.float32(0), (1 << 10, 1 << 22))  # 16 GB, if it were copied
    graph.add_output(graph.op("MatMul", x, graph.add_constant("w", huge)))
    infer_shapes(graph)
    assert graph.outputs[0].shape == (1 << 22,)


def test_some_nodes_only_and_strictly() -> None:
    graph = _reshaper([-1, 8], "n")
    product = graph.node_named("y")
    assert inferred_types(graph, [product]) == {"y": (DType.FLOAT, (None, 5))}
    graph.set_array(graph.value("w"), np.zeros((9, 5), np.float32))
    with pytest.raises(ModelError, match="Incompatible dimensions"):
        inferred_types(graph, graph.nodes(), strict=True)


@pytest.mark.parametrize("op", ["Conv", "MaxPool"])
def test_a_slice_of_what_a_window_larger_than_its_input_makes_is_refused(op: str) -> None:
    """onnx's own rule for Slice ends the process on a size below 0."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (1, 3, 8, 8))
    first = graph.op("Slice", x, *(graph.add_constant("i", np.array([n], np.int64)) for n in (0, 6, 2)))
    weights = [graph.add_constant("w", np.ones((2, 3, 3, 16), np.float32))] if op == "Conv" else []
    small = graph.op(op, first, *weights, name="small", kernel_shape=[3, 16])
    bounds = (graph.add_constant("i", np.array([n], np.int64)) for n in (0, 1, 3))
    graph.add_output(graph.op("Slice", graph.op("Relu", small), *bounds))
    with pytest.raises(ModelError, match="'small' would have the size -7"):
        infer_shapes(graph)
