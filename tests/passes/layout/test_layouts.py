from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxslim.ir.graph import DType, Graph, Value
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.text import to_text
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.session import Session
from passes.gradient import differentiate
from passes.layout import ExpandBlocked, ExpandLanes, ToBlocked, ToLanes

LANES = capabilities().lanes or 8
KERNELS = pytest.mark.parametrize(
    "blocked",
    [pytest.param(True, marks=pytest.mark.skipif(not capabilities().lanes, reason="no blocked kernels")), False],
    ids=["blocked kernels", "products"],
)


def image(graph: Graph, channels: int, size: tuple[int, int], batch: int = LANES) -> Value:
    return graph.add_input("x", DType.FLOAT, (batch, channels, *size))


def conv_graph(case: dict[str, Any], batch: int = LANES) -> Graph:
    graph = Graph("conv")
    x = image(graph, case["inside"], case["size"], batch)
    w = graph.add_input("w", DType.FLOAT, (case["outs"], case["inside"] // case["group"], *case["kernel"]))
    inputs = [x, w]
    if case["bias"]:
        inputs.append(graph.add_input("b", DType.FLOAT, (case["outs"],)))
    attributes = {key: case[key] for key in ("strides", "pads", "dilations", "group")}
    graph.add_output(graph.op("Conv", *inputs, name="y", **attributes))
    return graph


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """Any geometry whose output is not empty: dense, grouped, depthwise with and without a multiplier."""
    kind = draw(st.sampled_from(["dense", "pointwise", "grouped", "depthwise", "multiplier"]))
    inside = {"dense": 3, "pointwise": 5, "grouped": 6, "depthwise": 5, "multiplier": 2}[kind]
    group = {"grouped": 3, "depthwise": inside, "multiplier": inside}.get(kind, 1)
    outs = {"grouped": 6, "depthwise": inside, "multiplier": 2 * inside}.get(kind, 4)

    def pair(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)), draw(st.integers(low, high))]

    kernel = [1, 1] if kind == "pointwise" else pair(1, 4)
    case = {
        "inside": inside, "outs": outs, "group": group, "kernel": kernel, "strides": pair(1, 3),
        "dilations": pair(1, 2), "pads": pair(0, 2) + pair(0, 2), "bias": draw(st.booleans()),
    }  # fmt: skip
    least = [(k - 1) * d + 1 for k, d in zip(kernel, case["dilations"])]
    case["size"] = (draw(st.integers(least[0], least[0] + 4)), draw(st.integers(least[1], least[1] + 4)))
    return case


@KERNELS
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(case=convolutions(), blocks=st.integers(1, 2))
def test_any_convolution_in_lanes(
    check_layout: Callable[..., Graph], blocked: bool, case: dict[str, Any], blocks: int
) -> None:
    graph = conv_graph(case, blocks * LANES)
    wrt = ["x", "w", "b"] if case["bias"] else ["x", "w"]
    check_layout(graph, ToLanes(LANES), wrt, 1, blocked=blocked)


@st.composite
def blocked_convolutions(draw: st.DrawFn) -> dict[str, Any]:
    kernel = draw(st.sampled_from([[3, 3], [1, 3], [3, 1], [2, 2], [5, 3]]))
    dilations = [draw(st.integers(1, 2)), draw(st.integers(1, 2))]
    reach = [(k - 1) * d for k, d in zip(kernel, dilations)]
    pads = [draw(st.integers(0, r)) for r in reach * 2]
    return {
        "inside": draw(st.sampled_from([LANES, 2 * LANES])), "outs": draw(st.sampled_from([LANES, 2 * LANES])),
        "group": 1, "kernel": kernel, "strides": [1, 1], "dilations": dilations, "pads": pads,
        "bias": draw(st.booleans()), "size": (reach[0] + draw(st.integers(1, 4)), reach[1] + draw(st.integers(1, 4))),
    }  # fmt: skip


@pytest.mark.skipif(not capabilities().lanes, reason="no blocked kernels")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=30)
@given(case=blocked_convolutions(), batch=st.integers(1, 3))
def test_dense_convolutions_in_blocks(check_layout: Callable[..., Graph], case: dict[str, Any], batch: int) -> None:
    wrt = ["x", "w", "b"] if case["bias"] else ["x", "w"]
    check_layout(conv_graph(case, batch), ToBlocked(LANES), wrt, 1)


@pytest.mark.skipif(not capabilities().lanes, reason="no blocked kernels")
@pytest.mark.parametrize("size", [(50, 47), (3, 2100)])
def test_the_weights_gradient_of_a_large_image_is_summed_in_parts(
    check_layout: Callable[..., Graph], size: tuple[int, int]
) -> None:
    case = {
        "inside": LANES, "outs": LANES, "group": 1, "kernel": [3, 2], "strides": [1, 1], "dilations": [1, 1],
        "pads": [2, 0, 1, 1], "bias": False, "size": size,
    }  # fmt: skip
    graph = conv_graph(case, 1)
    check_layout(graph, ToBlocked(LANES), ["w"], 1)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"strides": [2, 2]}, "a stride"),
        ({"outs": LANES + 1}, "a part of a block"),
        ({"kernel": [1, 1], "pads": [0] * 4}, "a product"),
        ({"pads": [3, 0, 0, 0]}, "rows of padding alone"),
    ],
)
def test_what_blocks_leave_alone(change: dict[str, Any], why: str) -> None:
    case = {
        "inside": LANES, "outs": LANES, "group": 1, "kernel": [3, 3], "strides": [1, 1], "dilations": [1, 1],
        "pads": [1] * 4, "bias": False, "size": (6, 6),
    }  # fmt: skip
    graph = conv_graph(case | change)
    infer_shapes(graph)
    before = to_text(graph)
    assert ToBlocked(LANES)(graph).rewrites == 0, why
    assert to_text(graph) == before


def start(graph: Graph, channels: int = 4, size: tuple[int, int] = (4, 6)) -> Value:
    """A pointwise convolution, so that what follows is laid."""
    w = graph.add_input("w", DType.FLOAT, (channels, 3, 1, 1))
    return graph.op("Conv", image(graph, 3, size, 2 * LANES), w, name="start")


def constant(graph: Graph, *shape: int) -> Value:
    return graph.add_constant("k", np.random.default_rng(1).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("op", ["Relu", "HardSwish", "Sigmoid", "LeakyRelu", "Identity", "Celu", "Sin", "Atan"])
def test_elementwise_follows(check_layout: Callable[..., Graph], op: str) -> None:
    graph = Graph()
    graph.add_output(graph.op(op, start(graph), name="y"))
    laid = check_layout(graph, ToLanes(LANES), ["x", "w"], 2)
    assert [n.op for n in laid.nodes() if len(laid.result(n).shape or ()) == 2 and n.op == op] == [op]


def test_clip_follows_with_its_bounds(check_layout: Callable[..., Graph]) -> None:
    graph = Graph()
    bounds = [graph.add_constant("bound", np.float32(b)) for b in (-0.3, 0.6)]
    graph.add_output(graph.op("Clip", start(graph), *bounds, name="y"))
    check_layout(graph, ToLanes(LANES), ["x", "w"], 2)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Mean"])
@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1), (1, 1, 1, 1)])
def test_broadcast_constants_follow(check_layout: Callable[..., Graph], op: str, shape: tuple[int, ...]) -> None:
    graph = Graph()
    graph.add_output(graph.op(op, start(graph), constant(graph, *shape), name="y"))
    check_layout(graph, ToLanes(LANES), ["x", "w"], 2)


def test_operands_that_are_no_floats_follow_with_their_type(check_layout: Callable[..., Graph]) -> None:
    """Whole exponents, and a truth value a channel."""
    graph = Graph()
    exponent = graph.add_constant("exponent", np.array(2, np.int64))
    power = graph.op("Pow", start(graph), exponent, name="power")
    where = graph.add_constant("where", np.array([True, False, True, True]).reshape(1, 4, 1, 1))
    graph.add_output(graph.op("Where", where, power, constant(graph), name="y"))
    check_layout(graph, ToLanes(LANES), ["x", "w"], 3)


def test_what_gives_no_floats_stays(check_layout: Callable[..., Graph]) -> None:
    graph = Graph()
    x = start(graph)
    above = graph.op("Greater", x, constant(graph), name="above")
    graph.add_output(graph.op("Mul", x, graph.op("Cast", above, name="mask", to=1), name="y"))
    check_layout(graph, ToLanes(LANES), ["x", "w"], 2)


def test_a_residual_and_a_gate_a_channel_and_image(check_layout: Callable[..., Graph]) -> None:
    """Squeeze and excitation: x · σ(mean(x)) + x."""
    graph = Graph()
    x = start(graph)
    gate = graph.op("Sigmoid", graph.op("GlobalAveragePool", x, name="mean"), name="gate")
    graph.add_output(graph.op("Add", graph.op("Mul", x, gate, name="gated"), x, name="y"))
    check_layout(graph, ToLanes(LANES), ["x", "w"], 5)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("after", ["Flatten", "Reshape", "Squeeze", None])
def test_the_way_out_is_a_transposition(check_layout: Callable[..., Graph], keep: int, after: str | None) -> None:
    graph = Graph()
    axes = graph.add_constant("axes", np.array([2, 3]))
    y = graph.op("ReduceMean", start(graph), axes, name="mean", keepdims=keep)
    if keep and after == "Flatten":
        y = graph.op("Flatten", y, name="flat")
    elif keep and after == "Reshape":
        y = graph.op("Reshape", y, graph.add_constant("shape", np.array([2 * LANES, 4])), name="flat")
    elif keep and after == "Squeeze":
        y = graph.op("Squeeze", y, axes, name="flat")
    graph.add_output(graph.op("Neg", y, name="y"))
    infer_shapes(graph)
    expected = len([n for n in graph.nodes() if n.op != "Neg"]) + (keep and after is None)
    laid = check_layout(graph, ToLanes(LANES), ["x", "w"], expected)
    assert [n.op for n in laid.nodes()].count("Transpose") == 3 + (
        keep and after is None
    )  # two into the lanes, and out


def test_batch_norm_reads_rows_and_hands_on_its_statistics(check_layout: Callable[..., Graph]) -> None:
    graph = Graph(opset=18)
    x = start(graph)
    scale, bias = graph.add_input("scale", DType.FLOAT, (4,)), graph.add_input("bias", DType.FLOAT, (4,))
    stats = [graph.add_constant(n, np.full(4, v, np.float32)) for n, v in (("mean", 0.0), ("var", 1.0))]
    node = graph.add_node("BatchNormalization", [x, scale, bias, *stats], ["y", "m", "v"],
                          {"training_mode": 1, "momentum": 0.0}, name="norm")  # fmt: skip
    graph.add_output(graph.result(node))
    laid = check_layout(graph, ToLanes(LANES), ["x", "w", "scale", "bias"], 2)
    assert {laid.result(n, s).name for n in laid.nodes() if n.op == "BatchNormalization" for s in (1, 2)} == {"m", "v"}


def test_channels_are_joined(check_layout: Callable[..., Graph]) -> None:
    graph = Graph()
    x = start(graph)
    graph.add_output(graph.op("Concat", x, graph.op("Relu", x, name="r"), graph.value("x"), name="y", axis=1))
    check_layout(graph, ToLanes(LANES), ["x", "w"], 3)


@pytest.mark.parametrize(
    ("kernel", "strides", "pads"),
    [([2, 2], [2, 2], [0] * 4), ([3, 3], [2, 2], [1] * 4), ([3, 3], [1, 1], [1] * 4), ([2, 3], [2, 1], [0, 1, 0, 1])],
)
def test_max_pools(check_layout: Callable[..., Graph], kernel: list[int], strides: list[int], pads: list[int]) -> None:
    graph = Graph()
    y = graph.op("MaxPool", start(graph), name="y", kernel_shape=kernel, strides=strides, pads=pads)
    graph.add_output(y)
    check_layout(graph, ToLanes(LANES), ["x", "w"], 2)


def test_a_tie_goes_to_one_pixel() -> None:
    """The gradients of a constant image's pool add up to one a window, not more."""
    graph = Graph()
    y = graph.op("MaxPool", start(graph, size=(4, 4)), name="y", kernel_shape=[2, 2], strides=[2, 2])
    graph.add_output(y)
    infer_shapes(graph)
    ToLanes(LANES)(graph)
    loss = graph.op("ReduceSum", graph.outputs[0], name="loss", keepdims=0)
    infer_shapes(graph)
    gradient = differentiate(graph, loss, [graph.value("x")])["x"]
    graph.add_output(gradient)
    name = gradient.name
    ExpandLanes(blocked=False)(graph)
    w = np.zeros((4, 3, 1, 1), np.float32)
    w[0] = 1
    found = Session(graph).run({"x": np.ones((2 * LANES, 3, 4, 4), np.float32), "w": w})[name]
    np.testing.assert_array_equal(found.sum(axis=(2, 3)), 4)


def test_what_has_no_rule_reads_plain_values(check_layout: Callable[..., Graph]) -> None:
    graph = Graph()
    x = start(graph)
    soft = graph.op("Softmax", x, name="soft", axis=1)
    graph.add_output(graph.op("Relu", graph.op("Add", soft, x, name="sum"), name="y"))
    laid = check_layout(graph, ToLanes(LANES), ["x", "w"], 3)
    assert next(n for n in laid.nodes() if n.op == "Softmax")


def test_an_odd_batch_stays_plain_and_says_so() -> None:
    graph = conv_graph({
        "inside": 3, "outs": 4, "group": 1, "kernel": [3, 3], "strides": [1, 1], "dilations": [1, 1],
        "pads": [1] * 4, "bias": False, "size": (6, 6),
    }, LANES + 1)  # fmt: skip
    infer_shapes(graph)
    before = to_text(graph)
    outcome = ToLanes(LANES)(graph)
    assert (outcome.rewrites, len(outcome.refused)) == (0, 1)
    assert "Conv" in outcome.refused[0].why
    assert to_text(graph) == before


def test_only_the_nodes_that_may(check_layout: Callable[..., Graph]) -> None:
    graph = Graph()
    graph.add_output(graph.op("Relu", start(graph), name="y"))
    infer_shapes(graph)
    conv = graph.node_named("start")
    laid = check_layout(graph, ToLanes(LANES, frozenset([conv.id])), ["x", "w"], 1)
    assert next(n for n in laid.nodes() if n.op == "Relu").name == "y"


def test_expanding_leaves_no_op_of_ours() -> None:
    case = {
        "inside": LANES, "outs": LANES, "group": 1, "kernel": [3, 3], "strides": [1, 1], "dilations": [1, 1],
        "pads": [1] * 4, "bias": False, "size": (6, 6),
    }  # fmt: skip
    for lay, expand in ((ToLanes(LANES), ExpandLanes()), (ToBlocked(LANES), ExpandBlocked())):
        graph = conv_graph(case)
        infer_shapes(graph)
        assert lay(graph).rewrites == expand(graph).rewrites == 1
        assert not any(domain.startswith("onnxslim") for domain in graph.opsets)
        assert expand(graph).rewrites == 0
