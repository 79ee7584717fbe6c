"""Our own ops are declared once: what the verifier and shape inference know of them follows from that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxslim.errors import VerifyError
from onnxslim.ir.dialect import BLOCKED, DIALECT, LANES, is_fake_quant
from onnxslim.ir.graph import DType, Graph, Value
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.verify import verify
from passes.gradient import differentiate
from passes.gradient.rules import RULES
from passes.layout import ToBlocked, ToLanes

BATCH = 8


def _network(pool: bool) -> tuple[Graph, Value]:
    """conv(3×3, 8 → 16, stride 1) [→ max pool] → Σ: every op that a layout has, once it is differentiated."""
    graph = Graph("net", ir_version=9)
    graph.opsets[""] = 18
    x = graph.add_input("x", DType.FLOAT, (BATCH, 8, 6, 5))
    w = graph.add_input("w", DType.FLOAT, (16, 8, 3, 3))
    y = graph.op("Conv", graph.op("Relu", x, name="relu"), w, name="conv", pads=[1, 0, 1, 0])
    if pool:
        y = graph.op("MaxPool", y, name="pool", kernel_shape=[2, 2], strides=[2, 1])
    loss = graph.op("ReduceSum", y, name="loss", keepdims=0)
    graph.add_output(loss)
    infer_shapes(graph)
    return graph, loss


def _laid_out(domain: str) -> Graph:
    graph, loss = _network(pool=domain == LANES)
    layout = ToLanes(8) if domain == LANES else ToBlocked(8)
    assert layout(graph).rewrites > 0
    for gradient in differentiate(graph, loss, graph.inputs).values():
        graph.add_output(gradient)
    return graph


@pytest.mark.parametrize("domain", [LANES, BLOCKED])
def test_inference_finds_what_the_layouts_say_of_their_ops(domain: str) -> None:
    graph = _laid_out(domain)
    own = [node for node in graph.nodes() if node.domain == domain]
    assert {node.op for node in own} == {op for where, op in DIALECT if where == domain}
    said = {graph.result(node).name: (graph.result(node).dtype, graph.result(node).shape) for node in own}
    assert all(None not in (shape or (None,)) for _, shape in said.values())
    verify(graph)
    for node in own:
        graph.set_type(graph.result(node), DType.UNDEFINED)
        graph.clear_shape(graph.result(node))
    infer_shapes(graph)
    assert {name: (graph.value(name).dtype, graph.value(name).shape) for name in said} == said


def _node(graph: Graph, op: str) -> Any:
    return next(node for node in graph.nodes() if node.op == op and node.domain in (LANES, BLOCKED))


def _wrong_gradient(graph: Graph) -> None:
    """dY in the place of X, as a rule that mixed up its operands would have it."""
    node = _node(graph, "ConvWeightGrad")
    graph.set_input(node, 0, graph.operand(node, 1))


BROKEN: dict[str, tuple[Callable[[Graph], None], str]] = {
    "operand": (_wrong_gradient, r"ConvWeightGrad.*expected '.*' to be FLOAT\[8, 240\], got FLOAT\[16, 144\]"),
    "attribute": (lambda g: g.set_attribute(_node(g, "Conv"), "batch", None), "lacks its attribute 'batch'"),
    "kind of attribute": (lambda g: g.set_attribute(_node(g, "Conv"), "lanes", [8]), "'lanes' to be INT, got INTS"),
    "unknown attribute": (lambda g: g.set_attribute(_node(g, "Conv"), "alpha", 1), "has an attribute 'alpha'"),
    "bounds": (
        lambda g: g.set_attribute(_node(g, "MaxPool"), "strides", [0, 1]),
        r"'strides' to be at least 1.*\[0, 1\]",
    ),
    "missing operand": (lambda g: g.set_input(_node(g, "ConvInputGrad"), 1, None), r"lacks its input 1 \(w\)"),
    "kernel": (
        lambda g: g.set_attribute(_node(g, "Conv"), "kernel_shape", [3, 2]),
        r"expected filters of \[3, 2\], got \[16, 8, 3, 3\]",
    ),
    "declared shape": (
        lambda g: g.set_type(g.result(_node(g, "MaxPool")), DType.FLOAT, (16, 95)),
        r"(?s)expected FLOAT\[16, 95\] as declared, got FLOAT\[16, 48\]",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_in_our_own_ops_is_named(case: str) -> None:
    graph = _laid_out(LANES)
    edit, says = BROKEN[case]
    edit(graph)
    with pytest.raises(VerifyError, match=says):
        verify(graph)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bits": 1}, r"'bits' to be 2 to 16, got 1"),
        ({"kind": "weights"}, r"'kind' to be weight or activation, got"),
        ({"signed": 2}, r"'signed' to be 0 to 1, got 2"),
    ],
)
def test_a_fake_quant_holds_what_the_dialect_says(change: dict[str, Any], says: str) -> None:
    graph = Graph("net")
    graph.opsets["onnxslim"] = 1
    x = graph.add_input("x", DType.FLOAT, (2, 3))
    grid = [graph.add_constant(name, np.float32(1)) for name in ("scale", "zero")]
    attributes = {"bits": 8, "signed": 1, "narrow": 0, "kind": "activation", **change}
    node = graph.add_node("FakeQuant", [x, *grid], ["y"], attributes, domain="onnxslim", name="fq")
    assert is_fake_quant(node)
    with pytest.raises(VerifyError, match=says):
        verify(graph)


@pytest.mark.parametrize(
    ("domain", "op", "inputs", "attributes"),
    [
        (LANES, "Conv", ["x", "w"], {}),
        (LANES, "Conv", ["x"], {"batch": 2}),
        (LANES, "MaxPool", [], {"batch": "many"}),
        (BLOCKED, "Conv", ["x", "vector"], dict.fromkeys(("batch", "lanes", "group"), 1 << 40)),
        ("onnxslim", "FakeQuant", [], {}),
        ("onnxslim", "FakeQuant", ["x"], {"axis": "first"}),
    ],
)
def test_a_file_may_hold_anything_under_our_names(
    domain: str, op: str, inputs: list[str], attributes: dict[str, Any]
) -> None:
    """Inference says nothing of it, and the verifier says what is wrong."""
    graph = Graph("net", ir_version=9)
    graph.opsets.update({"": 18, domain: 1})
    graph.add_input("x", DType.FLOAT, ("N", 3, 4, 4))
    graph.add_constant("w", np.zeros((2, 3, 1, 1), np.float32))
    graph.add_constant("vector", np.zeros(2, np.float32))
    if domain == BLOCKED:
        attributes |= {name: [1, 1] for name in ("size", "out_size", "kernel_shape", "strides", "dilations", "pads")}
    y = graph.op(op, *map(graph.value, inputs), name="own", domain=domain, **attributes)
    graph.add_output(graph.op("Relu", y, name="y"))
    infer_shapes(graph)
    if inputs != ["x"] or op != "FakeQuant":
        assert y.shape is None
    with pytest.raises(VerifyError, match="node 'own'"):
        verify(graph)


def test_integers_are_no_operands_of_ours() -> None:
    graph = Graph("net")
    graph.opsets["onnxslim"] = 1
    x = graph.add_input("x", DType.FLOAT, (2, 3))
    scale, zero = graph.add_constant("scale", np.float32(1)), graph.add_constant("zero", np.int8(0))
    attributes = {"bits": 8, "signed": 1, "narrow": 0, "kind": "activation"}
    graph.add_node("FakeQuant", [x, scale, zero], ["y"], attributes, domain="onnxslim", name="fq")
    with pytest.raises(VerifyError, match="expected 'zero' to be FLOAT, got INT8"):
        verify(graph)


def test_every_op_that_a_layout_writes_has_a_gradient() -> None:
    """Of those that are made going back, none is needed."""
    forward = {key for key, own in DIALECT.items() if "dy" not in own.inputs}
    assert forward == {key for key in RULES if key[0].startswith("onnxslim")}
