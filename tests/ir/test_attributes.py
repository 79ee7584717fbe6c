"""What numbers attributes may hold: refused by name before ONNX Runtime, which some of them kill, sees the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim.errors import VerifyError
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.onnx_io import from_proto
from onnxslim.ir.verify import require_sound_attributes, verify
from onnxslim.runtime.session import Session

CONV = ("Conv", [2, 4, 9, 9], {"w": [6, 4, 3, 3]})
TRANSPOSED = ("ConvTranspose", [2, 4, 9, 9], {"w": [4, 6, 3, 3]})
GROUPED = ("Conv", [2, 4, 9, 9], {"w": [6, 2, 3, 3]})
POOL = ("MaxPool", [2, 4, 9, 9], {})
LSTM = ("LSTM", [5, 1, 3], {"w": [1, 16, 3], "r": [1, 16, 4]})
INSTANCE_NORM = ("InstanceNormalization", [1, 2, 3], {"s": [2], "b": [2]})


def recurrent(op: str, **changed: list[int]) -> tuple[str, list[int], dict[str, list[int]]]:
    """Of 3 features and 4 hidden numbers; weights by name, some of them of other shapes."""
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    shapes = {"w": [1, 4 * gates, 3], "r": [1, 4 * gates, 4], "b": [1, 8 * gates]}
    return op, changed.pop("x", [5, 2, 3]), {**shapes, **changed}


WRONG: list[tuple[tuple[str, list[int], dict[str, list[int]]], dict[str, Any], str]] = [
    (CONV, {"pads": [-1, 0, 0, 0]}, r"'pads' to be at least 0, got \[-1, 0, 0, 0\]"),
    (CONV, {"pads": [1, 1]}, r"'pads' to have 4 numbers \(the rank of its (input|filters)\), got \[1, 1\]"),
    (CONV, {"strides": [0, 1]}, r"'strides' to be at least 1, got \[0, 1\]"),
    (CONV, {"strides": [1 << 40, 1]}, r"'strides' to be at least 1, at most 2147483647, got"),
    (CONV, {"strides": [1]}, r"'strides' to have 2 numbers"),
    (CONV, {"dilations": [0, 1]}, r"'dilations' to be at least 1"),
    (CONV, {"kernel_shape": [3, 0]}, r"'kernel_shape' to be at least 1"),
    (CONV, {"kernel_shape": [3, 5]}, r"'kernel_shape' to be \[3, 3\] as its filters are, got \[3, 5\]"),
    (CONV, {"kernel_shape": [3]}, "as many spatial axes everywhere"),
    (CONV, {"group": 0}, "'group' to be at least 1, got 0"),
    (CONV, {"group": 4}, "'group' to divide 6, the first axis of its filters, got 4"),
    (CONV, {"group": 2}, r"expected 8 channels, for filters \[6, 4, 3, 3\] in 2 groups, got an input of 4"),
    (TRANSPOSED, {"output_padding": [1, 0]}, "'output_padding' to be smaller than the stride or the dilation"),
    (TRANSPOSED, {"output_padding": [-1, 0], "strides": [2, 2]}, "'output_padding' to be at least 0"),
    (TRANSPOSED, {"output_shape": [0, 9]}, "'output_shape' to be 2 sizes of at least 1"),
    (TRANSPOSED, {"group": 3}, "'group' to divide 4, the first axis of its filters"),
    (POOL, {"kernel_shape": [0, 2]}, "'kernel_shape' to be at least 1"),
    (POOL, {"kernel_shape": [2, 2], "pads": [2, 0, 0, 0]}, r"'pads' to be smaller than its kernel \[2, 2\]"),
    (POOL, {"kernel_shape": [2, 2], "strides": [0, 0]}, "'strides' to be at least 1"),
    (POOL, {"kernel_shape": [2, 2, 2]}, "as many spatial axes everywhere"),
    (POOL, {"kernel_shape": [2, 2], "ceil_mode": 7}, "'ceil_mode' to be 0 to 1, got 7"),
    (("Softmax", [2, 3], {}), {"axis": 2}, "'axis' to be -2 to 1 for an input of 2 axes, got 2"),
    (("Flatten", [2, 3], {}), {"axis": 3}, "'axis' to be -2 to 2"),
    (("Transpose", [2, 3], {}), {"perm": [0, 0]}, r"'perm' to be an order of 2 axes, got \[0, 0\]"),
    (("Transpose", [2, 3], {}), {"perm": [1, 0, 2]}, "'perm' to be an order of 2 axes"),
    (("DepthToSpace", [1, 8, 2, 2], {}), {"blocksize": 0}, "'blocksize' to be at least 1"),
    (("DepthToSpace", [1, 8, 2, 2], {}), {"blocksize": 3}, "square of its attribute 'blocksize' to divide 8"),
    (("LRN", [1, 8, 2, 2], {}), {"size": 0}, "'size' to be at least 1"),
    (LSTM, {"hidden_size": 0}, "'hidden_size' to be at least 1"),
    (LSTM, {"hidden_size": 5}, "axis 1 of its input W to be 20 for hidden_size 5, 1 direction, got 16"),
    (LSTM, {"hidden_size": 4, "direction": "bidirectional"}, "axis 0 of its input W to be 2 for .*2 directions, got 1"),
    (recurrent("LSTM", r=[64]), {"hidden_size": 4}, r"its input R to have 3 axes, got shape \[64\]"),
    (recurrent("GRU", w=[12, 3]), {"hidden_size": 4}, r"its input W to have 3 axes, got shape \[12, 3\]"),
    (recurrent("GRU", x=[5, 3]), {"hidden_size": 4}, r"its input X to have 3 axes, got shape \[5, 3\]"),
    (recurrent("RNN", b=[1, 4]), {"hidden_size": 4}, "axis 1 of its input B to be 8 for hidden_size 4"),
    (recurrent("GRU", w=[1, 12, 7]), {"hidden_size": 4}, "axis 2 of its input W to be 3 for .*3 features of X, got 7"),
    (("Conv", [2, 4, 9, 9], {"w": [6, 4, 3, 0]}), {}, r"at least one number along each spatial axis, got .*3, 0\]"),
    (("ConvTranspose", [2, 4, 9], {"w": [4, 6, 0]}), {}, "at least one number along each spatial axis"),
    (("RandomNormal", [1], {}), {"shape": [-1]}, "'shape' to be at least 0"),
]

RIGHT: list[tuple[tuple[str, list[int], dict[str, list[int]]], dict[str, Any]]] = [
    (CONV, {"pads": [1, 1, 1, 1], "strides": [2, 3], "dilations": [2, 2], "kernel_shape": [3, 3]}),
    (GROUPED, {"group": 2}),
    (TRANSPOSED, {"output_padding": [1, 0], "strides": [2, 2], "output_shape": [18, 17]}),
    (POOL, {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    (POOL, {"kernel_shape": [2, 2], "dilations": [3, 3], "pads": [1, 0, 1, 0]}),
    (("Softmax", [2, 3], {}), {"axis": -2}),
    (("Flatten", [2, 3], {}), {"axis": 2}),
    (("Transpose", [2, 3], {}), {"perm": [1, 0]}),
    (LSTM, {"hidden_size": 4}),
    *((recurrent(op), {"hidden_size": 4}) for op in ("RNN", "GRU", "LSTM")),
    (("GRU", [5, 2, 3], {"w": [2, 12, 3], "r": [2, 12, 4]}), {"hidden_size": 4, "direction": "bidirectional"}),
    (INSTANCE_NORM, {"epsilon": -1.0}),  # ONNX sets no bound
]


def network(case: tuple[str, list[int], dict[str, list[int]]], attributes: dict[str, Any], free: bool = False) -> Graph:
    op, shape, weights = case
    dims = [f"d{axis}" for axis in range(len(shape))] if free else shape
    inputs = [] if op == "RandomNormal" else ["x"]
    node = helper.make_node(op, [*inputs, *weights], ["y"], **attributes)
    arrays = [numpy_helper.from_array(np.ones(s, np.float32), name) for name, s in weights.items()]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in inputs]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    body = helper.make_graph([node], "net", given, made, arrays)
    return from_proto(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


@pytest.mark.parametrize("case, attributes, why", WRONG)
def test_numbers_that_an_op_cannot_take_are_named(case: Any, attributes: dict[str, Any], why: str) -> None:
    graph = network(case, attributes)
    for refuse in (verify, require_sound_attributes, Session):
        with pytest.raises(VerifyError, match=f"{case[0]} that makes 'y': expected .*{why}|{case[0]}.*{why}"):
            refuse(graph)


@pytest.mark.parametrize("case, attributes", RIGHT)
def test_what_an_op_can_take_runs(case: Any, attributes: dict[str, Any]) -> None:
    _, shape, _ = case
    for free in (False, True):
        graph = network(case, attributes, free)
        verify(graph)
        assert Session(graph).run({"x": np.ones(shape, np.float32)})["y"].size


@pytest.mark.parametrize("attributes", [{"pads": [-1, 0, 0, 0]}, {"strides": [0, 1]}, {"group": 0}])
def test_free_sizes_hide_nothing(attributes: dict[str, Any]) -> None:
    with pytest.raises(VerifyError, match=next(iter(attributes))):
        Session(network(CONV, attributes, free=True))


def test_bodies_are_looked_into() -> None:
    inner = helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2], strides=[0, 0])
    body = helper.make_graph([inner], "then", [], [helper.make_tensor_value_info("p", TensorProto.FLOAT, None)])
    graph = Graph("net")
    condition = graph.add_input("c", DType.BOOL, [])
    x = graph.add_input("x", DType.FLOAT, [1, 1, 4, 4])
    y = graph.op("If", condition, name="y", then_branch=body, else_branch=body)
    graph.add_capture(graph.producer(y) or pytest.fail("no node"), x, "x")
    graph.add_output(y)
    with pytest.raises(VerifyError, match=r"MaxPool that makes 'p' inside: expected its attribute 'strides'"):
        require_sound_attributes(graph)


def test_functions_are_looked_into() -> None:
    inner = helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[0, 0])
    function = helper.make_function("own", "Pool", ["a"], ["b"], [inner], [helper.make_opsetid("", 18)])
    node = helper.make_node("Pool", ["x"], ["y"], domain="own")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "net", infos[:1], infos[1:]),
        functions=[function],
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("own", 1)],
        ir_version=9,
    )
    with pytest.raises(VerifyError, match="Function 'Pool' of graph 'net': MaxPool that makes 'b' inside"):
        require_sound_attributes(from_proto(model))
