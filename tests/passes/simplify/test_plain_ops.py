"""PlainOps: what ONNX's own definitions write, as runtimes know it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxslim.ir.graph import DType
from onnxslim.ir.onnx_io import to_bytes
from onnxslim.runtime.session import Session
from passes.simplify import PlainOps, canonicalize


def test_cast_like_becomes_a_cast(build, ops, largest_error) -> None:
    b = build("N", 4)
    y = b.graph.op("CastLike", b.graph.op("Abs", b.x), b.constant(np.array([1], np.int32)))
    b.graph.set_type(y, DType.INT32)
    graph = b.finish(y)
    before = graph.copy()
    assert PlainOps()(graph).rewrites == 1
    assert ops(graph) == ["Abs", "Cast"]
    assert largest_error(before, graph) == 0


def test_a_sum_of_two_becomes_an_add(build, ops, largest_error) -> None:
    b = build("N", 4)
    y = b.graph.op("Sum", b.x, b.graph.op("Abs", b.x))
    graph = b.finish(b.graph.op("Sum", y, b.x, y))
    before = graph.copy()
    assert PlainOps()(graph).rewrites == 1
    assert ops(graph) == ["Abs", "Add", "Sum"]
    assert largest_error(before, graph) == 0


def test_a_cast_to_an_unknown_type_is_retained(build) -> None:
    b = build("N", 4)
    like = b.graph.add_input("like", DType.UNDEFINED, None)
    y = b.graph.op("CastLike", b.x, like)
    graph = b.finish(y, infer=False)
    assert PlainOps().run(graph, None).rewrites == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_gelu_is_written_out_as_onnx_runtime_fuses_it(approximate: str, build, ops, largest_error) -> None:
    b = build("N", 4, opset=20)
    graph = b.finish(b.graph.op("Gelu", b.x, approximate=approximate))
    before = graph.copy()
    canonicalize()(graph)
    assert not {"CastLike", "Sum", "Sqrt"} & set(ops(graph))
    assert len(ops(graph)) == {"none": 5, "tanh": 8}[approximate]
    assert largest_error(before, graph) <= 1e-5
    assert Session(graph).inputs[0].name == "x"


def test_an_rms_norm_is_written_out_as_onnx_runtime_fuses_it(build, ops, tmp_path) -> None:
    b = build("N", 8, opset=23)
    b.graph.ir_version = 10
    y = b.graph.op("RMSNormalization", b.x, b.weight(8), axis=-1, epsilon=1e-4)
    graph = b.finish(b.graph.op("Abs", y))
    canonicalize()(graph)
    assert ops(graph) == ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Abs"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime.InferenceSession(to_bytes(graph), options, providers=["CPUExecutionProvider"])
    assert "SimplifiedLayerNormalization" in [
        node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node
    ]
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    (gamma,) = (v.array for v in graph.initializers() if v.static_shape == (8,) and v.array is not None)
    expected = np.abs(x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-4) * gamma)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-5)  # float32 against float64
