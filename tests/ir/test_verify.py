"""Each broken invariant is named with node, op, expected and got; with a mark only edits are looked at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxslim.errors import VerifyError
from onnxslim.ir.graph import DType, Graph, Role
from onnxslim.ir.verify import verify


def _graph() -> Graph:
    graph = Graph("net")
    x = graph.add_input("x", DType.FLOAT, ("n", 3, 8, 8))
    weight = graph.add_constant("w", np.zeros((4, 3, 3, 3), np.float32), role=Role.PARAMETER)
    y = graph.op("Conv", x, weight, name="conv", pads=[1, 1, 1, 1])
    graph.set_type(y, DType.FLOAT, ("n", 4, 8, 8))
    z = graph.op("Relu", y, name="relu")
    graph.set_type(z, DType.FLOAT, ("n", 4, 8, 8))
    graph.add_output(z)
    return graph


def _fake_quant(graph: Graph, channels: int, **changes: object) -> None:
    scale = graph.add_constant("s", np.ones(channels, np.float32), role=Role.SCALE, owner="w")
    zero = graph.add_constant("z", np.zeros(channels, np.float32), role=Role.SCALE, owner="w")
    attributes = {"bits": 8, "signed": 1, "narrow": 1, "kind": "weight", "axis": 0, **changes}
    node = graph.add_node("FakeQuant", [graph.value("w"), scale, zero], 1, attributes, domain="onnxslim", name="fq")
    graph.set_input(graph.node_named("conv"), 1, graph.result(node))


def _unsourced(graph: Graph) -> None:
    graph.set_input(graph.node_named("relu"), 0, graph.add_value("lost"))


def _unsourced_output(graph: Graph) -> None:
    graph.add_output(graph.add_value("lost"))


def _array_gone(graph: Graph) -> None:
    graph.set_array(graph.value("w"), None)


def _cycle(graph: Graph) -> None:
    node = graph.add_node("Add", [graph.value("relu"), graph.value("x")], ["sum"], name="add")
    graph.set_input(graph.node_named("relu"), 0, graph.result(node))


def _stale_shape(graph: Graph) -> None:
    graph.set_attribute(graph.node_named("conv"), "strides", [2, 2])


def _stale_type(graph: Graph) -> None:
    graph.set_type(graph.value("relu"), DType.FLOAT16)


def _stale_rank(graph: Graph) -> None:
    graph.set_type(graph.value("conv"), shape=("n", 256))


def _wrong_initialiser(graph: Graph) -> None:
    graph.set_type(graph.value("w"), shape=(4, 3, 5, 5))


def _two_sources(graph: Graph) -> None:
    graph.set_array(graph.value("conv"), np.zeros((1, 4, 8, 8), np.float32))


def _missing_input(graph: Graph) -> None:
    graph.set_input(graph.node_named("conv"), 1, None)


def _missing_first_input(graph: Graph) -> None:
    graph.set_input(graph.node_named("conv"), 0, None)


def _too_many_inputs(graph: Graph) -> None:
    graph.set_input(graph.node_named("relu"), 1, graph.value("x"))


def _unknown_attribute(graph: Graph) -> None:
    graph.set_attribute(graph.node_named("relu"), "alpha", 0.1)


def _missing_attribute(graph: Graph) -> None:
    graph.set_op(graph.node_named("relu"), "Cast")


def _later_op(graph: Graph) -> None:
    graph.set_op(graph.node_named("relu"), "Gelu")


def _no_opset(graph: Graph) -> None:
    graph.set_op(graph.node_named("relu"), "Relu", "com.example")
    del graph.opsets["com.example"]


def _incompatible(graph: Graph) -> None:
    flat = graph.op("Flatten", graph.value("relu"))
    graph.add_output(graph.op("MatMul", flat, graph.add_constant("m", np.ones((7, 2), np.float32)), name="product"))


def _negative_axis(graph: Graph) -> None:
    graph.set_type(graph.value("relu"), shape=(-1, 4, 8, 8))


_BROKEN: dict[str, tuple[Callable[[Graph], None], str]] = {
    "unsourced": (_unsourced, r"node 'relu' \(Relu\) reads 'lost', which nothing produces"),
    "unsourced_output": (_unsourced_output, "reads 'lost', which nothing produces|Output 'lost'"),
    "array_gone": (_array_gone, r"node 'conv' \(Conv\) reads 'w', which nothing produces"),
    "cycle": (_cycle, "has a cycle: "),
    "stale_shape": (
        _stale_shape,
        r"'conv' \(Conv\).*expected FLOAT\[n, 4, 8, 8\] as declared, got FLOAT\[n, 4, 4, 4\]",
    ),
    "stale_type": (_stale_type, r"'relu' \(Relu\).*expected FLOAT16\[n, 4, 8, 8\] as declared, got FLOAT\["),
    "stale_rank": (_stale_rank, r"'conv' \(Conv\) makes 'conv': expected FLOAT\[n, 256\] as declared, got FLOAT\[n, 4"),
    "wrong_initialiser": (
        _wrong_initialiser,
        r"'w' is declared as FLOAT\[4, 3, 5, 5\], but its array is FLOAT\[4, 3, 3, 3\]",
    ),
    "two_sources": (_two_sources, r"'conv' has two sources: it is an initialiser, and node 'conv' \(Conv\)"),
    "missing_input": (_missing_input, r"node 'conv' \(Conv\) lacks its input 1 \(W\)"),
    "missing_first_input": (_missing_first_input, r"node 'conv' \(Conv\) lacks its input 0 \(X\)"),
    "too_many_inputs": (_too_many_inputs, r"node 'relu' \(Relu\) has 2 inputs; expected 1 in opset 18"),
    "unknown_attribute": (
        _unknown_attribute,
        r"node 'relu' \(Relu\) has an attribute 'alpha'; in opset 18 there are: none",
    ),
    "missing_attribute": (_missing_attribute, r"node 'relu' \(Cast\) lacks its attribute 'to'"),
    "later_op": (_later_op, r"node 'relu' \(Gelu\) does not exist in opset 18; .* from opset 20 on"),
    "no_opset": (_no_opset, r"node 'relu' \(com.example.Relu\) needs an opset of domain 'com.example'"),
    "incompatible": (_incompatible, r"(?s)MatMul.*product.*Incompatible dimensions"),
    "negative_axis": (_negative_axis, "'relu' has a negative axis"),
    "fake_quant_channels": (lambda g: _fake_quant(g, 5), r"'fq' \(onnxslim.FakeQuant\).*expected 's' of shape \(4,\)"),
    "fake_quant_axis": (lambda g: _fake_quant(g, 4, axis=None), r"expected 's' of shape \(\)"),
    "fake_quant_axis_out": (lambda g: _fake_quant(g, 4, axis=4), r"'fq'.*'axis' to be one of 'w' FLOAT\[4, 3.*, got 4"),
    "fake_quant_attribute": (lambda g: _fake_quant(g, 4, bits=None), "lacks its attribute 'bits'"),
}


@pytest.mark.parametrize("case", _BROKEN)
@pytest.mark.parametrize("incremental", [False, True])
def test_what_is_broken_is_named(case: str, incremental: bool) -> None:
    graph = _graph()
    verify(graph)
    edit, says = _BROKEN[case]
    mark = graph.mark()
    edit(graph)
    with pytest.raises(VerifyError, match=says):
        verify(graph, mark if incremental else None)


def test_a_sound_graph_passes_in_all_ways() -> None:
    graph = _graph()
    _fake_quant(graph, 4)
    mark = graph.mark()
    verify(graph)
    verify(graph, mark)
    verify(graph.copy())
    assert mark > 0


def test_only_what_was_edited_is_looked_at() -> None:
    graph = _graph()
    _stale_shape(graph)
    mark = graph.mark()
    y = graph.op("Neg", graph.value("relu"))
    graph.add_output(y)
    verify(graph, mark)  # the stale convolution lies before the mark
    with pytest.raises(VerifyError, match="conv"):
        verify(graph)


def test_a_copy_is_looked_at_as_a_whole() -> None:
    graph = _graph()
    _stale_shape(graph)
    with pytest.raises(VerifyError, match="conv"):
        verify(graph.copy())


def test_unknown_ops_and_functions_are_left_alone() -> None:
    graph = _graph()
    graph.add_output(graph.op("Whatever", graph.value("relu"), domain="com.example", mode="odd"))
    graph.add_output(graph.op("QAttention", graph.value("relu"), domain="com.microsoft"))
    verify(graph)
    assert graph.opsets["com.example"] == 1


def test_nodes_without_name_are_found_by_what_they_make() -> None:
    graph = _graph()
    graph.add_output(graph.op("Cast", graph.value("relu")))
    with pytest.raises(VerifyError, match=r"node '' \(Cast\) that makes 'Cast' lacks its attribute 'to'"):
        verify(graph)
