"""The only editor of the network: what each edit leaves behind, and what it refuses."""

from __future__ import annotations

import networkx as nx
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxslim.errors import ModelError
from onnxslim.ir.graph import DType, Graph, Node, Role, Use, Value
from onnxslim.ir.onnx_io import node_proto, to_bytes
from onnxslim.ir.text import to_text
from onnxslim.ir.verify import verify
from onnxslim.runtime.session import Session


def _chain() -> tuple[Graph, Value, Value, Value]:
    """x → Relu → a → Neg → b, the output."""
    graph = Graph("chain")
    x = graph.add_input("x", DType.FLOAT, ("n", 2))
    a = graph.op("Relu", x, name="a")
    b = graph.op("Neg", a, name="b")
    graph.add_output(b)
    return graph, x, a, b


def _node(graph: Graph, value: Value) -> Node:
    node = graph.producer(value)
    assert node is not None
    return node


def test_reading() -> None:
    graph, x, a, b = _chain()
    relu, neg = graph.nodes()
    assert (graph.producer(x), graph.producer(a)) == (None, relu)
    assert graph.uses(a) == [Use(neg, 0)]
    assert graph.consumers(x) == [relu]
    assert (graph.operand(neg, 0), graph.result(neg)) == (a, b)
    assert graph.input(neg, 5) is None
    assert graph.value("b") is b
    assert graph.find("nothing") is None
    assert graph.node_named("a") is relu
    assert (graph.is_input(x), graph.is_output(b), graph.is_used(b)) == (True, True, True)
    with pytest.raises(KeyError):
        graph.value("nothing")
    with pytest.raises(KeyError):
        graph.node_named("nothing")
    with pytest.raises(ModelError, match=r"node 'b' \(Neg\) has no input 3"):
        graph.operand(neg, 3)
    with pytest.raises(ModelError, match="has no output 1"):
        graph.result(neg, 1)


def test_the_view_is_frozen_networkx() -> None:
    graph, x, _, b = _chain()
    view = graph.view
    assert nx.shortest_path_length(view, x.id, b.id) == 4
    assert isinstance(graph.item(x.id), Value)
    with pytest.raises(nx.NetworkXError):
        view.remove_node(x.id)


def test_names() -> None:
    graph, *_ = _chain()
    assert [graph.fresh_name("a") for _ in range(2)] == ["a_2", "a_3"]  # each call may be for another value
    assert graph.fresh_name("new") == "new"
    graph.add_value("new")
    with pytest.raises(ModelError, match="'new' is already used"):
        graph.add_value("new")
    with pytest.raises(ModelError, match="Cannot rename 'new' to 'a'"):
        graph.rename(graph.value("new"), "a")
    graph.reserve_names(["inside"])
    assert graph.fresh_name("inside") == "inside_2"
    assert graph.add_constant("a", np.zeros(1)).name not in ("a", "a_2", "a_3")


def test_arrays_are_read_only_and_typed() -> None:
    graph = Graph()
    value = graph.add_constant("c", np.ones((2, 3), np.float16), role=Role.PARAMETER, owner="o")
    assert (value.dtype, value.shape, value.role, value.owner) == (DType.FLOAT16, (2, 3), Role.PARAMETER, "o")
    assert value.array is not None
    with pytest.raises(ValueError, match="read-only"):
        value.array[0] = 2
    graph.set_array(value, np.zeros(4, np.int64))
    assert (value.dtype, value.shape, value.role) == (DType.INT64, (4,), Role.PARAMETER)
    assert value.static_shape == (4,)
    with pytest.raises(ModelError, match="'d' needs a static shape"):
        _ = graph.add_value("d", DType.FLOAT, ("n",)).static_shape


def test_sources() -> None:
    graph, x, a, b = _chain()
    lost = graph.add_value("lost")
    constant = graph.add_constant("c", np.zeros(1))
    assert [graph.has_source(v) for v in (x, a, b, lost, constant)] == [True, True, True, False, True]
    assert graph.constant_of(constant) is not None
    graph.feed(constant)
    assert graph.constant_of(constant) is None
    graph.remove_input(constant)
    assert graph.constant_of(constant) is not None


def test_an_input_has_a_name_of_its_own() -> None:
    """Nothing is fed by mistake because it is called like something else; what is there is fed by `feed`."""
    graph, _, a, _ = _chain()
    for value in graph.values():
        with pytest.raises(ModelError, match=f"The name '{value.name}' is already used"):
            graph.add_input(value.name, DType.FLOAT, (2, 3))
    with pytest.raises(ModelError, match=rf"'{a.name}' cannot be an input of graph .*: node .* produces it"):
        graph.feed(a)


def test_a_graph_becomes_another() -> None:
    graph, other = _chain()[0], Graph("other", opset=17)
    other.add_output(other.op("Neg", other.add_input("z", DType.FLOAT, (2,)), name="minus"))
    mark = graph.mark()
    graph.become(other)
    assert (graph.name, graph.opset, [v.name for v in graph.inputs]) == ("other", 17, ["z"])
    assert {item.id for item in graph.touched(mark)} == {item.id for item in (*graph.nodes(), *graph.values())}
    verify(graph, since=mark)
    graph.add_output(graph.op("Abs", graph.value("minus"), name="size"))
    verify(graph)


def test_attributes() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ())
    node = graph.add_node("Op", [x], 2, {"i": 3, "f": 0.5, "s": "text", "is": [1, 2], "ss": ["a", "b"], "none": None})
    values = [node.attr(k) for k in ("i", "f", "s", "is", "ss", "none", "other")]
    assert values == [3, 0.5, "text", [1, 2], ["a", "b"], None, None]
    assert node.attr("other", 7) == 7
    graph.set_attribute(node, "i", 4)
    graph.set_attribute(node, "f", None)
    assert (list(node.attributes), node.attr("i")) == (["i", "s", "is", "ss"], 4)
    assert [v.name for v in graph.node_outputs(node) if v] == ["Op", "Op_o1"]


def test_slots() -> None:
    graph, x, a, _ = _chain()
    node = graph.add_node("Clip", [x, None, a], ["clipped"])
    assert graph.node_inputs(node) == [x, None, a]
    graph.set_input(node, 1, a)
    graph.set_input(node, 2, None)
    assert graph.node_inputs(node) == [x, a]
    graph.set_input(node, 4, x)
    assert graph.node_inputs(node) == [x, a, None, None, x]
    graph.set_input(node, 1, None)
    assert graph.node_inputs(node) == [x, None, None, None, x]
    graph.set_input(node, 4, None)
    assert graph.node_inputs(node) == [x]
    mask = graph.add_value("mask")
    graph.set_output(node, 2, mask)
    assert [v and v.name for v in graph.node_outputs(node)] == ["clipped", None, "mask"]
    with pytest.raises(ModelError, match="cannot produce 'mask': already|cannot produce 'mask': it is already"):
        graph.set_output(_node(graph, a), 1, mask)
    with pytest.raises(ModelError, match="cannot produce 'x': it is an input or an initialiser"):
        graph.add_node("Neg", [a], [x])


def test_new_domains_get_an_opset() -> None:
    graph, x, *_ = _chain()
    graph.op("Odd", x, domain="com.example")
    graph.set_op(graph.node_named("a"), "Odd", "org.example")
    assert graph.opsets == {"": 18, "com.example": 1, "org.example": 1}


def test_replacing_uses() -> None:
    graph, x, a, b = _chain()
    c = graph.op("Abs", x, name="c")
    graph.replace_uses(a, c)
    assert graph.consumers(c) == [_node(graph, b)]
    graph.remove_node(_node(graph, a))
    assert [n.op for n in graph.nodes()] == ["Abs", "Neg"]


def test_replacing_chosen_uses_only() -> None:
    graph, x, a, _ = _chain()
    d = graph.op("Add", a, a, name="d")
    c = graph.op("Abs", x, name="c")
    graph.replace_uses(a, c, only=[Use(_node(graph, d), 1)])
    assert graph.node_inputs(_node(graph, d)) == [a, c]


def test_replacing_an_output_takes_over_its_name() -> None:
    graph, x, a, b = _chain()
    graph.replace_uses(b, a)
    assert [v.name for v in graph.outputs] == ["b"]
    assert graph.outputs == [a]
    graph.replace_uses(a, x)  # an input cannot take over: an Identity stands between
    assert [v.name for v in graph.outputs] == ["b"]
    assert _node(graph, graph.outputs[0]).op == "Identity"
    verify(graph)


def test_removing() -> None:
    graph, x, a, b = _chain()
    with pytest.raises(ModelError, match="its output 'a' is still read"):
        graph.remove_node(graph.node_named("a"))
    with pytest.raises(ModelError, match="'a': it is still produced or read"):
        graph.remove_value(a)
    node = _node(graph, b)
    graph.detach(node)
    assert graph.producer(b) is None
    graph.set_array(b, np.zeros((1, 2), np.float32))
    assert graph.is_output(b)
    graph.remove_node(_node(graph, a))
    graph.remove_value(x)
    assert graph.inputs == []
    assert graph.nodes() == []
    verify(graph)


def test_a_cycle_is_named() -> None:
    graph, _, a, b = _chain()
    graph.set_input(_node(graph, a), 0, b)
    with pytest.raises(ModelError, match="'chain' has a cycle: .*Relu.*Neg|cycle: .*Neg.*Relu"):
        graph.nodes()


def test_copies_are_independent() -> None:
    graph, _, a, _ = _chain()
    graph.add_constant("w", np.ones(3))
    graph.value("x").metadata["k"] = "v"
    before = to_bytes(graph)
    twin = graph.copy()
    assert to_bytes(twin) == before
    twin.rename(twin.value("a"), "z")
    twin.set_attribute(twin.node_named("a"), "k", 1)
    twin.set_array(twin.value("w"), np.zeros(3))
    twin.value("x").metadata["k"] = "other"
    twin.op("Neg", twin.value("z"))
    twin.reserve_names(["inside"])
    twin.opsets["com.example"] = 1
    assert to_bytes(graph) == before
    assert twin.value("w").id == graph.value("w").id
    assert graph.fresh_name("inside") == "inside"
    assert a.name == "a"


def test_the_journal() -> None:
    graph, x, a, _ = _chain()
    mark = graph.mark()
    assert list(graph.touched(mark)) == []
    graph.rename(a, "renamed")
    made = graph.op("Abs", x)
    dropped = graph.op("Exp", x)
    graph.remove_node(_node(graph, dropped))
    touched = list(graph.touched(mark))
    assert a in touched
    assert made in touched
    assert dropped not in touched
    assert len(touched) == len({id(item) for item in touched})


def test_a_node_is_written_as_it_is_now() -> None:
    graph, x, a, b = _chain()
    node = _node(graph, b)
    for edit in (
        lambda: graph.rename(a, "renamed"),
        lambda: graph.rename(b, "result"),
        lambda: graph.set_attribute(node, "alpha", 0.5),
        lambda: graph.set_attribute(node, "alpha", None),
        lambda: graph.set_op(node, "LeakyRelu"),
        lambda: graph.set_name(node, "leaky", "what it is for"),
        lambda: graph.set_input(node, 2, x),
        lambda: graph.set_input(node, 0, x),
    ):
        before = node_proto(graph, node)
        assert node_proto(graph, node) is before
        edit()
        assert node_proto(graph, node) != before
    assert node_proto(graph, node) == helper.make_node(
        "LeakyRelu", ["x", "", "x"], ["result"], "leaky", doc_string="what it is for"
    )


def test_notes_are_kept_until_the_next_edit() -> None:
    graph, _, a, _ = _chain()
    assert graph.noted("size") is None
    graph.note("size", 2)
    assert graph.noted("size") == 2
    assert graph.copy().noted("size") is None
    graph.rename(a, "renamed")
    assert graph.noted("size") is None
    graph.note("size", 2)
    graph.opsets[""] = 17
    assert graph.noted("size") is None


def test_what_an_edit_affects() -> None:
    graph, _, a, _ = _chain()
    relu, neg = graph.nodes()
    mark = graph.mark()
    assert graph.affected(mark) == []
    graph.set_type(a, DType.FLOAT, (None, 2))
    assert graph.affected(mark) == [relu, neg]
    mark = graph.mark()
    graph.set_attribute(neg, "alpha", 1.0)
    assert graph.affected(mark) == [neg]


def test_merging() -> None:
    graph, x, _, _ = _chain()
    other, *_ = _chain()
    other.node_named("a").metadata["layer"] = "1"
    other.node_named("a").doc = "rectify"
    other.add_constant("w", np.ones(2), role=Role.SCALE, owner="a")
    mapped = graph.merge(other, "teacher.", {"x": x})
    assert mapped["x"] is x
    assert mapped["b"].name == "teacher.b"
    assert mapped["w"].owner == "teacher.a"
    assert graph.node_named("teacher.a").metadata == {"layer": "1"}
    assert graph.node_named("teacher.a").doc == "rectify"
    graph.add_output(mapped["b"])
    verify(graph)
    with pytest.raises(ModelError, match="nothing feeds its input 'x'"):
        graph.merge(other, "again.", {})
    other.opsets[""] = 17
    with pytest.raises(ModelError, match="opset 17 of domain 'ai.onnx'.*convert both to one opset first"):
        graph.merge(other, "again.", {"x": x})


def test_captures_count_as_uses() -> None:
    graph, x, a, b = _chain()
    body = helper.make_graph([helper.make_node("Neg", ["a"], ["inner"])], "body", [], [])
    node = graph.add_node("If", [x], ["y"], {"then_branch": body, "else_branch": body})
    graph.add_capture(node, a, "a")
    graph.add_capture(node, b, "b")
    assert graph.captures(node) == {"a": a, "b": b}
    assert graph.node_inputs(node) == [x]
    (use,) = [u for u in graph.uses(a) if u.node is node]
    graph.set_input(node, use.slot, None)
    graph.add_capture(node, x, "x")
    assert graph.captures(node) == {"b": b, "x": x}


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=25), st.randoms(use_true_random=False))
def test_random_edits_keep_the_invariants(steps: list[int], chance: object) -> None:
    pick = getattr(chance, "choice")  # noqa: B009 - Hypothesis gives random.Random without its type
    graph, *_ = _chain()
    for step in steps:
        made = [v for v in graph.values() if graph.producer(v) is not None]
        value = pick(made or graph.values())
        if step == 0:
            graph.add_output(graph.op("Abs", value)) if len(graph.outputs) < 4 else None
        elif step == 1:
            graph.op("Add", value, pick(graph.inputs), name=pick(["a", "sum", ""]))
        elif step == 2 and not graph.is_output(value):
            graph.replace_uses(value, graph.inputs[0])
        elif step == 3:
            graph.rename(value, graph.fresh_name(pick(["a", "b", "x"])))
        elif step == 4:
            for node in reversed(graph.nodes()):
                if not any(v is not None and graph.is_used(v) for v in graph.node_outputs(node)):
                    graph.remove_node(node)
        elif step == 5:
            graph = graph.copy()
        elif step == 6:
            graph.add_constant("c", np.zeros(2, np.float32))
        elif step == 7 and made:
            node = _node(graph, value)
            graph.set_input(node, pick([0, 1]) if node.op == "Add" else 0, graph.inputs[0])
        elif step == 8 and made:
            _rebuild(graph, _node(graph, value))
        _require_in_step(graph)
    verify(graph)
    order = {node.id: place for place, node in enumerate(graph.nodes())}
    for node in graph.nodes():
        for read in graph.node_inputs(node):
            source = graph.producer(read) if read is not None else None
            assert source is None or order[source.id] < order[node.id]
    assert to_bytes(graph) == to_bytes(graph.copy())
    assert to_text(graph) == to_text(graph.copy())


def _rebuild(graph: Graph, node: Node) -> None:
    """Another node in the place of one, for the same values."""
    inputs, outputs = graph.node_inputs(node), graph.node_outputs(node)
    graph.detach(node)
    graph.add_node(node.op, inputs, outputs, node.attributes)


def _require_in_step(graph: Graph) -> None:
    """What the accessors say, and keep for the next question, is what the network says."""
    net = graph.view
    for value in graph.values():
        edges = sorted((reader, slot) for _, reader, slot in net.out_edges(value.id, keys=True))
        assert [(use.node.id, use.slot) for use in graph.uses(value)] == edges
        assert [n.id for n in graph.consumers(value)] == sorted(set(net.successors(value.id)))
        producer = graph.producer(value)
        assert ([] if producer is None else [producer.id]) == list(net.predecessors(value.id))
        assert graph.is_output(value) == (value in graph.outputs)
        assert graph.is_used(value) == (bool(edges) or value in graph.outputs)
    for node in graph.nodes():
        read = {slot: source for source, _, slot in net.in_edges(node.id, keys=True)}
        made = {slot: target for _, target, slot in net.out_edges(node.id, keys=True)}
        proto = node_proto(graph, node)  # perhaps kept since an edit before
        assert list(proto.input) == ["" if v is None else v.name for v in graph.node_inputs(node)]
        assert list(proto.output) == ["" if v is None else v.name for v in graph.node_outputs(node)]
        assert {i: v.id for i, v in enumerate(graph.node_inputs(node)) if v is not None} == read
        assert {i: v.id for i, v in enumerate(graph.node_outputs(node)) if v is not None} == made
    nodes = {node.id for node in graph.nodes()}
    order = nx.lexicographical_topological_sort(net, key=lambda id: id if id in nodes else -1)
    assert [node.id for node in graph.nodes()] == [id for id in order if id in nodes]


def _with_function(name: str, body: str, *, through: str | None = None) -> Graph:
    """y = name(x), where the local function `name` is `body(x)`, or calls `through`, which is."""
    graph = Graph("net")
    x = graph.add_input("x", DType.FLOAT, (2,))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]

    def function(name: str, op: str, domain: str = "") -> onnx.FunctionProto:
        return helper.make_function(
            "local", name, ["a"], ["b"], [helper.make_node(op, ["a"], ["b"], domain=domain)], opsets
        )

    graph.functions = (
        [function(name, body)] if through is None else [function(name, through, "local"), function(through, body)]
    )
    y = graph.op(name, x, name="y", domain="local")
    graph.set_type(y, DType.FLOAT, (2,))
    graph.add_output(y)
    return graph


@pytest.mark.parametrize("through", [None, "Inner"])
def test_merging_renames_a_function_of_equal_name_and_other_body(through: str | None) -> None:
    graph, other = (_with_function("F", op, through=through) for op in ("Neg", "Abs"))
    mapped = graph.merge(other, "teacher.", {"x": graph.value("x")})
    graph.add_output(mapped["y"])
    verify(graph)
    assert len({f.name for f in graph.functions}) == len(graph.functions) == (2 if through is None else 4)
    x = np.array([-1.0, 2.0], np.float32)
    found = Session(graph).run({"x": x})
    np.testing.assert_array_equal(found["y"], -x)
    np.testing.assert_array_equal(found["teacher.y"], np.abs(x))


def test_merging_keeps_one_function_of_equal_name_and_body() -> None:
    graph, other = _with_function("F", "Neg"), _with_function("F", "Neg")
    graph.merge(other, "teacher.", {"x": graph.value("x")})
    assert [f.name for f in graph.functions] == ["F"]


def test_merging_renames_calls_in_bodies() -> None:
    graph, other = _with_function("F", "Neg"), _with_function("F", "Abs")
    inner = helper.make_graph(
        [helper.make_node("F", ["x"], ["t"], domain="local")], "body", [], [helper.make_tensor_value_info("t", 1, [2])]
    )
    condition = other.add_constant("c", np.array(True))
    node = other.add_node("If", [condition], ["z"], {"then_branch": inner, "else_branch": inner}, name="if")
    other.add_capture(node, other.value("x"), "x")
    other.set_type(other.value("z"), DType.FLOAT, (2,))
    other.add_output(other.value("z"))
    mapped = graph.merge(other, "teacher.", {"x": graph.value("x")})
    graph.add_output(mapped["z"])
    x = np.array([-1.0, 2.0], np.float32)
    np.testing.assert_array_equal(Session(graph).run({"x": x})["teacher.z"], np.abs(x))


def test_replacing_a_value_that_is_an_output_twice() -> None:
    graph, _, a, b = _chain()
    graph.add_output(b)
    assert [v.name for v in graph.outputs] == ["b", "b"]
    neg = graph.producer(b)
    assert neg is not None
    graph.replace_uses(b, a)
    graph.remove_node(neg)
    verify(graph)
    assert [v.name for v in graph.outputs] == ["b", "b"]
    assert graph.outputs == [a, a]
