"""What a model computes in, read off its nodes wherever they stand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxslim.analysis.precision import TARGET_KEY, precision_of, require_not_quantized
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.onnx_io import from_proto


def one_op(op: str, domain: str = "") -> Graph:
    graph = Graph("g")
    y = graph.op(op, graph.add_input("x", DType.FLOAT, ["N", 4]), domain=domain)
    graph.set_type(y, DType.FLOAT, None)
    graph.add_output(y)
    return graph


@pytest.mark.parametrize(
    ("op", "domain", "kind"),
    [
        ("Relu", "", "float"),
        ("QLinearConv", "com.example", "float"),
        ("FakeQuant", "onnxslim", "fake-quant"),
        ("DynamicQuantizeLinear", "", "int8"),
        ("QLinearConv", "", "int8"),
        ("QGemm", "com.microsoft", "int8"),
        ("QLinearSigmoid", "com.microsoft", "int8"),
        ("MatMulNBits", "com.microsoft", "int8"),
        ("FusedMatMul", "com.microsoft", "float"),
    ],
)
def test_kinds(op: str, domain: str, kind: str) -> None:
    assert precision_of(one_op(op, domain)).kind == kind


@pytest.mark.parametrize(("dtype", "noted", "target"), [
    (np.uint8, None, "x64"), (np.int8, None, "arm"), (np.uint16, None, None), (np.uint8, "arm", "x64"),
    (np.int8, "arm", "arm"),
])  # fmt: skip
def test_the_target_is_what_is_noted_where_the_types_agree(dtype: type, noted: str | None, target: str | None) -> None:
    graph = Graph("g")
    x, s = graph.add_input("x", DType.FLOAT, ["N"]), graph.add_constant("s", np.float32(1))
    z = graph.add_constant("z", np.zeros((), dtype))
    y = graph.op("DequantizeLinear", graph.op("QuantizeLinear", x, s, z), s, z)
    graph.set_type(y, DType.FLOAT, None)
    graph.add_output(y)
    if noted is not None:
        graph.metadata[TARGET_KEY] = noted
    found = precision_of(graph)
    assert (found.kind, found.target) == ("int8", target)
    assert found.ops == (("DequantizeLinear", 1), ("QuantizeLinear", 1))
    assert np.dtype(dtype).name in str(found)
    with pytest.raises(UnsupportedError, match=r"quantised already \(1 DequantizeLinear, 1 QuantizeLinear\)"):
        require_not_quantized(graph, "pruned")


def test_bodies_and_local_functions_count() -> None:
    inner = [
        helper.make_node("Constant", [], ["s"], value_float=1.0),
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    body = helper.make_graph(inner, "body", [], [out])
    branch = helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body)
    function = helper.make_function("local", "F", ["x"], ["y"], inner, [helper.make_opsetid("", 17)])
    call = helper.make_node("F", ["x"], ["z"], domain="local")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    for node, inputs, functions in ((branch, [x, c], []), (call, [x], [function])):
        graph = helper.make_graph([node], "g", inputs, [z])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)
        assert precision_of(from_proto(model)).kind == "int8"
