from __future__ import annotations

import numpy as np
import pytest

from onnxslim.ir.graph import DType, Graph
from onnxslim.runtime.session import Session
from passes.layout import ShapePorts


def network(second: list[int]) -> Graph:
    """w [2, 3, 1, 1] read twice as a matrix; the output reshaped back."""
    graph = Graph()
    w = graph.add_input("w", DType.FLOAT, (2, 3, 1, 1))
    x = graph.add_input("x", DType.FLOAT, (3, 4))
    made = []
    for i, target in enumerate(([2, 3], second)):
        flat = graph.op("Reshape", w, graph.add_constant(f"target{i}", np.array(target)))
        graph.set_type(flat, DType.FLOAT, target)
        made.append(flat)
    left = graph.op("MatMul", made[0], x)
    graph.set_type(left, DType.FLOAT, (2, 4))
    right = graph.op("Mul", made[1], graph.add_constant("two", np.float32(2)))
    graph.set_type(right, DType.FLOAT, second)
    for value, shape in ((left, [8]), (right, [6, 1])):
        out = graph.op("Reshape", value, graph.add_constant("back", np.array(shape)), name=f"out{shape[0]}")
        graph.set_type(out, DType.FLOAT, shape)
        graph.add_output(out)
    return graph


def test_ports_take_the_shapes_computed_with() -> None:
    graph, twin = network([2, 3]), network([2, 3])
    assert ShapePorts(frozenset({"w"}))(twin).rewrites == 3
    assert not [n for n in twin.nodes() if n.op == "Reshape"]
    assert [v.name for v in twin.outputs] == [v.name for v in graph.outputs]
    assert twin.value("w").shape == (2, 3)
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(2, 3, 1, 1)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    expected = Session(graph).run({"w": w, "x": x})
    found = Session(twin).run({"w": w.reshape(2, 3), "x": x})
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name].reshape(-1), array.reshape(-1))


@pytest.mark.parametrize("second", [[3, 2], [-1, 3]])
def test_an_input_read_in_several_shapes_stays(second: list[int]) -> None:
    graph = network([2, 3])
    node = next(n for n in graph.nodes() if n.op == "Reshape" and graph.operand(n, 1).name == "target1")
    graph.set_input(node, 1, graph.add_constant("other", np.array(second)))
    ShapePorts(frozenset({"w"}))(graph)
    assert graph.value("w").shape == (2, 3, 1, 1)


def test_an_input_that_is_not_named_stays() -> None:
    graph = network([2, 3])
    assert ShapePorts()(graph).rewrites == 2
    assert graph.value("w").shape == (2, 3, 1, 1)
