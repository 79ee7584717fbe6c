"""What inspect tells: interface, counts, and what can be quantised and trained, with reasons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxslim.analysis.inspection import Reason, Tensor, inspect_model
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import DType, Graph, Node
from onnxslim.ir.onnx_io import read, to_bytes
from onnxslim.ir.rewrite import Context
from onnxslim.stages.quantize import ready_to_quantize
from onnxslim.targets import load_target

_RULES = ("Add", "Conv", "Gemm", "MaxPool", "Relu")


def _rule(node: Node) -> str | None:
    return None if node.op in _RULES and not node.domain else f"no gradient rule for {node.op}"


def _net() -> Graph:
    graph = Graph("net")
    graph.header.producer_name, graph.header.producer_version = "maker", "2"
    x = graph.add_input("x", DType.FLOAT, ("n", 3, 8, 8))
    first = graph.add_constant("first", np.ones((4, 3, 3, 3), np.float32))
    second = graph.add_constant("second", np.ones((2, 4, 1, 1), np.float32))
    y = graph.op("Relu", graph.op("Conv", x, first, name="conv1"), name="relu")
    y = graph.op("Odd", y, domain="com.example", name="odd")
    graph.set_type(y, DType.FLOAT, ("n", 4, 6, 6))
    y = graph.op("Conv", y, second, name="conv2")
    shape = graph.op("Shape", y, name="shape")
    graph.set_type(y, DType.FLOAT, ("n", 2, 6, 6))
    graph.add_output(y)
    graph.add_output(shape)
    return graph


def test_interface_and_counts() -> None:
    found = inspect_model(_net(), file_bytes=1234)
    assert (found.name, found.producer, found.ir_version, found.file_bytes) == ("net", "maker 2", 9, 1234)
    assert found.opsets == (("ai.onnx", 18), ("com.example", 1))
    assert found.inputs == (Tensor("x", "FLOAT[n, 3, 8, 8]"),)
    assert found.outputs == (Tensor("conv2", "FLOAT[n, 2, 6, 6]"), Tensor("shape", "?[...]"))
    assert found.ops == (("Conv", 2), ("Relu", 1), ("Shape", 1), ("com.example.Odd", 1))
    assert found.cost.params == 108 + 8
    assert found.cost.macs == 36 * (4 * 27 + 2 * 4)
    assert found.cost.unknown == ("odd",)
    assert (found.quantizable, found.not_quantizable, found.trainable) == (None, None, None)


def test_what_can_be_trained_ends_where_a_rule_is_missing() -> None:
    trainable = inspect_model(_net(), differentiable=_rule).trainable
    assert trainable is not None
    assert (trainable.params, trainable.total) == (8, 116)
    assert trainable.blocked == (Reason("odd", "com.example.Odd", "no gradient rule for Odd"),)


def test_ops_off_the_gradients_way_do_not_block() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ("n", 3))
    odd = graph.op("Odd", x, domain="com.example")  # reads no weight: nothing is lost behind it
    weight = graph.add_constant("w", np.ones((3, 2), np.float32))
    graph.add_output(graph.op("Gemm", odd, weight))
    graph.add_output(graph.op("ArgMax", graph.outputs[0], axis=1))
    trainable = inspect_model(graph, differentiable=_rule).trainable
    assert trainable is not None
    assert (trainable.params, trainable.total, trainable.blocked) == (6, 6, ())


@pytest.mark.parametrize("target", ["x64", "arm"])
def test_what_can_be_quantised(target: str) -> None:
    found = inspect_model(_net(), target=load_target(target))
    assert found.quantizable == ("conv1", "conv2")
    assert found.not_quantizable is not None
    assert "odd" in [r.node for r in found.not_quantizable]
    assert all(r.why for r in found.not_quantizable)


def test_every_model_file(model_path: Path) -> None:
    graph = read(model_path)
    before = to_bytes(graph)
    found = inspect_model(graph, target=load_target("x64"), differentiable=_rule, file_bytes=model_path.stat().st_size)
    assert found.quantizable
    assert found.trainable is not None
    assert 0 <= found.trainable.params <= found.trainable.total
    assert sum(count for _, count in found.ops) == len(graph.nodes())
    assert found.cost.bytes <= model_path.stat().st_size
    assert to_bytes(graph) == before


def test_a_plain_network_trains_as_a_whole(shared: Path) -> None:
    found = inspect_model(read(shared / "models" / "vgg9.onnx"), differentiable=lambda node: None)
    assert found.trainable is not None
    assert found.trainable.params == found.trainable.total == found.cost.params


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_quantisation_makes_of_a_model_first_is_looked_at(dtype: type) -> None:
    """A model in float16 is quantised in float32; means become pools, for which there is a kernel."""
    graph = Graph("net")
    x = graph.add_input("x", DType.of(np.empty(0, dtype)), ("n", 3, 8, 8))
    for name in ("a", "b"):
        x = graph.op("Conv", x, graph.add_constant(name, np.ones((3, 3, 1, 1), dtype)), name=f"conv_{name}")
    y = graph.op("ReduceMean", x, graph.add_constant("axes", np.array([2, 3])), keepdims=1, name="mean")
    y = graph.op("Conv", y, graph.add_constant("c", np.ones((3, 3, 1, 1), dtype)), name="last")
    graph.set_type(y, x.dtype, None)
    graph.add_output(y)
    target = load_target("x64")
    before = to_bytes(graph)
    found = inspect_model(graph, target=target, ready=lambda g: ready_to_quantize()(g, Context(target=target)))
    assert found.quantizable == ("conv_a", "conv_b", "last", "mean")
    assert found.not_quantizable == ()
    assert str(found.precision) == np.dtype(dtype).name
    assert to_bytes(graph) == before


def test_a_model_that_cannot_be_made_ready_says_why() -> None:
    def refuse(graph: Graph) -> None:
        raise UnsupportedError("opset 3 is too old")

    found = inspect_model(_net(), target=load_target("x64"), ready=refuse)
    assert found.quantizable == ()
    assert found.not_quantizable == (Reason("net", "the model", "opset 3 is too old"),)


def test_a_quantised_model_says_so() -> None:
    graph = Graph("net")
    x, s = graph.add_input("x", DType.FLOAT, ("n", 3)), graph.add_constant("s", np.float32(0.1))
    z = graph.add_constant("z", np.int8(0))
    y = graph.op("DequantizeLinear", graph.op("QuantizeLinear", x, s, z), s, z)
    graph.set_type(y, DType.FLOAT, ("n", 3))
    graph.add_output(y)
    found = inspect_model(graph, target=load_target("x64"), differentiable=_rule)
    assert str(found.precision) == "int8, int8 activations, for arm"
    assert (found.quantizable, found.not_quantizable, found.trainable) == (None, None, None)
