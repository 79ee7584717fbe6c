"""What a file says of sizes is a hint: symbols that it repeats, shapes left over from other inputs."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim import simplify as simplify_model
from onnxslim.errors import VerifyError
from onnxslim.evaluation import open_session
from onnxslim.ir.graph import Dim, Graph
from onnxslim.ir.onnx_io import from_proto, to_proto
from onnxslim.runtime.session import Session
from passes.simplify import canonicalize

F = TensorProto.FLOAT
N = helper.make_node
R = np.random.default_rng(0)


def model(nodes, inputs, *, values=None, hints=(), output: tuple[Dim, ...] | None = None, kind: int = F) -> Graph:
    """y of the nodes; `hints` are (name, shape) of inner values."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, F, shape) for name, shape in inputs],
        [helper.make_tensor_value_info("y", kind, output)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (values or {}).items()],
        value_info=[helper.make_tensor_value_info(name, F, shape) for name, shape in hints],
    )
    return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def same(graph: Graph, **shapes: tuple[int, ...]) -> Graph:
    """Simplified; that it gives what the original gives, node by node as it is written, on inputs of these shapes."""
    feeds = {name: R.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    result = simplify_model(graph)
    expected = Session(graph, optimize=False).run(feeds)["y"]
    for made in (result.graph, canonical(graph)):
        found = Session(made).run(feeds)["y"]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    return result.graph


def canonical(graph: Graph) -> Graph:
    twin = graph.copy()
    canonicalize()(twin)
    return twin


SYMBOLS = pytest.mark.parametrize("symbol", ["?", "N", None])
ENDS = {"0": np.array([0]), "1": np.array([1])}


@SYMBOLS
def test_axes_of_one_symbol_that_change_places(symbol: str | None) -> None:
    nodes = [
        N("Shape", ["x"], ["s"]),
        N("Gather", ["s", "1"], ["a"]),
        N("Gather", ["s", "0"], ["b"]),
        N("Concat", ["a", "b", "four"], ["t"], axis=0),
        N("Reshape", ["x", "t"], ["y"]),
    ]
    same(model(nodes, [("x", [symbol, symbol, 4])], values=ENDS | {"four": np.array([4])}), x=(2, 3, 4))


@SYMBOLS
def test_an_expand_between_axes_of_one_symbol(symbol: str | None) -> None:
    nodes = [N("Shape", ["z"], ["s"]), N("Expand", ["x", "s"], ["y"])]
    graph = model(nodes, [("x", [symbol, 4]), ("z", [symbol, 4])])
    assert [n.op for n in same(graph, x=(1, 4), z=(5, 4)).nodes()] == ["Shape", "Expand"]
    same(graph, x=(5, 4), z=(5, 4))


@SYMBOLS
def test_a_choice_between_sizes_of_one_symbol(symbol: str | None) -> None:
    """Where(Shape(x) = 1, Shape(z), Shape(x)), as broadcasting is exported."""
    nodes = [
        N("Shape", ["x"], ["a"]),
        N("Shape", ["z"], ["b"]),
        N("Equal", ["a", "one"], ["e"]),
        N("Where", ["e", "b", "a"], ["t"]),
        N("Expand", ["x", "t"], ["y"]),
    ]
    same(
        model(nodes, [("x", [symbol, 4]), ("z", [symbol, 4])], values={"one": np.ones(2, np.int64)}), x=(1, 4), z=(5, 4)
    )


@SYMBOLS
def test_the_same_axis_is_the_same(symbol: str | None) -> None:
    """Also one without a name: Reshape(x, [x0, x1, -1]) needs no arithmetic."""
    nodes = [
        N("Shape", ["x"], ["s"]),
        N("Gather", ["s", "0"], ["a"]),
        N("Gather", ["s", "1"], ["b"]),
        N("Concat", ["a", "b", "rest"], ["t"], axis=0),
        N("Reshape", ["x", "t"], ["y"]),
    ]
    graph = model(nodes, [("x", [symbol, symbol, 2, 3])], values=ENDS | {"rest": np.array([-1])})
    assert [n.op for n in same(graph, x=(2, 3, 2, 3)).nodes()] == ["Reshape"]


def test_the_interface_keeps_its_names() -> None:
    graph = model(
        [N("Relu", ["x"], ["r"]), N("Neg", ["r"], ["y"])], [("x", ["n", "n", None, 4])], output=("n", "m", None, 4)
    )
    before = [to_proto(graph).graph.input[0], to_proto(graph).graph.output[0]]
    result = to_proto(simplify_model(graph).graph).graph
    assert [result.input[0], result.output[0]] == before
    (inner,) = result.value_info
    assert [d.dim_param or d.dim_value for d in inner.type.tensor_type.shape.dim] == ["n", "n", 0, 4]


@pytest.mark.parametrize(
    ("shape", "hint", "fed", "notes"),
    [
        (["N", 3, 8, 8], ["N", 5, 14, 14], (2, 3, 8, 8), 1),
        ([2, 3, 8, 8], [1, 5, 6, 6], (2, 3, 8, 8), 1),
        (["N", 3, 8, 8], [1, 5, 6, 6], (2, 3, 8, 8), 1),
        (["N", 3, 8, 8], ["N", 5, 6], (2, 3, 8, 8), 1),
        ([1, 3, "H", "W"], [1, 5, 6, 6], (1, 3, 9, 7), 0),  # which inference cannot say to be wrong
    ],
    ids=["size", "batch", "freed batch", "rank", "freed size"],
)
def test_a_shape_left_from_other_inputs(shape: list[Dim], hint: list[Dim], fed: tuple[int, ...], notes: int) -> None:
    """Shape(conv(x)) is computed from what comes, not from what the file says of it."""
    nodes = [N("Conv", ["x", "w"], ["c"]), N("Shape", ["c"], ["s"]), N("Cast", ["s"], ["y"], to=F)]
    weight = R.normal(size=(5, 3, 3, 3)).astype(np.float32)
    graph = model(nodes, [("x", shape)], values={"w": weight}, hints=[("c", hint)])
    same(graph, x=fed)
    found = simplify_model(graph).outcome.notes
    assert len(found) == notes
    assert all(note.startswith("the file says that 'c' is [") for note in found)


STALE = [
    (N("ReduceSum", ["x", "c"], ["h"]), np.array([1]), (5, 1)),
    (N("Reshape", ["x", "c"], ["h"]), np.array([-1, 2]), (10, 2)),
    (N("Pow", ["x", "c"], ["h"]), np.float32(2), (5, 4)),
    (N("Tile", ["x", "c"], ["h"]), np.array([1, 2]), (5, 8)),
    (N("Pad", ["x", "c"], ["h"]), np.array([0, 1, 0, 1]), (5, 6)),
]


@pytest.mark.parametrize("node, constant, shape", STALE, ids=[node.op_type for node, *_ in STALE])
def test_a_shape_left_behind_a_constant_node(node, constant, shape: tuple[int, ...]) -> None:
    """The first thing that is rewritten is the Constant: what reads it is not held to the file's word."""
    constants = N("Constant", [], ["c"], value=numpy_helper.from_array(np.asarray(constant), "c"))
    hint = (3, *shape[1:])
    graph = model([constants, node, N("Relu", ["h"], ["y"])], [("x", (5, 4))], hints=[("h", hint)], output=hint)
    notes = simplify_model(graph.copy()).outcome.notes
    assert [note for note in notes if "'h'" in note and f"is [{', '.join(map(str, shape))}]" in note]
    assert tuple(same(graph, x=(5, 4)).outputs[0].shape or ()) == shape


RANKED = [
    (N("Conv", ["r", "w"], ["y"]), (2, 3, 5, 5), {"w": np.ones((4, 3, 3, 3), np.float32)}),
    (N("MaxPool", ["r"], ["y"], kernel_shape=[2, 2]), (2, 3, 5, 5), {}),
    (N("Transpose", ["r"], ["y"], perm=[1, 0, 2]), (2, 3, 5), {}),
    (N("Concat", ["r", "r"], ["y"], axis=-3), (2, 3, 5), {}),
    (N("GRU", ["r", "w", "b"], ["y"], hidden_size=4), (5, 2, 3),
     {"w": np.ones((1, 12, 3), np.float32), "b": np.ones((1, 12, 4), np.float32)}),
]  # fmt: skip


@pytest.mark.parametrize("node, shape, values", RANKED, ids=[node.op_type for node, *_ in RANKED])
@pytest.mark.parametrize("rank", [-1, 1])
def test_attributes_are_not_measured_against_a_rank_that_the_file_got_wrong(node, shape, values, rank: int) -> None:
    hint = (*shape, 1) if rank > 0 else shape[:-1]
    graph = model([N("Relu", ["x"], ["r"]), node], [("x", shape)], values=values, hints=[("r", hint)])
    same(graph, x=shape)
    assert "y" in open_session(graph).run({"x": np.ones(shape, np.float32)})


def test_channels_that_the_file_makes_up_are_not_believed() -> None:
    nodes = [N("Relu", ["x"], ["r"]), N("Conv", ["r", "w"], ["y"])]
    weights = {"w": np.ones((4, 3, 1, 1), np.float32)}
    graph = model(nodes, [("x", ("N", "C", "H", "W"))], values=weights, hints=[("r", ("N", 5, "H", "W"))])
    same(graph, x=(2, 3, 4, 4))
    assert open_session(graph).run({"x": np.ones((2, 3, 4, 4), np.float32)})["y"].shape == (2, 4, 4, 4)


@pytest.mark.parametrize("output", [("N", 4), ("N", 1, 4), (7, 4, 1)])
def test_an_output_of_another_rank_or_size(output: tuple[Dim, ...]) -> None:
    """ONNX Runtime warns, and runs it."""
    graph = model([N("Relu", ["x"], ["r"]), N("Neg", ["r"], ["y"])], [("x", ["N", 4, 1])], output=output)
    result = simplify_model(graph)
    assert result.graph.outputs[0].shape == ("N", 4, 1)
    assert len(result.outcome.notes) == 1
    same(graph, x=(2, 4, 1))


def test_a_wrong_element_type_is_an_error() -> None:
    """Which ONNX Runtime refuses, too."""
    graph = model([N("Relu", ["x"], ["y"])], [("x", ["N", 4])], kind=TensorProto.INT64)
    with pytest.raises(VerifyError, match="makes 'y': expected INT64.*got FLOAT"):
        simplify_model(graph)


def test_an_input_of_unknown_rank_is_no_scalar() -> None:
    nodes = [N("Shape", ["x"], ["s"]), N("Cast", ["s"], ["y"], to=F)]
    graph = model(nodes, [("x", None)])
    for shape in ((), (2,), (2, 3, 4)):
        same(graph, x=shape)


def test_what_inference_cannot_know_is_not_believed() -> None:
    """A target that is fed: ONNX Runtime computes Shape(r) from what the file says of r, so that goes."""
    graph = helper.make_graph(
        [N("Reshape", ["x", "t"], ["r"]), N("Shape", ["r"], ["s"]), N("Cast", ["s"], ["y"], to=F)],
        "net",
        [helper.make_tensor_value_info("x", F, [3, 4]), helper.make_tensor_value_info("t", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("y", F, [2])],
        value_info=[helper.make_tensor_value_info("r", F, [3, 4])],
    )
    made = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    result = simplify_model(made).graph
    assert [node.op for node in result.nodes()] == ["Reshape", "Shape", "Cast"]
    fed = {"x": np.ones((3, 4), np.float32), "t": np.array([6, 2])}
    np.testing.assert_array_equal(Session(result).run(fed)["y"], [6, 2])
