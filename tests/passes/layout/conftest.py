"""What the layout tests share: values and gradients of a graph, plain and laid out, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest

from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.rewrite import Outcome
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.session import Session
from passes.gradient import GradientOptions, differentiate
from passes.layout import ExpandBlocked, ExpandLanes

Layout = Callable[[Graph], Outcome]


def with_loss(graph: Graph) -> tuple[Graph, Value]:
    """A copy that ends in Σ c·output, c random, over all outputs: typed throughout, as a step is before it is laid."""
    graph = graph.copy()
    rng, parts = np.random.default_rng(7), []
    for value in graph.outputs:
        weights = graph.add_constant(f"c/{value.name}", rng.normal(size=value.static_shape).astype(np.float32))
        parts.append(graph.op("ReduceSum", graph.op("Mul", value, weights, name=f"m/{value.name}"), keepdims=0))
    loss = graph.op("Sum", *parts, name="loss")
    infer_shapes(graph)
    return graph, loss


def values_and_gradients(
    graph: Graph, loss: Value, wrt: Sequence[str], feeds: dict[str, Array], **options: bool
) -> dict[str, Array]:
    """The outputs of a graph and the gradients of its loss with respect to inputs: the way `build_step` goes, which
    infers no shape once the graph is laid."""
    gradients = differentiate(graph, loss, [graph.value(name) for name in wrt], GradientOptions(training_kernels=False))
    for gradient in gradients.values():
        graph.add_output(gradient)
    names = {name: gradient.name for name, gradient in gradients.items()}  # outputs keep theirs when expanded
    names |= {v.name: v.name for v in graph.outputs if v.name not in names.values()}
    before = {value.id for value in graph.values()}
    ExpandLanes(**options)(graph)
    ExpandBlocked()(graph)
    assert_typed(value for value in graph.values() if value.id not in before)
    found = Session(graph).run(feeds)
    return {key: found[name] for key, name in names.items()}


def assert_typed(values: Iterable[Value]) -> None:
    """Whatever a layout makes says its type: rules further on read it."""
    for value in values:
        assert value.dtype is not DType.UNDEFINED, value.name
        assert value.shape is not None, value.name
        assert all(isinstance(axis, int) for axis in value.shape), value.name


@pytest.fixture
def check_layout() -> Callable[..., Graph]:
    """Asserts that a layout changes neither the outputs nor the gradients, beyond float32's rounding; returns the
    graph it made (before differentiation)."""

    def check(graph: Graph, layout: Layout, wrt: Sequence[str], rewrites: int, **options: bool) -> Graph:
        infer_shapes(graph)
        rng = np.random.default_rng(3)
        feeds = {v.name: rng.normal(size=v.static_shape).astype(np.float32) for v in graph.inputs}
        (plain, loss), (laid, laid_loss) = with_loss(graph), with_loss(graph)
        assert layout(laid).rewrites == rewrites
        assert_typed(laid.values())
        made = laid.copy()
        expected = values_and_gradients(plain, loss, wrt, feeds)
        found = values_and_gradients(laid, laid_loss, wrt, feeds, **options)
        for name in [*wrt, *(v.name for v in graph.outputs)]:
            scale = max(float(np.abs(expected[name]).max()), 1e-3)
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=2e-5 * scale, err_msg=name)
        return made

    return check
