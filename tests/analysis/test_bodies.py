"""What stands in bodies of If, Loop and Scan counts like what stands outside, and the same for every command."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim.analysis.bodies import count_nodes, walk
from onnxslim.analysis.cost import cost, parameters
from onnxslim.analysis.inspection import inspect_model
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import from_proto
from onnxslim.pruning.footprint import Footprint

F, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
N, info = helper.make_node, helper.make_tensor_value_info


def weight(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def model(nodes, initializers=(), inputs=(), width: int = 8) -> Graph:
    graph = helper.make_graph(
        nodes,
        "net",
        [info("x", F, ["n", 4]), *inputs],
        [info("y", F, ["n", width])],
        [*initializers, numpy_helper.from_array(np.array(True), "yes"), numpy_helper.from_array(np.array(3), "three")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return from_proto(made)


def branch(name: str, *weights: str, own: tuple[onnx.TensorProto, ...] = ()) -> onnx.GraphProto:
    """x times each of the weights in turn."""
    values = ["x", *(f"{name}{i}" for i in range(len(weights) - 1)), name]
    nodes = [N("MatMul", [values[i], w], [values[i + 1]]) for i, w in enumerate(weights)]
    return helper.make_graph(nodes, f"{name}g", [], [info(name, F, None)], own)


def test_an_if() -> None:
    """4·8 captured by one branch; 4·6 and 6·8 of the other's own, and a scalar that is no weight."""
    own = (weight("b", 4, 6), weight("c", 6, 8), numpy_helper.from_array(np.float32(2), "k"))
    branches = {"then_branch": branch("t", "a"), "else_branch": branch("u", "b", "c", own=own)}
    graph = model([N("If", ["flag"], ["y"], name="if", **branches)], [weight("a", 4, 8)], [info("flag", BOOL, [])])
    found = cost(graph)
    assert found.params == 32 + 24 + 48
    assert found.macs == 4 * 6 + 6 * 8  # the dearer branch
    assert found.bytes == 4 * (32 + 24 + 48 + 1) + 1 + 8  # and `yes` and `three`
    assert [(row.name, row.params) for row in found.by_node] == [("if", 104)]
    size = Footprint(graph, {}).size
    assert (size.macs, size.params, size.bytes) == (found.macs, found.params, found.bytes)
    assert dict(inspect_model(graph).ops) == {"MatMul": 3, "If": 1}
    assert count_nodes(graph) == sum(len(part.nodes()) for part in walk(graph)) == 4


def test_an_if_of_unknown_size_is_not_free() -> None:
    nodes = [
        N("Reshape", ["z", "to"], ["r"]),
        N("If", ["flag"], ["y"], name="if", then_branch=wide(), else_branch=wide()),
    ]
    graph = model(nodes, [], [info("flag", BOOL, []), info("z", F, ["n", "m"]), info("to", INT, [2])])
    assert (cost(graph).macs, cost(graph).unknown) == (None, ("if",))


def wide() -> onnx.GraphProto:
    return helper.make_graph([N("MatMul", ["r", "w"], ["t"])], "g", [], [info("t", F, None)], [weight("w", 4, 8)])


@pytest.mark.parametrize(("count", "macs"), [("three", 3 * 16), ("given", 0)])
def test_a_loop(count: str, macs: int) -> None:
    inside = helper.make_graph(
        [N("Identity", ["go"], ["on"]), N("MatMul", ["s", "w"], ["out"])],
        "body",
        [info("i", INT, []), info("go", BOOL, []), info("s", F, ["n", 4])],
        [info("on", BOOL, []), info("out", F, ["n", 4])],
        [weight("w", 4, 4)],
    )
    graph = model([N("Loop", [count, "yes", "x"], ["y"], body=inside, name="loop")], [], [info("given", INT, [])], 4)
    found = cost(graph)
    assert (found.macs, found.params) == (macs, 16)
    assert found.unknown == (() if count == "three" else ("loop",))


def test_a_scan_and_bodies_within_bodies() -> None:
    inner = helper.make_graph([N("MatMul", ["row", "w"], ["t"])], "g", [], [info("t", F, None)], [weight("w", 5, 4)])
    inside = helper.make_graph(
        [N("If", ["yes"], ["m"], then_branch=inner, else_branch=inner), N("Add", ["s", "m"], ["out"])],
        "body",
        [info("s", F, [1, 4]), info("row", F, [1, 5])],
        [info("out", F, [1, 4])],
    )
    scan = N("Scan", ["start", "z"], ["y"], body=inside, num_scan_inputs=1, scan_input_axes=[1])
    graph = model([scan], [weight("start", 1, 4)], [info("z", F, [1, 7, 5])], 4)
    assert cost(graph).macs == 7 * 20
    assert cost(graph).params == 2 * 20 + 4  # a state that is added counts as it would outside
    assert [v.name for v in parameters(graph)] == ["start"]


def test_what_a_body_captures_is_what_it_is_for_in_there() -> None:
    """Bounds of a Clip and statistics of a batch norm are no weights."""
    inside = helper.make_graph(
        [N("BatchNormalization", ["x", "g", "g", "mean", "var"], ["t"])], "g", [], [info("t", F, None)]
    )
    values = [weight(name, 4) for name in ("g", "mean", "var")]
    graph = model(
        [N("If", ["flag"], ["y"], then_branch=inside, else_branch=inside)], values, [info("flag", BOOL, [])], 4
    )
    assert [v.name for v in parameters(graph)] == ["g"]
    assert cost(graph).params == 4
