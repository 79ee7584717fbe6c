"""ToFloat32: half-precision models in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.onnx_io import read
from onnxslim.ir.verify import verify
from onnxslim.runtime.session import Session
from passes.simplify import ToFloat32, canonicalize


def halved(graph: Graph) -> Graph:
    """The model in float16 throughout."""
    for value in graph.values():
        if value.dtype is DType.FLOAT and value.array is not None:
            graph.set_array(value, value.array.astype(np.float16))
        elif value.dtype is DType.FLOAT:
            graph.set_type(value, DType.FLOAT16)
    return graph


def test_model_files_are_not_touched(model_path: Path, run_on_file) -> None:
    _, _, outcome = run_on_file(ToFloat32(), model_path)
    assert outcome.rewrites == 0


def test_a_float16_network(mobilenet: Path) -> None:
    original = read(mobilenet)
    canonicalize()(original)
    graph = halved(original.copy())
    verify(graph)
    assert ToFloat32()(graph).rewrites > 100
    assert {v.dtype for v in graph.values()} <= {DType.FLOAT, DType.INT64}
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)
    expected, got = (next(iter(Session(g).run({"image": x}).values())) for g in (original, graph))
    assert np.abs(expected - got).max() <= 5e-3 * np.abs(expected).max()  # the weights are float16's


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_casts_and_constants(dtype: DType, build) -> None:
    b = build("N", 2)
    g = b.graph
    half = g.op("Cast", b.x, name="down", to=int(dtype))
    two = g.op("Constant", name="two", value=numpy_helper.from_array(np.array([2.0], dtype.numpy)))
    filled = g.op("ConstantOfShape", b.constant(np.array([2])), value=helper.make_tensor("v", int(dtype), [1], [3.0]))
    summed = g.op("Add", g.op("Mul", half, two), filled)
    graph = b.finish(g.op("Cast", summed, name="up", to=1))
    assert ToFloat32()(graph).rewrites > 0
    assert Session(graph).run({"x": np.ones((1, 2), np.float32)})["up"].tolist() == [[5.0, 5.0]]
    assert not [v for v in graph.values() if v.dtype is dtype]


def test_the_opening_with_float32_leaves_no_idle_casts(mobilenet: Path) -> None:
    graph = halved(read(mobilenet))
    canonicalize()(graph)
    y = graph.outputs[0]
    wide = graph.op("Cast", y, name="wide", to=int(DType.FLOAT))
    graph.remove_output(y)
    graph.add_output(wide)
    canonicalize()(graph)
    assert [n.op for n in graph.nodes()].count("Cast") == 1
    canonicalize(float32=True)(graph)
    assert [n.op for n in graph.nodes()].count("Cast") == 0
    assert not [v for v in graph.values() if v.dtype is DType.FLOAT16]
