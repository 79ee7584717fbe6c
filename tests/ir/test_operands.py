"""Operands that onnx's inference does not look at: refused by name before a pass multiplies them."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim import simplify
from onnxslim.errors import VerifyError
from onnxslim.ir.graph import DType, Graph, Value
from onnxslim.ir.verify import verify


def constant(graph: Graph, name: str, *shape: int) -> Value:
    return graph.add_constant(name, np.ones(shape, np.float32))


def normed(op: str, parameters: int, wrong: int, channels: object = 8) -> Graph:
    graph = Graph("norm")
    x = graph.add_input("x", DType.FLOAT, ["N", channels, 4, 4])  # type: ignore[list-item]
    operands = [constant(graph, f"p{i}", 16 if i == wrong else 8) for i in range(parameters)]
    graph.add_output(graph.op(op, x, *operands, name="norm"))
    return graph


@pytest.mark.parametrize(("op", "parameters"), [("BatchNormalization", 4), ("InstanceNormalization", 2)])
def test_a_norm_has_one_number_a_channel(op: str, parameters: int) -> None:
    verify(normed(op, parameters, -1))
    verify(normed(op, parameters, -1, "C"))
    for wrong in range(parameters):
        with pytest.raises(VerifyError, match=rf"norm.*('p{wrong}'.*got \[16\]|between 16 and 8)"):
            simplify(normed(op, parameters, wrong))


@pytest.mark.parametrize(("op", "weight"), [("Conv", (4, 3, 3, 3)), ("ConvTranspose", (3, 4, 3, 3))])
def test_a_convolution_has_a_bias_a_channel(op: str, weight: tuple[int, ...]) -> None:
    for size in (4, 5):
        graph = Graph("conv")
        x = graph.add_input("x", DType.FLOAT, [1, 3, 8, 8])
        operands = [constant(graph, "w", *weight), constant(graph, "b", size)]
        graph.add_output(graph.op(op, x, *operands, name="conv"))
        if size == 4:
            verify(graph)
            continue
        with pytest.raises(
            VerifyError, match=rf"'conv' \({op}\).*'b' to have one number for each of 4 channels, got \[5\]"
        ):
            verify(graph)


def test_a_squeeze_of_an_empty_list_of_axes_is_refused() -> None:
    """ONNX takes no axis away, ONNX Runtime every one of size 1: whatever is made of it would be wrong for one."""
    graph = Graph("squeeze")
    x = graph.add_input("x", DType.FLOAT, [1, 3, 8])
    graph.add_output(graph.op("Squeeze", x, graph.add_constant("axes", np.zeros(0, np.int64)), name="squeeze"))
    with pytest.raises(VerifyError, match=r"'squeeze' \(Squeeze\).*an empty list"):
        verify(graph)


def test_an_output_that_says_no_type_keeps_what_is_known() -> None:
    import onnx
    from onnx import helper

    from onnxslim.ir.onnx_io import from_proto, to_proto

    info = helper.make_tensor_value_info("x", 1, [2])
    node = helper.make_node("Relu", ["x"], ["y"])
    outputs = [helper.make_tensor_value_info("y", 1, [2]), onnx.ValueInfoProto(name="x")]
    model = helper.make_model(
        helper.make_graph([node], "g", [info], outputs), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    graph = from_proto(model)
    assert (graph.value("x").dtype, graph.value("x").shape) == (DType.FLOAT, (2,))
    assert to_proto(graph).graph.input[0].type.tensor_type.elem_type == 1
