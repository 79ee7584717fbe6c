"""What the gradient tests share: one op's gradient in ONNX Runtime against float64 differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxslim.analysis.batch import with_batch
from onnxslim.calibration import gather
from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.onnx_io import read
from onnxslim.ir.rewrite import Context
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.session import Session
from onnxslim.targets import load_target
from onnxslim.training.parameters import mark_parameters
from passes.gradient import GradientOptions, differentiate
from passes.gradient.train_batchnorm import TrainBatchnorm
from passes.quantize import ExpandFakeQuant, InsertFakeQuant
from passes.simplify import EliminateDead, canonicalize

Forward = Callable[..., Array]


def reference(op: str, attributes: Mapping[str, Any], outputs: int = 1, opset: int = 18) -> Forward:
    """The op in float64, by onnx's reference evaluator: a function of all inputs (None: left out)."""

    def run(*inputs: Array | None) -> Array:
        names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
        node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **attributes)
        typed = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in zip(names, inputs)
            if x is not None
        ]
        results = [helper.make_tensor_value_info(f"y{i}", onnx.TensorProto.UNDEFINED, None) for i in range(outputs)]
        graph = helper.make_graph([node], "reference", typed, results)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        found = ReferenceEvaluator(model).run(None, {n: x for n, x in zip(names, inputs) if x is not None})
        return np.concatenate([np.asarray(f, np.float64).reshape(-1) for f in found])

    return run


def check_gradient(
    op: str,
    inputs: Sequence[Array | None],
    wrt: Sequence[int] = (0,),
    *,
    forward: Forward | None = None,
    outputs: int = 1,
    spare: int = 0,
    result: Sequence[int] | None = None,
    unused: Sequence[int] = (),
    domain: str = "",
    opset: int = 18,
    kernels: bool = False,
    lanes: int = 0,
    tolerance: float = 1e-3,
    seed: int = 0,
    **attributes: Any,
) -> None:
    """Asserts that d Σ dy·op(inputs) / d inputs[wrt], run in float32 by ONNX Runtime, agrees with central
    differences of the op in float64 (`forward`: its outputs flattened, by default onnx's reference).

    dy is random; outputs in `unused` and `spare` more outputs have none.
    result: the shape of an op that ONNX's inference does not know. `tolerance` is relative to the largest
    difference quotient.
    """
    graph, values = Graph("op", opset), []
    for i, array in enumerate(inputs):
        if array is None:
            values.append(None)
        elif i in wrt:
            values.append(graph.add_input(f"x{i}", DType.of(array), array.shape))
        else:
            values.append(graph.add_constant(f"x{i}", array))
    names = [f"y{i}" for i in range(outputs + spare)]
    node = graph.add_node(op, values, names, attributes, domain=domain, name=op)
    if result is not None:  # of an op that ONNX does not know
        graph.set_type(graph.result(node), DType.FLOAT, result)
    infer_shapes(graph)
    ys = [graph.result(node, i) for i in range(outputs)]
    rng = np.random.default_rng(seed)
    weights = [(rng.normal(size=y.static_shape) * (i not in unused)).astype(np.float32) for i, y in enumerate(ys)]
    loss = _contracted(
        graph, [y for i, y in enumerate(ys) if i not in unused], [w for i, w in enumerate(weights) if i not in unused]
    )
    gradients = differentiate(graph, loss, [graph.value(f"x{i}") for i in wrt], GradientOptions(kernels, lanes))
    for y in ys:
        graph.add_output(y)
    for gradient in gradients.values():
        graph.add_output(gradient)
    ExpandFakeQuant()(graph)
    feeds = {f"x{i}": inputs[i] for i in wrt}
    found = Session(graph, fuse_qdq=False).run({n: x for n, x in feeds.items() if x is not None})

    forward = forward or reference(op, attributes, outputs, opset)
    dense = [None if x is None else x.astype(np.float64) if x.dtype == np.float32 else x for x in inputs]
    if domain == "":
        flat = np.concatenate([found[f"y{i}"].reshape(-1) for i in range(outputs)])
        np.testing.assert_allclose(flat, forward(*dense), rtol=1e-3, atol=1e-4)
    dy = np.concatenate([w.reshape(-1) for w in weights]).astype(np.float64)
    for slot in wrt:
        gradient = found[gradients[f"x{slot}"].name]
        x = dense[slot]
        assert x is not None
        assert gradient.shape == x.shape
        assert gradient.dtype == np.float32
        directions = np.eye(x.size) if x.size <= 24 else rng.normal(size=(12, x.size))
        got = directions @ gradient.reshape(-1).astype(np.float64)
        expected = np.array([_slope(forward, dense, slot, d.reshape(x.shape), dy) for d in directions])
        scale = max(float(np.abs(expected).max(initial=0)), 1e-2)
        np.testing.assert_allclose(
            got, expected, rtol=0, atol=tolerance * scale, err_msg=f"{op}, input {slot}, {attributes}"
        )


def _contracted(graph: Graph, ys: Sequence[Value], weights: Sequence[Array]) -> Value:
    terms = []
    for i, (y, w) in enumerate(zip(ys, weights)):
        product = graph.op("Mul", y, graph.add_constant(f"dy{i}", w), name=f"loss/product{i}")
        terms.append(graph.op("ReduceSum", product, name=f"loss/sum{i}", keepdims=0))
    loss = graph.op("Sum", *terms, name="loss")
    infer_shapes(graph)
    return loss


def _slope(forward: Forward, inputs: Sequence[Array | None], slot: int, direction: Array, dy: Array) -> float:
    step = 1e-6
    ends = []
    for sign in (1, -1):
        moved = list(inputs)
        at = inputs[slot]
        assert at is not None
        moved[slot] = at + sign * step * direction
        ends.append(float(dy @ forward(*moved)))
    return (ends[0] - ends[1]) / (2 * step)


@pytest.fixture(scope="session")
def check() -> Callable[..., None]:
    """check(op, inputs, wrt, **attributes): see `check_gradient`."""
    return check_gradient


def spaced_numbers(shape: Sequence[int], seed: int, low: float = -2.0, high: float = 2.0) -> Array:
    """Distinct float32 numbers in random order, evenly spaced and off round numbers: far from any kink or tie."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    grid = low + (high - low) * (np.arange(count) + 0.37) / max(count, 1)
    return rng.permutation(grid).reshape(shape).astype(np.float32)


@pytest.fixture(scope="session")
def spaced() -> Callable[..., Array]:
    """spaced(shape, seed, low, high): see `spaced_numbers`."""
    return spaced_numbers


@dataclass
class Network:
    """A network ready for its gradient: a loss, and the trained weights as inputs, fed from `feeds`."""

    graph: Graph
    loss: Value
    weights: list[Value]
    feeds: dict[str, Array]

    def gradients(self, options: GradientOptions) -> dict[str, Array]:
        """Of the loss to each weight, by weight."""
        graph = self.graph.copy()
        found = differentiate(graph, graph.value(self.loss.name), [graph.value(w.name) for w in self.weights], options)
        return run_gradients(graph, found, self.feeds)


def run_gradients(graph: Graph, gradients: Mapping[str, Value], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays of the gradient values in a graph that is used up."""
    for value in [*graph.outputs]:
        graph.remove_output(value)
    for value in dict.fromkeys(gradients.values()):
        graph.add_output(value)
    ExpandFakeQuant()(graph)
    EliminateDead()(graph)
    arrays = Session(graph, fuse_qdq=False).run({v.name: feeds[v.name] for v in graph.inputs})
    return {name: arrays[value.name] for name, value in gradients.items()}


def build_network(path: Path, *, training: bool = True, quantized: bool = False, batch: int = 4) -> Network:
    """The network of a file with the loss mean(output² · random). A network nobody trained gets weights of
    He's scale, so that its signals do not die away. `quantized`: fake-quant before training's batch norm."""
    graph = read(path)
    canonicalize()(graph)
    rng = np.random.default_rng(0)
    if "structures" in path.parts:
        for weight in mark_parameters(graph):
            shape = weight.static_shape
            if len(shape) > 1:
                fan_in = math.prod(shape[1:]) if len(shape) > 2 else min(shape)
                graph.set_array(weight, (rng.normal(size=shape) * (2 / fan_in) ** 0.5).astype(np.float32))
    if quantized:
        _quantize(graph)
    graph = with_batch(graph, batch)
    if training:
        TrainBatchnorm()(graph)
    weights = mark_parameters(graph)
    y = graph.outputs[0]
    factor = graph.add_constant("loss/factor", rng.normal(size=y.static_shape).astype(np.float32))
    square = graph.op("Mul", graph.op("Mul", y, y, name="loss/square"), factor, name="loss/product")
    loss = graph.op("ReduceMean", square, name="loss", keepdims=0)
    infer_shapes(graph)
    graph.remove_output(y)
    graph.add_output(loss)
    feeds = {v.name: rng.normal(size=v.static_shape).astype(np.float32) for v in graph.inputs}
    for weight in weights:
        assert weight.array is not None
        feeds[weight.name] = weight.array
        graph.set_array(weight, None)
        graph.feed(weight)
    return Network(graph, loss, weights, feeds)


def _quantize(graph: Graph) -> None:
    """Fake-quant everywhere, calibrated on random images."""
    step, context = InsertFakeQuant(), Context(target=load_target("x64"))
    rng = np.random.default_rng(1)
    x = {v.name: rng.normal(size=[16, *v.shape[1:]]).astype(np.float32) for v in graph.inputs if v.shape}
    found = gather(graph, list(step.requests(graph, context)), [x])
    step(graph, replace(context, statistics=found))


@pytest.fixture(scope="session")
def network() -> Callable[..., Network]:
    """network(path, training=True, quantized=False, batch=4): see `build_network`."""
    return build_network
