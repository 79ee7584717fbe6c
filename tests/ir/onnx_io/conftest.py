"""A model with a bit of everything that must survive, and a canonical form to compare models in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def _canonical_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type != TensorProto.STRING and not tensor.HasField("raw_data"):
        raw = numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
        for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(field)
        tensor.raw_data = raw


def _canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    for tensor in graph.initializer:
        _canonical_tensor(tensor)
    names = {t.name for t in graph.initializer}
    known = {v.name for v in (*graph.input, *graph.output)}
    for field in ("initializer", "value_info"):
        rows = sorted(getattr(graph, field), key=lambda row: row.name)
        del getattr(graph, field)[:]
        # Exporters repeat the types of initialisers and outputs; those add nothing.
        extra = [r for r in rows if r.metadata_props or r.doc_string or r.name not in names | known]
        getattr(graph, field).extend(rows if field == "initializer" else extra)
    for opset in twin.opset_import:
        opset.domain = "" if opset.domain == "ai.onnx" else opset.domain
    for info in (*graph.input, *graph.output, *graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.ClearField("dim_value")
            if dim.HasField("dim_param") and not dim.dim_param:
                dim.ClearField("dim_param")
    for node in graph.node:
        for text in ("name", "domain", "doc_string", "overload"):
            if node.HasField(text) and not getattr(node, text):
                node.ClearField(text)
    return twin


@pytest.fixture
def canonical() -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """The model in one order and encoding; equal for two models that say the same."""
    return _canonical


def _bodies() -> tuple[onnx.GraphProto, onnx.GraphProto]:
    inner = helper.make_graph(
        [helper.make_node("Mul", ["weight", "then_sum"], ["inner_out"])],
        "inner",
        [],
        [helper.make_tensor_value_info("inner_out", 1, [2, 3])],
    )
    then = helper.make_graph(
        [
            helper.make_node("Add", ["relu", "then_bias"], ["then_sum"]),
            helper.make_node("If", ["condition"], ["then_out"], then_branch=inner, else_branch=inner),
        ],
        "then",
        [],
        [helper.make_tensor_value_info("then_out", 1, [2, 3])],
        [numpy_helper.from_array(np.ones((2, 3), np.float32), "then_bias")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["else_out"])],
        "else",
        [],
        [helper.make_tensor_value_info("else_out", 1, [2, 3])],
    )
    return then, other


def _initializers() -> list[onnx.TensorProto]:
    text = TensorProto(name="text", data_type=TensorProto.STRING, dims=[2], string_data=[b"caf\xc3\xa9", b"\xff\x00"])
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0])
    arrays: dict[str, Any] = {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.array([1.5, np.nan, np.inf, 6e-8], np.float16),
        "brain": np.array([1.5, -2.25], ml_dtypes.bfloat16),
        "nibbles": np.array([-8, 7, 1], ml_dtypes.int4),
        "unsigned_nibbles": np.array([[15], [0]], ml_dtypes.uint4),
        "eighth": np.array([0.5, 448], ml_dtypes.float8_e4m3fn),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 3), np.float64),
        "truth": np.array([True, False]),
        "complex": np.array([1 + 2j], np.complex64),
    }
    text.doc_string = "two words"
    typed.metadata_props.add(key="kind", value="typed")
    return [numpy_helper.from_array(a, name) for name, a in arrays.items()] + [text, typed]


def _everything() -> onnx.ModelProto:
    then, other = _bodies()
    x = helper.make_tensor_value_info("x", 1, [2, 3], doc_string="the input")
    x.type.denotation = "IMAGE"
    x.metadata_props.add(key="unit", value="grey")
    nodes = [
        helper.make_node("Relu", ["x"], ["relu"], name="act", doc_string="rectify"),
        helper.make_node("If", ["condition"], ["chosen"], then_branch=then, else_branch=other),
        helper.make_node("Twice", ["chosen"], ["doubled"], domain="local"),
        helper.make_node("Strange", ["doubled", "", "text"], ["", "odd"], domain="com.example", how=[b"a", b"b"]),
        helper.make_node("SequenceConstruct", ["relu", "chosen"], ["sequence"]),
        helper.make_node("Add", ["weight", "sparse"], ["dense"]),
    ]
    nodes[0].metadata_props.add(key="from", value="layer 1")
    sequence = helper.make_tensor_sequence_value_info("sequence", 1, None)
    mapping = helper.make_value_info("odd", helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, None)))
    graph = helper.make_graph(
        nodes,
        "everything",
        [
            x,
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("weight", 1, [2, 3]),
        ],
        [
            helper.make_tensor_value_info("dense", 1, ["rows", 3]),
            sequence,
            mapping,
            helper.make_empty_tensor_value_info("doubled"),
        ],
        _initializers(),
        doc_string="a graph",
        value_info=[
            helper.make_tensor_value_info("relu", 1, [2, None]),
            helper.make_tensor_value_info("chosen", 1, None),
        ],
        sparse_initializer=[
            helper.make_sparse_tensor(
                helper.make_tensor("sparse", 1, [2], [1.0, 2.0]), helper.make_tensor("indices", 7, [2], [0, 4]), [2, 3]
            )
        ],
    )
    graph.metadata_props.add(key="graph", value="metadata")
    annotation = graph.quantization_annotation.add(tensor_name="relu")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scalar")
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    model = helper.make_model(
        graph,
        functions=[function],
        opset_imports=[helper.make_opsetid(d, v) for d, v in (("", 18), ("com.example", 3), ("local", 1))],
        producer_name="maker",
        producer_version="1.2",
        doc_string="a model",
        ir_version=10,
        model_version=7,
        domain="org.example",
    )
    helper.set_model_props(model, {"key": "value", "another": "one"})
    model.training_info.add().algorithm.name = "training"
    return model


@pytest.fixture
def everything() -> onnx.ModelProto:
    """Unknown ops, nested bodies with captures, a function, all kinds of tensors, types and metadata."""
    return _everything()
