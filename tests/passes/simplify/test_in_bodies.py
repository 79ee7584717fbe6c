"""Bodies of If, Loop and Scan: every rule goes into them, and what is known outside is known inside."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim import simplify as simplify_model
from onnxslim.analysis.bodies import close_bodies, count_nodes, open_bodies, walk
from onnxslim.errors import OptionError, UnsupportedError
from onnxslim.ir.graph import Array, DType, Graph
from onnxslim.ir.onnx_io import from_proto, to_bytes
from onnxslim.ir.verify import verify
from onnxslim.runtime.session import Session
from passes.simplify import ConvertOpset, FreezeInputs, InlineBranches, ToFloat32, canonicalize

F, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
ROUNDING = 1e-6
"""The same sums: what differs is in which order a kernel takes them, if at all."""
N, info = helper.make_node, helper.make_tensor_value_info


def weight(name: str, *shape: int) -> onnx.TensorProto:
    seed = sum(map(ord, name))
    return numpy_helper.from_array(np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32), name)


def constant(name: str, array: object) -> onnx.NodeProto:
    return N("Constant", [], [name], value=numpy_helper.from_array(np.asarray(array)))


def model(nodes, inputs, outputs, initializers=(), opset: int = 17) -> Graph:
    graph = helper.make_graph(nodes, "net", inputs, outputs, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return from_proto(made)


def body(nodes, output: onnx.ValueInfoProto, inputs=(), initializers=(), more=()) -> onnx.GraphProto:
    return helper.make_graph(nodes, f"of {output.name}", inputs, [*more, output], initializers)


def run(graph: Graph, **feeds: object) -> list[Array]:
    return list(Session(graph).run({name: np.asarray(value) for name, value in feeds.items()}).values())


def same(before: Graph, after: Graph, bound: float, **feeds: object) -> None:
    for a, b in zip(run(before, **feeds), run(after, **feeds), strict=True):
        assert np.abs(a - b).max() <= bound * np.abs(a).max()


def ops_within(graph: Graph) -> list[str]:
    return [node.op for part in walk(graph) for node in part.nodes()]


def padded_product(name: str) -> onnx.GraphProto:
    """MatMul(Pad(x)), the amounts put together of constants as exporters do; with a Dropout and an Identity."""
    nodes = [
        constant(f"{name}_p", np.array([0, 1])),
        N("Concat", [f"{name}_p", f"{name}_p"], [f"{name}_pads"], axis=0),
        N("Identity", ["x"], [f"{name}_i"]),
        N("Pad", [f"{name}_i", f"{name}_pads"], [f"{name}_d"], mode="reflect", name=f"pad_{name}"),
        N("Dropout", [f"{name}_d"], [f"{name}_o"]),
        N("MatMul", [f"{name}_o", f"{name}_w"], [name], name=f"mm_{name}"),
    ]
    return body(nodes, info(name, F, ["n", 8]), initializers=[weight(f"{name}_w", 18, 8)])


def choice(opset: int = 16) -> Graph:
    """y = one of two products, by whether `rate` is 16000."""
    nodes = [
        N("Equal", ["rate", "k"], ["e"]),
        N("If", ["e"], ["y"], then_branch=padded_product("t"), else_branch=padded_product("u"), name="choice"),
    ]
    inputs = [info("x", F, ["n", 16]), info("rate", INT, [])]
    return model(nodes, inputs, [info("y", F, ["n", 8])], [numpy_helper.from_array(np.array(16000), "k")], opset)


X = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)


@pytest.mark.parametrize("rate", [16000, 8000])
@pytest.mark.parametrize("opset", [13, 16, 18])
def test_rules_go_into_branches(opset: int, rate: int) -> None:
    graph = choice(opset)
    result = simplify_model(graph, check=opset == 16, inputs={"x": X, "rate": np.array(rate)} if opset == 16 else None)
    assert ops_within(result.graph) == ["Equal", "If", "Pad", "MatMul", "Pad", "MatMul"]
    assert (count_nodes(graph), count_nodes(result.graph)) == (14, 6)
    same(graph, result.graph, ROUNDING, x=X, rate=rate)
    again = simplify_model(result.graph)
    assert again.outcome.by_pass == {}
    assert to_bytes(again.graph) == to_bytes(result.graph)


@pytest.mark.parametrize("rate", [16000, 8000])
def test_bodies_are_converted(rate: int) -> None:
    """A Pad of opset 16 and a ReduceMean whose axes become an input."""
    graph = choice()
    before = graph.copy()
    ConvertOpset()(graph)
    same(before, graph, ROUNDING, x=X, rate=rate)
    canonicalize()(before)
    assert before.opset == 18
    assert count_nodes(before) == 6


def nested(depth: int) -> Graph:
    """An If within an If …, x + 1 at the bottom of it, x − 1 elsewhere; each with something to fold."""

    def branch(level: int) -> onnx.GraphProto:
        out = info(f"t{level}", F, ["n", 2])
        folded = [constant(f"a{level}", np.float32(0.5)), N("Add", [f"a{level}", f"a{level}"], [f"one{level}"])]
        if level == depth:
            return body([*folded, N("Add", ["x", f"one{level}"], [out.name])], out)
        inner = N(
            "If", ["c"], [out.name], then_branch=branch(level + 1), else_branch=minus(level + 1), name=f"if{level}"
        )
        return body([*folded, inner], out)

    def minus(level: int) -> onnx.GraphProto:
        out = info(f"e{level}", F, ["n", 2])
        return body([N("Identity", ["one"], [f"i{level}"]), N("Sub", ["x", f"i{level}"], [out.name])], out)

    top = N("If", ["c"], ["y"], then_branch=branch(1), else_branch=minus(1), name="top")
    ones = [numpy_helper.from_array(np.float32([1, 1]), "one")]
    return model([top], [info("c", BOOL, []), info("x", F, ["n", 2])], [info("y", F, ["n", 2])], ones)


def test_bodies_within_bodies_in_time_that_grows_with_their_number() -> None:
    """Twelve deep: the nodes of each level go through the rules a few times, not twice for each level above."""
    graph = nested(12)
    result = simplify_model(graph)
    assert count_nodes(result.graph) == 12 + 12 + 1  # an If and a Sub a level, and the Add
    for c in (True, False):
        same(graph, result.graph, ROUNDING, c=c, x=np.float32([[1, 2]]))


def test_frozen_inputs_choose_branches() -> None:
    for rate, product in ((16000, "mm_t"), (8000, "mm_u")):
        graph = choice()
        result = simplify_model(graph, freeze={"rate": rate})
        assert [v.name for v in result.graph.inputs] == ["x"]
        assert [v.name for v in result.graph.outputs] == ["y"]
        assert ops_within(result.graph) == ["Pad", "MatMul"]
        assert result.graph.nodes()[-1].name.endswith(product)
        np.testing.assert_allclose(run(result.graph, x=X)[0], run(graph, x=X, rate=rate)[0], rtol=1e-5, atol=1e-6)
        assert len(graph.inputs) == 2


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"no": 1}, "'no' is no input of graph 'net': expected one of x, rate"),
        ({"rate": 0.5}, r"input 'rate' is INT64\[\], which cannot hold 0.5 exactly"),
        ({"rate": [1, 2]}, r"input 'rate' is INT64\[\], got \[2\]: give as many numbers"),
        ({"rate": "fast"}, "cannot hold 'fast' exactly"),
        ({"x": [[1, 2], [3]]}, "input 'x' is FLOAT"),
        ({"x": 1e300}, "cannot hold 1e\\+300 exactly"),
        ({"x": np.zeros((2, 3))}, r"got \[2, 3\]"),
    ],
)
def test_what_cannot_be_frozen(values: dict[str, object], why: str) -> None:
    with pytest.raises(OptionError, match=why):
        FreezeInputs(values)(choice())


def test_a_frozen_array_serves_a_free_axis() -> None:
    graph = choice()
    FreezeInputs({"x": X.tolist()})(graph)
    assert graph.value("x").shape == (3, 16)
    verify(graph)


def test_a_branch_that_hands_on_what_it_captures() -> None:
    """A constant, an input, and one value as two results."""
    then = body([N("Identity", ["w"], ["a"]), N("Identity", ["x"], ["b"])], info("b", F, [2]), more=[info("a", F, [2])])
    other = body([N("Neg", ["x"], ["c"]), N("Relu", ["c"], ["d"])], info("d", F, [2]), more=[info("c", F, [2])])
    nodes = [N("If", ["k"], ["y", "z"], then_branch=then, else_branch=other, name="pick"), N("Add", ["y", "w"], ["s"])]
    for taken in (True, False):
        initializers = [weight("w", 2), numpy_helper.from_array(np.array(taken), "k")]
        graph = model(nodes, [info("x", F, [2])], [info(n, F, [2]) for n in "yzs"], initializers)
        before = graph.copy()
        assert InlineBranches()(graph).rewrites == 1
        same(before, graph, ROUNDING, x=np.float32([1, -2]))
        same(before, simplify_model(before).graph, ROUNDING, x=np.float32([1, -2]))


def loop(nodes, state: list[object], count: int = 3, opset: int = 17) -> Graph:
    """y = x carried through `count` iterations of the nodes, which make `out` of `carried`."""
    inside = body(
        [N("Identity", ["go"], ["on"]), *nodes],
        info("out", F, ["n", None]),
        inputs=[info("i", INT, []), info("go", BOOL, []), info("carried", F, state)],
        initializers=[weight("w", 4, 4)],
        more=[info("on", BOOL, [])],
    )
    initializers = [numpy_helper.from_array(np.array(a), n) for n, a in (("n", count), ("yes", True))]
    step = N("Loop", ["n", "yes", "x"], ["y"], body=inside, name="loop")
    return model([step], [info("x", F, ["n", 4])], [info("y", F, ["n", None])], initializers, opset)


def test_rules_go_into_loops() -> None:
    nodes = [
        N("Shape", ["carried"], ["s"]),
        constant("zero", np.array([1])),
        N("Gather", ["s", "zero"], ["width"]),
        N("Cast", ["width"], ["scale"], to=F),
        N("MatMul", ["carried", "w"], ["m"]),
        N("Div", ["m", "scale"], ["d"]),
        N("Identity", ["d"], ["out"]),
    ]
    graph = loop(nodes, ["n", 4])
    result = simplify_model(graph)
    assert ops_within(result.graph) == ["Loop", "Identity", "MatMul", "Div"]
    same(graph, result.graph, ROUNDING, x=X[:, :4])


def test_a_state_that_grows_keeps_its_shape_free() -> None:
    """Whatever size the file declares: the first iteration carries 4 columns, the next 8."""
    nodes = [
        N("Concat", ["carried", "carried"], ["wide"], axis=1),
        N("Shape", ["carried"], ["s"]),
        N("Cast", ["s"], ["f"], to=F),
        N("ReduceSum", ["f"], ["size"], keepdims=0),
        N("Add", ["wide", "size"], ["out"]),
    ]
    graph = loop(nodes, ["n", None])
    (state,) = (v for v in open_bodies(graph, graph.nodes()[0])[0].graph.inputs if v.name == "carried")
    assert state.shape == ("n", None)
    result = simplify_model(graph)
    assert "Shape" in ops_within(result.graph)
    same(graph, result.graph, ROUNDING, x=X[:, :4])


def test_loops_are_converted() -> None:
    nodes = [N("ReduceMean", ["carried"], ["m"], axes=[1]), N("Sub", ["carried", "m"], ["out"])]
    graph = loop(nodes, ["n", 4], opset=13)
    before = graph.copy()
    ConvertOpset()(graph)
    same(before, graph, ROUNDING, x=X[:, :4])


def test_scans_are_simplified() -> None:
    inside = body(
        [N("Identity", ["row"], ["r"]), N("Add", ["sum", "r"], ["next"]), N("Identity", ["next"], ["out"])],
        info("out", F, [2]),
        inputs=[info("sum", F, [2]), info("row", F, [2])],
        more=[info("next", F, [2])],
    )
    scan = N("Scan", ["start", "x"], ["last", "all"], body=inside, num_scan_inputs=1, name="scan")
    graph = model(
        [scan], [info("x", F, ["n", 2])], [info("last", F, [2]), info("all", F, ["n", 2])], [weight("start", 2)]
    )
    result = simplify_model(graph)
    assert ops_within(result.graph) == ["Scan", "Add", "Identity"]  # which gives two outputs their names
    same(graph, result.graph, ROUNDING, x=X[:, :2])


def test_half_precision_bodies_are_widened() -> None:
    half = TensorProto.FLOAT16
    inside = body(
        [N("Cast", ["h"], ["t"], to=half), N("Mul", ["t", "k"], ["m"]), N("Cast", ["m"], ["out"], to=F)],
        info("out", F, ["n", 2]),
        initializers=[numpy_helper.from_array(np.float16([2, 3]), "k")],
    )
    nodes = [N("Cast", ["x"], ["h"], to=half), N("If", ["c"], ["y"], then_branch=inside, else_branch=inside)]
    graph = model(nodes, [info("c", BOOL, []), info("x", F, ["n", 2])], [info("y", F, ["n", 2])])
    before = graph.copy()
    assert ToFloat32()(graph).rewrites > 0
    assert not [v for part in walk(graph) for v in part.values() if v.dtype is DType.FLOAT16]
    same(before, graph, 2e-3, c=True, x=X[:, :2])  # half precision has 11 bits, and three roundings


def test_a_body_that_cannot_be_converted_is_named() -> None:
    text = TensorProto.STRING
    inside = body([N("StringConcat", ["x", "x"], ["t"], name="inner")], info("t", text, ["n"]))
    nodes = [N("If", ["c"], ["y"], then_branch=inside, else_branch=inside, name="choice")]
    graph = model(nodes, [info("c", BOOL, []), info("x", text, ["n"])], [info("y", text, ["n"])], opset=20)
    with pytest.raises(UnsupportedError, match=r"In a body of node 'choice' \(If\): .*node 'inner'"):
        ConvertOpset()(graph)


def test_a_captured_weight_that_a_rule_rewrites_becomes_the_bodys_own() -> None:
    """One that another node reads as well: that one keeps it as it was."""
    norm = N("BatchNormalization", ["c1", "s", "b", "b", "s"], ["t"], name="bn")
    inside = body([N("Conv", ["x", "w"], ["c1"], name="conv"), norm], info("t", F, ["n", 4, "h", "w"]))
    nodes = [
        N("If", ["c"], ["y"], then_branch=inside, else_branch=inside, name="choice"),
        N("Conv", ["x", "w"], ["z"], name="outside"),
    ]
    values = [weight("w", 4, 3, 3, 3), numpy_helper.from_array(np.float32([1, 2, 3, 4]), "s"), weight("b", 4)]
    graph = model(
        nodes,
        [info("c", BOOL, []), info("x", F, ["n", 3, "h", "w"])],
        [info(n, F, ["n", 4, "p", "q"]) for n in "yz"],
        values,
    )
    result = simplify_model(graph)
    assert ops_within(result.graph).count("BatchNormalization") == 0
    x = np.random.default_rng(1).normal(size=(2, 3, 6, 6)).astype(np.float32)
    for c in (True, False):
        same(graph, result.graph, 1e-5, c=c, x=x)


def test_a_body_that_nothing_changes_in_is_written_as_it_was() -> None:
    graph = nested(2)
    node = graph.nodes()[0]
    before = to_bytes(graph)
    close_bodies(graph, node, open_bodies(graph, node))
    assert to_bytes(graph) == before
