from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxslim.analysis.inspection import Reason, inspect_model
from onnxslim.errors import GradientError
from onnxslim.ir.graph import DType, Graph, Role, Value
from onnxslim.ir.onnx_io import from_proto
from onnxslim.ir.quant_math import qrange
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.text import to_text
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.session import Session
from passes.gradient import GradientOptions, differentiable_ops, differentiate, refusal
from passes.gradient.decompose import DECOMPOSITIONS
from passes.gradient.rules import CONSTANT_INPUTS, RULES
from passes.quantize import ExpandFakeQuant

ROOT = Path(__file__).resolve().parents[3]
STRUCTURES = sorted((ROOT.parent / "shared" / "models" / "structures").glob("*.onnx"))


def small() -> tuple[Graph, Value, Value]:
    """x, w → loss = Σ relu(x·w) + Σ w."""
    graph = Graph()
    x, w = graph.add_input("x", DType.FLOAT, (2, 3)), graph.add_input("w", DType.FLOAT, (3, 4))
    y = graph.op("Relu", graph.op("MatMul", x, w, name="product"), name="y")
    parts = [graph.op("ReduceSum", v, name=f"sum/{v.name}", keepdims=0) for v in (y, w)]
    loss = graph.op("Add", *parts, name="loss")
    graph.add_output(loss)
    infer_shapes(graph)
    return graph, loss, w


def test_gradients_of_several_uses_add_up() -> None:
    graph, loss, w = small()
    gradients = differentiate(graph, loss, [w, graph.value("x")])
    for value in gradients.values():
        graph.add_output(value)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    found = Session(graph).run({"x": a, "w": b})
    dy = (a @ b > 0).astype(np.float32)
    np.testing.assert_allclose(found[gradients["w"].name], a.T @ dy + 1, rtol=1e-5)
    np.testing.assert_allclose(found[gradients["x"].name], dy @ b.T, rtol=1e-5)


def test_a_result_has_its_type_role_and_owner() -> None:
    graph, loss, w = small()
    gradient = differentiate(graph, loss, [w])["w"]
    assert (gradient.dtype, gradient.shape, gradient.role, gradient.owner) == (DType.FLOAT, (3, 4), Role.GRADIENT, "w")


def test_what_the_loss_does_not_read_gets_zeros() -> None:
    graph, loss, w = small()
    spare = graph.add_input("spare", DType.FLOAT, (5,))
    graph.op("Relu", spare)
    found = differentiate(graph, loss, [spare, w])
    assert list(found) == ["spare", "w"]
    np.testing.assert_array_equal(found["spare"].array, np.zeros(5))


def test_a_gradient_that_a_rule_does_not_give_is_no_silent_zero() -> None:
    """Resize takes its scales as they are; who trains them is told, by node and input."""
    graph = Graph()
    x, scales = graph.add_input("x", DType.FLOAT, (1, 1, 2, 2)), graph.add_constant("k", np.float32([1, 1, 2, 2]))
    y = graph.op("Resize", x, None, scales, name="larger", mode="linear")
    loss = graph.op("ReduceSum", y, name="loss", keepdims=0)
    infer_shapes(graph)
    with pytest.raises(GradientError, match=r"'larger' \(Resize\): its input 2, 'k', is trained .* none for it"):
        differentiate(graph, loss, [x, scales])


def test_a_rule_that_forgets_an_input_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few gradients count as missing ones."""
    monkeypatch.setitem(RULES, ("", "MatMul"), lambda t: [t.dy])
    graph, loss, w = small()
    with pytest.raises(GradientError, match=r"'product' \(MatMul\): its input 1, 'w'"):
        differentiate(graph, loss, [w])


@pytest.mark.parametrize("op", ["Ceil", "Floor", "Round", "Sign"])
def test_steps_are_declared_to_have_no_slope(op: str) -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (3,))
    loss = graph.op("ReduceSum", graph.op(op, x, name="y"), name="loss", keepdims=0)
    infer_shapes(graph)
    np.testing.assert_array_equal(differentiate(graph, loss, [x])["x"].array, np.zeros(3))


def test_a_fake_quants_scale_is_declared_constant() -> None:
    """Though it is computed from a weight here: the gradient of the weight is the straight-through one alone."""
    graph = Graph()
    w = graph.add_input("w", DType.FLOAT, (4,))
    scale = graph.op("ReduceMax", graph.op("Abs", w, name="size"), name="scale", keepdims=0)
    zero = graph.add_constant("zero", np.float32(0))
    made = graph.op("FakeQuant", w, scale, zero, name="q", domain="onnxslim", kind="weight", bits=8, signed=1)
    infer_shapes(graph)
    loss = graph.op("ReduceSum", made, name="loss", keepdims=0)
    infer_shapes(graph)
    graph.add_output(differentiate(graph, loss, [w])["w"])
    ExpandFakeQuant()(graph)
    (found,) = Session(graph).run({"w": np.float32([0.1, -0.2, 0.3, 0.05])}).values()
    np.testing.assert_array_equal(found, np.ones(4))


def test_what_is_declared_constant_has_a_rule() -> None:
    assert set(CONSTANT_INPUTS) <= set(RULES)


def test_nothing_is_built_beside_the_way() -> None:
    """x needs no gradient, so no MatMul with w transposed appears."""
    graph, loss, w = small()
    differentiate(graph, loss, [w])
    assert [n.op for n in graph.nodes()].count("MatMul") == 2


def test_equal_graphs_give_equal_text() -> None:
    texts = []
    for _ in range(2):
        graph, loss, w = small()
        graph.add_output(differentiate(graph, loss, [w])["w"])
        texts.append(to_text(graph))
    assert texts[0] == texts[1]


def test_an_op_without_a_rule_is_refused_by_name() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (3,))
    y = graph.op("Hardmax", x, name="running")
    loss = graph.op("ReduceSum", y, name="loss", keepdims=0)
    infer_shapes(graph)
    with pytest.raises(GradientError, match=r"node 'running' \(Hardmax\).*'loss'.*no gradient rule for Hardmax"):
        differentiate(graph, loss, [x])
    custom = graph.add_node("Twist", [x], domain="com.example", name="odd")
    assert refusal(custom) == "no gradient rule for com.example.Twist"
    assert refusal(graph.nodes()[-1]) is None or refusal(graph.nodes()[0]) is not None


def test_an_op_without_a_rule_beside_the_way_does_not_matter() -> None:
    graph, loss, w = small()
    graph.op("Hardmax", w)
    assert list(differentiate(graph, loss, [w])) == ["w"]


def with_bodies(kind: str) -> Graph:
    """A weight that is read inside the bodies of an If, a Loop or a Scan, between a Conv and the output."""
    info = helper.make_tensor_value_info
    product = helper.make_node("MatMul", ["x" if kind == "If" else "seen", "w"], ["made"])
    made = info("made", 1, None)
    if kind == "If":
        bodies = {n: helper.make_graph([product], n, [], [made]) for n in ("then_branch", "else_branch")}
        node = helper.make_node("If", ["c"], ["y"], name="choice", **bodies)
    elif kind == "Loop":
        steps = [product, helper.make_node("Identity", ["go"], ["on"])]
        inputs = [info("i", 7, []), info("go", 9, []), info("seen", 1, None)]
        body = helper.make_graph(steps, "body", inputs, [info("on", 9, []), made])
        node = helper.make_node("Loop", ["", "c", "x"], ["y"], name="choice", body=body)
    else:
        body = helper.make_graph([product], "body", [info("seen", 1, None)], [made])
        node = helper.make_node("Scan", ["x"], ["y"], name="choice", body=body, num_scan_inputs=1)
    weight = helper.make_tensor("w", 1, [3, 3], [0.5] * 9)
    inputs = [info("c", 9, []), info("x", 1, [2, 3] if kind != "Scan" else [2, 2, 3])]
    net = helper.make_graph([node], "net", inputs, [info("y", 1, None)], [weight])
    return from_proto(helper.make_model(net, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_bodies_on_the_way_are_refused_by_name_and_inspected(kind: str) -> None:
    graph = with_bodies(kind)
    why = f"no gradient rule for {kind}, whose bodies are not differentiated"
    found = inspect_model(graph, differentiable=refusal).trainable
    assert found is not None
    assert (found.params, found.total, found.blocked) == (0, 9, (Reason("choice", kind, why),))
    loss = graph.op("ReduceSum", graph.outputs[0], name="loss", keepdims=0)
    graph.set_type(loss, DType.FLOAT, ())
    with pytest.raises(GradientError, match=rf"node 'choice' \({kind}\) stands between.*{why}"):
        differentiate(graph, loss, [graph.value("w")])


def test_an_old_opset_is_refused() -> None:
    graph = Graph(opset=12)
    x = graph.add_input("x", DType.FLOAT, (3,))
    loss = graph.op("ReduceSum", x, keepdims=0)
    with pytest.raises(GradientError, match="opset 12.*ConvertOpset"):
        differentiate(graph, loss, [x])


def test_the_list_of_ops_is_that_of_the_rules() -> None:
    assert differentiable_ops() == sorted({*RULES, *DECOMPOSITIONS})
    assert ("", "Conv") in differentiable_ops()
    assert ("onnxslim", "FakeQuant") in differentiable_ops()


def straight_through(net: Any) -> Graph:
    """The function whose true gradient the straight-through estimator is: each FakeQuant(x) as its clipped x
    plus what rounding added at these inputs, held constant."""
    graph, nodes = net.graph.copy(), [n for n in net.graph.nodes() if n.op == "FakeQuant"]
    for node in nodes:
        for value in (graph.operand(node, 0), graph.result(node)):
            if not graph.is_output(value):
                graph.add_output(value)
    ExpandFakeQuant()(graph)
    found = {**net.feeds, **Session(graph, fuse_qdq=False).run(net.feeds)}
    graph = net.graph.copy()
    for node in nodes:
        node = graph.node_named(node.name)
        x, y = graph.operand(node, 0), graph.result(node)
        qmin, qmax = qrange(node.attr("bits", 8), bool(node.attr("signed", 1)), bool(node.attr("narrow", 0)))
        scale, zero_point = (graph.constant_of(graph.operand(node, slot)) for slot in (1, 2))
        assert scale is not None
        assert zero_point is not None
        if scale.ndim:
            shape = [-1 if a == node.attr("axis") else 1 for a in range(len(x.static_shape))]
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        low, high = ((end - zero_point) * scale for end in (qmin - 0.5, qmax + 0.5))
        added = found[y.name] - np.clip(found[x.name], low, high)
        graph.detach(node)
        name = f"{y.name}/straight"
        bounds = [graph.add_constant(f"{name}/{n}", a.astype(np.float32)) for n, a in (("low", low), ("high", high))]
        clipped = graph.op("Min", graph.op("Max", x, bounds[0], name=f"{name}/max"), bounds[1], name=f"{name}/min")
        rest = graph.add_constant(f"{name}/added", added.astype(np.float32))
        graph.add_node("Add", [clipped, rest], [y], name=name)
    return graph


def check_slope(path: Path, network: Callable, *, training: bool, quantized: bool = False) -> None:
    """Along the gradient itself the loss rises as fast as the gradient says; steps so small that
    few ReLUs switch, so large that float32 still sees them."""
    net = network(path, training=training, quantized=quantized)
    gradients = net.gradients(GradientOptions(training_kernels=capabilities().has_training_kernels))
    plain = net.gradients(GradientOptions(training_kernels=False))
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            gradient, plain[name], rtol=0, atol=1e-3 * np.abs(gradient).max() + 1e-6, err_msg=name
        )
    size = {name: np.linalg.norm(g.astype(np.float64)) for name, g in gradients.items()}
    way = {
        n: g.astype(np.float64) / max(size[n], 1e-30) * np.linalg.norm(net.feeds[n]) for n, g in gradients.items()
    }  # fmt: skip
    expected = sum(float((gradients[n] * way[n]).sum()) for n in gradients)
    session = Session(straight_through(net) if quantized else net.graph)
    start = float(session.run(net.feeds)["loss"])
    errors = []
    for change in (1e-2, 3e-3, 1e-3, 3e-4):
        step = change * abs(start) / expected
        moved = [
            {**net.feeds, **{n: (net.feeds[n] + s * step * way[n]).astype(np.float32) for n in way}} for s in (1, -1)
        ]
        up, down = (float(session.run(feeds)["loss"]) for feeds in moved)
        errors.append(abs((up - down) / (2 * step) / expected - 1))
    assert min(errors) < 1e-2, errors


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "qat"])
def test_trained_networks(trained_path: Path, quantized: bool, network: Callable) -> None:
    check_slope(trained_path, network, training=True, quantized=quantized)


@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
@pytest.mark.parametrize("path", STRUCTURES, ids=lambda p: p.stem)
def test_structures(path: Path, training: bool, network: Callable) -> None:
    if "dynamo" in path.stem and not training:
        pytest.skip("the same network as its torchscript twin")
    check_slope(path, network, training=training)
