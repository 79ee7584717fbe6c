"""The table of op facts: true of ONNX's own definitions, and what follows from it where tables of their own stood."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxslim.errors import UnsupportedError, VerifyError
from onnxslim.ir.graph import DType, Graph, Node
from onnxslim.ir.op_facts import FACTS, channel_axes, channel_counts
from onnxslim.ir.ops import window
from onnxslim.ir.verify import verify
from onnxslim.runtime.session import Session
from passes.simplify import FoldAffine

ONNX = sorted(op for domain, op in FACTS if not domain)


@pytest.mark.parametrize("op", ONNX)
def test_slots_and_attributes_are_those_of_the_definition(op: str) -> None:
    facts = FACTS["", op]
    if op == "SimplifiedLayerNormalization":  # of ONNX Runtime, in ONNX's own domain
        return
    schema = onnx.defs.get_schema(op)
    slots = (*facts.weights, *facts.scales, *facts.biases, *facts.statistics, *facts.settings)
    assert max(slots, default=0) < schema.max_input
    assert not facts.turned or facts.turned in schema.attributes
    assert facts.window == ("kernel_shape" in schema.attributes or op == "DeformConv")
    if facts.elementwise == "unary":
        assert (schema.min_input, schema.max_input) == (1, 1)
    assert facts.elementwise is None or schema.min_output == 1


def _layer(op: str, weight: tuple[int, ...], **attributes: int) -> Node:
    graph = Graph("net")
    x = graph.add_input("x", DType.FLOAT, (None, 3))
    return graph.add_node(op, [x, graph.add_constant("w", np.zeros(weight, np.float32))], ["y"], attributes, name="n")


@pytest.mark.parametrize(
    ("op", "weight", "attributes", "axes"),
    [
        ("Conv", (4, 3, 3, 3), {}, (0, 1)),
        ("ConvTranspose", (3, 4, 2), {}, (1, 0)),
        ("Gemm", (3, 4), {}, (1, 0)),
        ("Gemm", (4, 3), {"transB": 1}, (0, 1)),
        ("MatMul", (3, 4), {}, (1, 0)),
        ("MatMul", (2, 3, 4), {}, None),
        ("GRU", (1, 6, 3), {}, None),
        ("Relu", (3, 4), {}, None),
    ],
)
def test_channel_axes(op: str, weight: tuple[int, ...], attributes: dict[str, int], axes: object) -> None:
    assert channel_axes(_layer(op, weight, **attributes), len(weight)) == axes


def test_channels_of_groups() -> None:
    """[O, I/group] of a convolution, [I, O/group] of a transposed one."""
    assert channel_counts(FACTS["", "Conv"], (6, 2, 3, 3), 3) == (6, 6)
    assert channel_counts(FACTS["", "ConvTranspose"], (6, 2, 3, 3), 3) == (6, 6)
    assert channel_counts(FACTS["", "ConvTranspose"], (6, 5, 3, 3), 2) == (10, 6)
    assert channel_counts(FACTS["", "QLinearConv"], ("n", "m", 3, 3), 2) == ("n", None)


@pytest.mark.parametrize(
    ("mode", "pads"), [("SAME_UPPER", (0, 0, 1, 1)), ("SAME_LOWER", (1, 1, 0, 0)), ("VALID", (0, 0, 0, 0))]
)
@pytest.mark.parametrize(("domain", "op"), [("", "Conv"), ("com.microsoft", "FusedConv"), ("", "LpPool")])
def test_pads_are_resolved_alike_for_all_windows(domain: str, op: str, mode: str, pads: tuple[int, ...]) -> None:
    """As ONNX Runtime resolves them: the same numbers come out with the pads written down. A kernel of [2, 4] over 5×6
    in steps of [2, 3] lacks one row and one column; where the kernel is not written down, the weight has it."""
    graph = Graph("net", ir_version=9)
    graph.opsets.update({"": 18} | ({domain: 1} if domain else {}))
    x = graph.add_input("x", DType.FLOAT, (1, 1, 5, 6))
    weights = () if op == "LpPool" else (graph.add_constant("w", np.ones((1, 1, 2, 4), np.float32)),)
    kernel = {} if weights else {"kernel_shape": [2, 4]}
    y = graph.op(op, x, *weights, name="y", domain=domain, auto_pad=mode, strides=[2, 3], **kernel)
    graph.add_output(y)
    node = graph.producer(y)
    assert node is not None
    assert window(graph, node).pads == pads
    feeds = {"x": np.arange(30, dtype=np.float32).reshape(1, 1, 5, 6)}
    expected = Session(graph).run(feeds)["y"]
    graph.set_attribute(node, "auto_pad", None)
    graph.set_attribute(node, "pads", list(pads))
    np.testing.assert_array_equal(Session(graph).run(feeds)["y"], expected)


def test_pads_of_unknown_sizes_are_refused() -> None:
    graph = Graph("net")
    x = graph.add_input("x", DType.FLOAT, (1, 1, "h", "w"))
    y = graph.op("MaxPool", x, name="y", auto_pad="SAME_UPPER", kernel_shape=[2, 2])
    node = graph.producer(y)
    assert node is not None
    with pytest.raises(UnsupportedError, match="make its pads explicit"):
        window(graph, node)


@pytest.mark.parametrize(("domain", "op", "slot"), [("com.microsoft", "FusedConv", 2), ("", "DeformConv", 3)])
def test_every_convolution_has_one_bias_a_channel(domain: str, op: str, slot: int) -> None:
    graph = Graph("net")
    graph.opsets.update({"": 19} | ({domain: 1} if domain else {}))
    x = graph.add_input("x", DType.FLOAT, (1, 2, 4, 4))
    inputs = [x, graph.add_constant("w", np.zeros((3, 2, 1, 1), np.float32))]
    if op == "DeformConv":
        inputs.append(graph.add_constant("offset", np.zeros((1, 2, 4, 4), np.float32)))
    inputs.append(graph.add_constant("b", np.zeros(4, np.float32)))
    graph.add_output(graph.op(op, *inputs, name="y", domain=domain))
    with pytest.raises(VerifyError, match=r"expected 'b' to have one number for each of 3 channels, got \[4\]"):
        verify(graph)
    graph.set_array(graph.value("b"), np.zeros(3, np.float32))
    verify(graph)


def test_a_factor_is_folded_into_every_linear_layer() -> None:
    """DeformConv, of which no table but that of the facts says where its bias is: w·k and b·k + c, in slot 3."""
    graph = Graph("net")
    graph.opsets[""] = 19
    rng = np.random.default_rng(0)
    x, offset = graph.add_input("x", DType.FLOAT, (1, 2, 4, 4)), graph.add_input("offset", DType.FLOAT, (1, 2, 4, 4))
    w, b = rng.standard_normal((3, 2, 1, 1)).astype(np.float32), rng.standard_normal(3).astype(np.float32)
    y = graph.op("DeformConv", x, graph.add_constant("w", w), offset, graph.add_constant("b", b), name="conv")
    factor = np.array([2, -1, 0.5], np.float32).reshape(3, 1, 1)
    graph.add_output(graph.op("Mul", y, graph.add_constant("k", factor), name="y"))
    assert FoldAffine()(graph).rewrites == 1
    (node,) = graph.nodes()
    bias = graph.constant_of(graph.input(node, 3))
    assert bias is not None
    np.testing.assert_allclose(bias, b * factor.reshape(-1), rtol=1e-6)  # one rounding
    np.testing.assert_allclose(graph.constant_of(graph.operand(node, 1)), w * factor[..., None], rtol=1e-6)
