"""ONNX Runtime's own gradient builder as the second opinion on `differentiate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim.errors import GradientError
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.session import Session
from passes.gradient import GradientOptions, differentiate
from passes.gradient.ort_builder import differentiate_with_ort
from tests.passes.gradient.conftest import run_gradients

pytestmark = pytest.mark.skipif(not capabilities().has_gradient_builder, reason="ONNX Runtime's builder is not here")


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "qat"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
def test_both_agree_on_the_trained_networks(
    trained_path: Path, training: bool, quantized: bool, network: Callable
) -> None:
    check_agreement(network(trained_path, training=training, quantized=quantized))


def test_both_agree_on_an_untrained_network(network: Callable, shared: Path) -> None:
    check_agreement(network(shared / "models" / "structures" / "paddle_mobilenet_v1_x025.onnx"))


def check_agreement(net: Any) -> None:
    """All gradients of both, to 2e-5 of the largest element, and where that is tiny to 1e-6 of the largest of all."""
    own = net.gradients(GradientOptions(training_kernels=True))
    graph = net.graph.copy()
    made, found = differentiate_with_ort(graph, graph.value(net.loss.name), [graph.value(w.name) for w in net.weights])
    theirs = run_gradients(made, found, net.feeds)
    assert list(theirs) == list(own)
    largest = max(float(np.abs(gradient).max()) for gradient in own.values())
    for name, gradient in own.items():
        tolerance = 2e-5 * float(np.abs(gradient).max()) + 1e-6 * largest
        np.testing.assert_allclose(theirs[name], gradient, rtol=0, atol=tolerance, err_msg=name)


def both(graph: Graph, wrt: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """d loss / d wrt by our pass and by ONNX Runtime's builder."""
    infer_shapes(graph)
    found = []
    for build in ("own", "ort"):
        copy = graph.copy()
        if build == "own":
            value = differentiate(copy, copy.value("loss"), [copy.value(wrt)])[wrt]
        else:
            copy, gradients = differentiate_with_ort(copy, copy.value("loss"), [copy.value(wrt)])
            value = gradients[wrt]
        copy.add_output(value)
        found.append(Session(copy).run({wrt: x}, [value.name])[value.name])
    return found[0], found[1]


def scalar(graph: Graph, y: object, weights: np.ndarray) -> Graph:
    product = graph.op("Mul", y, graph.add_constant("weights", weights), name="product")  # type: ignore[arg-type]
    graph.add_output(graph.op("ReduceSum", product, name="loss", keepdims=0))
    return graph


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_auto_pad_is_written_out(mode: str, stride: int) -> None:
    rng = np.random.default_rng(0)
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (2, 3, 7, 6))
    w = graph.add_constant("w", rng.normal(size=(4, 3, 3, 2)).astype(np.float32))
    y = graph.op("Conv", x, w, name="conv", auto_pad=mode, strides=[stride, stride])
    infer_shapes(graph)
    scalar(graph, y, rng.normal(size=y.static_shape).astype(np.float32))
    own, theirs = both(graph, "x", rng.normal(size=(2, 3, 7, 6)).astype(np.float32))
    np.testing.assert_allclose(own, theirs, rtol=1e-4, atol=1e-5)


def test_branches_of_where_are_expanded() -> None:
    rng = np.random.default_rng(0)
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (3,))
    condition = graph.add_constant("condition", rng.normal(size=(2, 3)) > 0)
    y = graph.op("Where", condition, x, graph.add_constant("zero", np.float32(0)), name="where")
    scalar(graph, y, rng.normal(size=(2, 3)).astype(np.float32))
    own, theirs = both(graph, "x", rng.normal(size=3).astype(np.float32))
    assert theirs.shape == (3,)
    np.testing.assert_allclose(own, theirs, rtol=1e-5)


@pytest.mark.parametrize("terms", [1, 2, 4])
def test_a_sum_becomes_additions(terms: int) -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (3,))
    parts = [graph.op("Mul", x, graph.add_constant(f"factor{i}", np.float32(i + 1))) for i in range(terms)]
    scalar(graph, graph.op("Sum", *parts, name="sum"), np.arange(3, dtype=np.float32))
    own, theirs = both(graph, "x", np.ones(3, np.float32))
    np.testing.assert_array_equal(own, theirs)
    np.testing.assert_array_equal(own, terms * (terms + 1) // 2 * np.arange(3))


def test_names_that_the_builder_would_give_are_the_models() -> None:
    """Its gradients are called `…_grad`, and so are these tensors, which keep their names."""
    graph = Graph()
    x, other = graph.add_input("x", DType.FLOAT, (3,)), graph.add_input("v1", DType.FLOAT, (3,))
    graph.add_output(graph.op("Mul", x, other, name="x_grad"))
    scalar(graph, graph.op("Mul", graph.value("x_grad"), other, name="loss_grad"), np.arange(3, dtype=np.float32))
    infer_shapes(graph)
    names = {v.name for v in graph.values()}
    made, found = differentiate_with_ort(graph, graph.value("loss"), [x])
    made.add_output(found["x"])
    assert names <= {v.name for v in made.values()}
    feeds = {"x": np.ones(3, np.float32), "v1": np.full(3, 2, np.float32)}
    assert found["x"].name != "x_grad"
    np.testing.assert_array_equal(Session(made).run(feeds)[found["x"].name], 4 * np.arange(3))


def test_what_the_loss_does_not_read_gets_zeros() -> None:
    graph = Graph()
    x, spare = graph.add_input("x", DType.FLOAT, (3,)), graph.add_input("spare", DType.FLOAT, (2,))
    scalar(graph, graph.op("Relu", x, name="relu"), np.ones(3, np.float32))
    infer_shapes(graph)
    _, found = differentiate_with_ort(graph, graph.value("loss"), [x, spare])
    np.testing.assert_array_equal(found["spare"].array, np.zeros(2))


def test_forms_with_wrong_gradients_are_refused() -> None:
    graph = Graph(opset=20)
    x = graph.add_input("x", DType.FLOAT, (3,))
    scalar(graph, graph.op("Gelu", x, name="gelu", approximate="tanh"), np.ones(3, np.float32))
    infer_shapes(graph)
    with pytest.raises(GradientError, match=r"'gelu' \(Gelu\).*gradient: own"):
        differentiate_with_ort(graph, graph.value("loss"), [x])
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (4,))
    split = graph.add_node("Split", [x], ["left", "right"], {"axis": 0, "num_outputs": 2}, name="split")
    scalar(graph, graph.result(split), np.ones(2, np.float32))
    infer_shapes(graph)
    with pytest.raises(GradientError, match=r"'split' \(Split\)"):
        differentiate_with_ort(graph, graph.value("loss"), [x])


def test_the_builders_own_refusal_is_passed_on() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (3,))
    scalar(graph, graph.op("CumSum", x, graph.add_constant("axis", np.int64(0)), name="sum"), np.ones(3, np.float32))
    infer_shapes(graph)
    with pytest.raises(GradientError, match="gradient builder refused"):
        differentiate_with_ort(graph, graph.value("loss"), [x])
