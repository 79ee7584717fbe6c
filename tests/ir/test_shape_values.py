"""Shape arithmetic gives what ONNX's reference computes, with unknown elements among the known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, reference

from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.onnx_io import to_proto
from onnxslim.ir.shape_values import evaluate, known_constant
from onnxslim.ir.shapes import infer_shapes


def _ints(graph: Graph, *values: int) -> Value:
    return graph.add_constant("c", np.array(values, np.int64))


def _scalar(graph: Graph, value: int) -> Value:
    return graph.add_constant("c", np.array(value, np.int64))


def _known(graph: Graph) -> dict[str, Array]:
    """Everything that is known, by name."""
    known: dict[int, Array] = {}
    for node in graph.nodes():
        elements = evaluate(graph, node, known)
        if elements is not None:
            known[graph.result(node).id] = elements
    return {v.name: known[v.id] for v in graph.values() if v.id in known}


def _input(shape: tuple[int | str | None, ...]) -> tuple[Graph, Value]:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, shape)
    return graph, graph.op("Shape", x, name="shape")


def test_a_dynamic_batch_does_not_hide_its_neighbours() -> None:
    graph, shape = _input(("n", 24, None, 8))
    channels = graph.op("Gather", shape, _scalar(graph, 1))
    half = graph.op("Div", channels, _scalar(graph, 2))
    parts = [graph.op("Unsqueeze", v, _ints(graph, 0)) for v in (graph.op("Gather", shape, _scalar(graph, 0)), half)]
    tail = graph.op("Slice", shape, _ints(graph, 2), _ints(graph, 1 << 62))
    graph.op("Concat", parts[0], _ints(graph, 2), parts[1], tail, name="target", axis=0)
    infer_shapes(graph)
    assert _known(graph)["target"].tolist() == ["n", 2, 12, None, 8]


@pytest.mark.parametrize(
    "target, result",
    [
        (["n", -1], ("n", 96)),
        (["n", 2, 12, 4], ("n", 2, 12, 4)),
        ([2, "n", 48], (2, "n", 48)),
        ([-1, 3], (None, 3)),
    ],
    ids=str,
)
def test_reshape_targets_with_symbols(target: list[int | str], result: tuple[int | str | None, ...]) -> None:
    graph, shape = _input(("n", 96))
    parts = [
        graph.op("Slice", shape, _ints(graph, 0), _ints(graph, 1)) if isinstance(e, str) else _ints(graph, e)
        for e in target
    ]
    y = graph.op("Reshape", graph.value("x"), graph.op("Concat", *parts, axis=0), name="y")
    graph.add_output(y)
    infer_shapes(graph)
    assert y.shape == result


_BINARY = {"Add": (-9, 9), "Sub": (-9, 9), "Mul": (-9, 9), "Div": (1, 9), "Equal": (-2, 2)}


@st.composite
def _programs(draw: st.DrawFn) -> Graph:
    """Shape arithmetic over Shape([2, 3, 4, 5]), every op with known elements."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (2, 3, 4, 5))
    vectors = [graph.op("Shape", x)]
    for _ in range(draw(st.integers(1, 6))):
        op = draw(st.sampled_from([*_BINARY, "Gather", "Slice", "Concat", "ReduceProd", "Cast", "Where", "Squeeze"]))
        v = draw(st.sampled_from(vectors))
        if op in _BINARY:
            number = draw(st.integers(*_BINARY[op]))
            made = graph.op(op, v, _ints(graph, number))
            made = graph.op("Cast", made, to=7) if op == "Equal" else made
        elif op == "Gather":
            made = graph.op("Gather", v, _ints(graph, draw(st.integers(-1, 0)), 0))
        elif op == "Slice":
            made = graph.op(
                "Slice",
                v,
                _ints(graph, draw(st.integers(-5, 0))),
                _ints(graph, draw(st.integers(1, 5))),
                _ints(graph, 0),
            )
        elif op == "Concat":
            made = graph.op("Concat", v, draw(st.sampled_from(vectors)), axis=0)
        elif op == "ReduceProd":
            made = graph.op("ReduceProd", v)
        elif op == "Where":
            condition = graph.op("Equal", v, _ints(graph, draw(st.integers(0, 5))))
            made = graph.op("Where", condition, _ints(graph, 7), v)
        elif op == "Squeeze":
            made = graph.op(
                "Unsqueeze", graph.op("Squeeze", graph.op("ReduceProd", v), _ints(graph, 0)), _ints(graph, 0)
            )
        else:
            made = graph.op("Cast", v, to=6)
            made = graph.op("Cast", made, to=7)
        vectors.append(made)
    graph.add_output(vectors[-1])
    infer_shapes(graph)
    return graph


@settings(deadline=None, max_examples=80)
@given(graph=_programs())
def test_arithmetic_is_what_the_reference_computes(graph: Graph) -> None:
    (result,) = graph.outputs
    (expected,) = reference.ReferenceEvaluator(to_proto(graph)).run(None, {"x": np.zeros((2, 3, 4, 5), np.float32)})
    known = _known(graph)
    assert result.name in known
    assert known[result.name].tolist() == np.asarray(expected).tolist()
    assert result.shape == np.shape(expected)


@pytest.mark.parametrize(
    "op, a, b, expected",
    [
        ("Mul", "n", 1, "n"),
        ("Mul", "n", 2, None),
        ("Div", "n", 1, "n"),
        ("Div", -7, 2, -3),  # ONNX truncates
        ("Add", "n", 0, "n"),
        ("Add", "n", 1, None),
        ("Sub", "n", 0, "n"),
        ("Equal", "n", -1, 0),
        ("Equal", "n", 3, None),
    ],
)
def test_symbols(op: str, a: Any, b: int, expected: Any) -> None:
    graph = Graph()
    x = graph.add_input("x", DType.INT64, ())
    node = graph.add_node(op, [x, graph.add_constant("b", np.array(b, np.int64))])
    elements = evaluate(graph, node, {x.id: np.array(a, object)})
    assert elements is not None
    assert elements.item() == expected


def test_what_is_no_shape_arithmetic_is_left_alone() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, None)
    big = graph.add_constant("big", np.zeros(2000, np.int64))
    small = graph.add_constant("small", np.array([1, 2], np.int32))
    floats = graph.add_constant("floats", np.zeros(3, np.float32))
    for op, inputs in (
        ("Relu", [x]),
        ("Shape", [x]),
        ("Add", [big, big]),
        ("Identity", [floats]),
        ("Gather", [big, x]),
    ):
        assert evaluate(graph, graph.add_node(op, inputs), {}) is None
    assert evaluate(graph, graph.add_node("Add", [small, small], domain="com.example"), {}) is None
    wrong = graph.add_node("Gather", [small, graph.add_constant("far", np.array([9], np.int64))])
    assert evaluate(graph, wrong, {}) is None
    assert known_constant(graph, small) is not None
    assert known_constant(graph, None) is None


def test_constants_in_nodes() -> None:
    graph = Graph()
    nodes = [
        graph.add_node("Constant", [], attributes={"value": numpy_helper.from_array(np.array([1, 2]))}),
        graph.add_node("Constant", [], attributes={"value_ints": [3, 4]}),
        graph.add_node("Constant", [], attributes={"value_int": 5}),
        graph.add_node("Constant", [], attributes={"value_float": 0.5}),
        graph.add_node(
            "ConstantOfShape", [_ints(graph, 2)], attributes={"value": numpy_helper.from_array(np.array([6]))}
        ),
    ]
    found = [evaluate(graph, node, {}) for node in nodes]
    assert [None if f is None else f.tolist() for f in found] == [[1, 2], [3, 4], 5, None, [6, 6]]
