"""SplitBatchnorm: what ONNX Runtime 1.19 fuses wrongly computes the right numbers in any session."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.onnx_io import to_bytes
from onnxslim.run import simplify
from onnxslim.runtime.session import Session
from onnxslim.stages.export import lower
from passes.deploy import SplitBatchnorm

SIZE = 12


def batchnorm(graph: Graph, x: Value, channels: int = SIZE, **attributes: object) -> Value:
    rng = np.random.default_rng(5)
    drawn = [rng.uniform(0.5, 2, channels), *rng.normal(size=(2, channels)), rng.uniform(0.2, 3, channels)]
    values = [graph.add_constant(name, a.astype(np.float32)) for name, a in zip("gbmv", drawn)]
    return graph.op("BatchNormalization", x, *values, name="norm", **attributes)


def network(shape: list[object], steps: list[tuple[str, list[int]]], channels: int = SIZE) -> Graph:
    """MatMul, the steps, a batch norm."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, shape)
    w = graph.add_constant("w", np.random.default_rng(3).normal(size=(6, SIZE)).astype(np.float32))
    y = graph.op("MatMul", x, w)
    for op, numbers in steps:
        if op == "Reshape":
            y = graph.op("Reshape", y, graph.add_constant("shape", np.array(numbers)))
        else:
            y = graph.op("Transpose", y, perm=numbers)
    y = batchnorm(graph, y, channels)
    graph.set_type(y, DType.FLOAT)
    graph.add_output(y)
    return graph


def plain(graph: Graph, x: Array) -> Array:
    """As anybody's session runs it, all of ONNX Runtime's optimisations on."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(to_bytes(graph), options, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"x": x})[0]
    return found


CASES = {
    "joined": ([2, 5, 6], [("Reshape", [-1, SIZE])]),
    "square": ([2, SIZE, 6], [("Reshape", [-1, SIZE, SIZE])]),
    "transposed": ([2, 5, 6], [("Transpose", [0, 2, 1])]),
    "transposed matrix": ([SIZE, 6], [("Transpose", [1, 0])]),
    "rows as channels": ([SIZE, 6], [("Reshape", [1, SIZE, SIZE])]),
    "mixed": ([SIZE, 6], [("Reshape", [2, SIZE, 3, 2])]),
    "twice": ([2, 6, 6], [("Transpose", [0, 2, 1]), ("Reshape", [-1, SIZE, 2, 3])]),
    "nothing between": ([2, SIZE, 6], []),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_runs_right_in_any_session(name: str) -> None:
    shape, steps = CASES[name]
    graph = network(list(shape), steps)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    expected = next(iter(Session(graph, optimize=False).run({"x": x}).values()))
    ours = next(iter(Session(graph).run({"x": x}).values()))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)  # our sessions leave that fusion out
    for made in (simplify(graph).graph, lower(graph, "x64")[0]):
        assert "BatchNormalization" not in [node.op for node in made.nodes()]
        np.testing.assert_allclose(plain(made, x), expected, rtol=1e-5, atol=1e-5)  # float32: x·k + c


def test_a_matrix_product_with_its_batch_norm_is_retained() -> None:
    graph = network(["N", 6], [])
    assert SplitBatchnorm()(graph).rewrites == 0


def test_training_mode_is_retained() -> None:
    graph = network([2, 5, 6], [("Reshape", [-1, SIZE])])
    graph.set_attribute(graph.node_named("norm"), "training_mode", 1)
    assert SplitBatchnorm().run(graph, None).rewrites == 0  # type: ignore[arg-type]
