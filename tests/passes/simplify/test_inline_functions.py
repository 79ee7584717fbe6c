"""InlineFunctions: a model's own functions become ops that compute the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxslim.errors import ModelError, UnsupportedError
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import from_proto, to_bytes
from onnxslim.ir.verify import verify
from onnxslim.runtime.session import Session
from passes.simplify import InlineFunctions, canonicalize

OWN = "pkg.nn"


def function(
    name: str, inputs: Sequence[str], outputs: Sequence[str], nodes: Sequence[onnx.NodeProto], opset: int = 18, **more
) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(OWN, 1)]
    return helper.make_function(OWN, name, inputs, outputs, nodes, imports, **more)


def referring(op: str, inputs: Sequence[str], outputs: Sequence[str], kind: int, **names: str) -> onnx.NodeProto:
    """A node whose attributes are those of the function."""
    node = helper.make_node(op, inputs, outputs, name=op.lower())
    for name, source in names.items():
        node.attribute.add(name=name, ref_attr_name=source, type=kind)
    return node


def model(nodes: Sequence[onnx.NodeProto], functions: Sequence[onnx.FunctionProto], opset: int = 18) -> Graph:
    info = helper.make_tensor_value_info
    outputs = [info(nodes[-1].output[0], 1, None)]
    body = helper.make_graph(nodes, "net", [info("x", 1, ["n", 4]), info("c", 9, [])], outputs)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(OWN, 1)]
    return from_proto(helper.make_model(body, opset_imports=imports, functions=functions, ir_version=9))


def call(name: str, inputs: Sequence[str], output: str, label: str = "", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(name, inputs, [output], name=label or output, domain=OWN, **attributes)


LEAKY = function(
    "Leaky", ["x"], ["y"],
    [helper.make_node("Neg", ["x"], ["t"]), referring("LeakyRelu", ["t"], ["y"], 1, alpha="slope")],
    attribute_protos=[helper.make_attribute("slope", 0.25)],
)  # fmt: skip
TWICE = function("Twice", ["a", "b"], ["y"], [
    call("Leaky", ["a"], "t", slope=0.5), call("Leaky", ["t"], "u"), helper.make_node("Add", ["u", "b"], ["y"]),
])  # fmt: skip


def check(graph: Graph, feeds: dict[str, object] | None = None) -> Graph:
    """The pass leaves no function and the same outputs, for both conditions."""
    after = graph.copy()
    assert InlineFunctions()(after).rewrites > 0
    verify(after)
    assert after.functions == []
    assert OWN not in after.opsets
    for c in (True, False):
        feeds = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), "c": np.array(c)}
        old, new = Session(graph).run(feeds), Session(after).run(feeds)
        assert list(old) == list(new)
        for name in old:
            np.testing.assert_array_equal(old[name], new[name])
    assert InlineFunctions()(after).rewrites == 0
    return after


def test_attributes_are_filled_in_with_defaults() -> None:
    after = check(model([call("Leaky", ["x"], "a"), call("Leaky", ["a"], "y", slope=2.0)], [LEAKY]))
    assert [n.attr("alpha") for n in after.nodes() if n.op == "LeakyRelu"] == [0.25, 2.0]


def test_an_attribute_without_default_is_the_ops_own() -> None:
    bare = function("Bare", ["x"], ["y"], [referring("Elu", ["x"], ["y"], 1, alpha="a")], attributes=["a"])
    after = check(model([call("Bare", ["x"], "y")], [bare]))
    assert "alpha" not in after.nodes()[0].attributes


def test_functions_of_functions_and_names_that_are_taken() -> None:
    nodes = [helper.make_node("Abs", ["x"], ["y/t"]), call("Twice", ["y/t", "x"], "y"), call("Twice", ["y", "y"], "z")]
    after = check(model(nodes, [LEAKY, TWICE]))
    assert len({v.name for v in after.values()}) == len(after.values())
    names = [n.name for n in after.nodes() if n.name]
    assert len(set(names)) == len(names)


def test_an_output_that_is_an_input_or_given_twice() -> None:
    """What ONNX Runtime does not take as a function is plain nodes here."""
    both = function("Both", ["a"], ["a", "t", "t"], [helper.make_node("Neg", ["a"], ["t"])])
    node = helper.make_node("Both", ["x"], ["p", "q", "r"], name="both", domain=OWN)
    graph = model([node, helper.make_node("Sum", ["p", "q", "r", "q"], ["y"])], [both])
    InlineFunctions()(graph)
    verify(graph)
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    np.testing.assert_array_equal(Session(graph).run({"x": x, "c": np.array(True)})["y"], -2 * x)


def test_an_input_that_is_left_out() -> None:
    clip = function("Limit", ["x", "low", "high"], ["y"], [helper.make_node("Clip", ["x", "low", "high"], ["y"])])
    one = helper.make_node("Constant", [], ["one"], value_float=0.5)
    check(model([one, call("Limit", ["x", "", "one"], "a"), call("Limit", ["a"], "y")], [clip]))


def choice(then: Sequence[onnx.NodeProto], other: Sequence[onnx.NodeProto], output: str = "y") -> onnx.NodeProto:
    info = helper.make_tensor_value_info
    branches = [
        helper.make_graph(nodes, name, [], [info(nodes[-1].output[0], 1, None)])
        for name, nodes in (("then", then), ("other", other))
    ]
    return helper.make_node("If", ["c"], [output], name="choice", then_branch=branches[0], else_branch=branches[1])


def test_calls_in_a_body() -> None:
    inner = choice([call("Twice", ["a", "x"], "p")], [call("Leaky", ["a"], "q")])
    nodes = [call("Leaky", ["x"], "a"), inner, helper.make_node("Abs", ["y"], ["z"])]
    check(model(nodes, [LEAKY, TWICE]))


def test_bodies_of_a_function() -> None:
    """Names that the body reads and makes follow, and its attributes too; twice the same function."""
    body = choice(
        [helper.make_node("Neg", ["t"], ["p"]), referring("Elu", ["p"], ["pp"], 1, alpha="a")],
        [call("Leaky", ["x"], "q", slope=0.5)],
        "u",
    )
    chooser = function(
        "Choose", ["x", "c"], ["y"],
        [helper.make_node("Abs", ["x"], ["t"]), body, helper.make_node("Add", ["u", "t"], ["y"])],
        attribute_protos=[helper.make_attribute("a", 0.5)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Exp", ["x"], ["p"]),
        call("Choose", ["p", "c"], "a", a=0.75),
        call("Choose", ["a", "c"], "y"),
    ]
    check(model(nodes, [LEAKY, chooser]))


def test_a_function_that_calls_itself_is_refused() -> None:
    """A file that holds one is not read; a graph may be given one."""
    first = function("A", ["x"], ["y"], [call("B", ["x"], "y", "inner")])
    graph = model([call("A", ["x"], "y")], [first, function("B", ["x"], ["y"], [call("Leaky", ["x"], "y")]), LEAKY])
    graph.functions[1] = function("B", ["x"], ["y"], [call("A", ["x"], "y", "back")])
    with pytest.raises(ModelError, match=r"node 'y/inner/back' \(pkg.nn.A\) calls a function that calls itself.*A → B"):
        InlineFunctions()(graph)


def test_too_many_inputs_are_refused() -> None:
    with pytest.raises(ModelError, match=r"node 'y' \(pkg.nn.Leaky\) has 2 inputs; its function has 1"):
        InlineFunctions()(model([call("Leaky", ["x", "x"], "y")], [LEAKY]))


def test_a_function_of_another_opset_is_converted() -> None:
    """Softmax of opset 12 spans several axes, ReduceSum has its axes as an attribute."""
    old = function("Old", ["x"], ["y"], [
        helper.make_node("Softmax", ["x"], ["s"], axis=0), helper.make_node("ReduceSum", ["s"], ["y"], axes=[1]),
    ], opset=12)  # fmt: skip
    after = model([call("Old", ["x"], "y")], [old])
    InlineFunctions()(after)
    verify(after)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    (found,) = Session(after).run({"x": x, "c": np.array(True)}).values()
    np.testing.assert_allclose(found, (np.exp(x) / np.exp(x).sum()).sum(1, keepdims=True), rtol=1e-5)


def test_another_opset_that_cannot_be_converted_is_refused() -> None:
    new = function("New", ["x"], ["y"], [helper.make_node("BitCast", ["x"], ["y"], to=6, name="bits")], opset=26)
    with pytest.raises(UnsupportedError, match=r"node 'y/bits' \(BitCast\) of opset 26 .*18, which has no such op"):
        InlineFunctions()(model([call("New", ["x"], "y")], [new]))
    old = function("Old", ["x"], ["y"], [helper.make_node("Softmax", ["x"], ["y"], name="soft")], opset=12)
    inner = choice([call("Old", ["x"], "p", "culprit")], [helper.make_node("Abs", ["x"], ["q"])])
    with pytest.raises(UnsupportedError, match=r"node 'culprit'.*opset 18.*opset 12.*'culprit/soft' \(Softmax\)"):
        InlineFunctions()(model([inner], [old]))


def test_a_model_without_functions_is_left_alone() -> None:
    graph = model([helper.make_node("Abs", ["x"], ["y"])], [])
    before = to_bytes(graph)
    assert InlineFunctions()(graph).rewrites == 0
    assert to_bytes(graph) == before


def test_pipelines_open_with_it() -> None:
    graph = model([call("Twice", ["x", "x"], "y")], [LEAKY, TWICE])
    canonicalize()(graph)
    assert {n.domain for n in graph.nodes()} == {""}
    assert all(v.shape is not None for v in graph.values())
