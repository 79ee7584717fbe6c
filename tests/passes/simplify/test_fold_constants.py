"""FoldConstants: what fires, what must be retained, what is refused."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxslim.budget import Budget, Folding
from onnxslim.ir.graph import DType, Graph, Value
from onnxslim.ir.rewrite import Context
from onnxslim.ir.text import to_text
from passes.simplify import EliminateDead, FoldConstants, fold_constants
from tests.passes.simplify.conftest import Builder


def test_every_model_file(model_path: Path, run_on_file, largest_error) -> None:
    before, after, _ = run_on_file(FoldConstants(), model_path)
    assert all(n.op != "Constant" or after.is_output(after.result(n)) for n in after.nodes())
    assert largest_error(before, after) <= 1e-5
    assert FoldConstants()(after).rewrites == 0


def test_a_chain_becomes_one_initialiser(build, largest_error) -> None:
    b = build("N", 2)
    two = b.graph.op("Constant", name="two", value=numpy_helper.from_array(np.array([2.0, 3.0], np.float32)))
    root = b.graph.op("Sqrt", b.graph.op("Exp", two, name="exp"), name="sqrt")
    graph = b.finish(b.graph.op("Mul", b.x, root, name="y"))
    before = graph.copy()
    assert FoldConstants()(graph).rewrites == 2  # the Constant, and Sqrt; Exp is now dead
    EliminateDead()(graph)
    assert [n.op for n in graph.nodes()] == ["Mul"]
    assert largest_error(before, graph) == 0
    assert "init sqrt: FLOAT[2] {2.71828, 4.48169}" in to_text(graph)


@pytest.mark.parametrize(
    "attributes, expected",
    [
        ({"value_float": 1.5}, np.array(1.5, np.float32)),
        ({"value_floats": [1.5, 2.0]}, np.array([1.5, 2.0], np.float32)),
        ({"value_int": 7}, np.array(7, np.int64)),
        ({"value_ints": [7, 8]}, np.array([7, 8], np.int64)),
    ],
)
def test_constants_of_every_form(attributes: dict[str, object], expected: np.ndarray, build) -> None:
    b = build("N")
    value = b.graph.op("Constant", name="c", **attributes)
    graph = b.finish(b.graph.op("Expand", b.x, b.graph.op("Cast", value, name="shape", to=7)), infer=False)
    FoldConstants().run(graph, Context())
    found = graph.value("c").array if graph.find("c") else None
    assert found is not None
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


def test_what_is_only_filled_needs_no_session(build, largest_error, monkeypatch) -> None:
    b = build("N", 2, 3)
    shape = b.constant(np.array([2, 3], np.int64))
    filled = b.graph.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.array([1.5], np.float32)))
    zeros = b.graph.op("ConstantOfShape", shape)
    graph = b.finish(b.graph.op("Mul", b.graph.op("Add", b.x, zeros), filled))
    before = graph.copy()
    monkeypatch.setattr(fold_constants, "Session", None)
    assert FoldConstants()(graph).rewrites == 2
    assert [n.op for n in graph.nodes()] == ["Add", "Mul"]
    assert largest_error(before, graph) == 0


def test_text_constants_stay(build) -> None:
    b = build("N")
    graph = b.finish(b.x)
    text = graph.op("Constant", name="t", value_string="hello")
    assert FoldConstants()(graph).rewrites == 0
    assert graph.producer(text) is not None


def test_shape_and_size_of_static_values(build) -> None:
    b = build(2, 3, 4)
    g = b.graph
    outputs = [g.op("Identity", g.op(op, b.x, name=f"{op}{i}", **a)) for i, (op, a) in enumerate(
        (("Shape", {}), ("Shape", {"start": 1}), ("Shape", {"start": -2, "end": -1}), ("Size", {})))]  # fmt: skip
    graph = b.finish(*outputs)
    FoldConstants().run(graph, Context())
    found = [graph.value(f"{op}{i}").array for i, op in enumerate(("Shape", "Shape", "Shape", "Size"))]
    assert [a.tolist() for a in found] == [[2, 3, 4], [3, 4], [3], 24]


def test_shape_of_a_dynamic_value_is_retained(build) -> None:
    b = build("N", 3)
    part = b.graph.op("Shape", b.x, name="tail", start=1)
    graph = b.finish(b.graph.op("Shape", b.x, name="whole"), b.graph.op("Identity", part))
    assert FoldConstants()(graph).rewrites == 1
    assert graph.producer(graph.value("whole")) is not None
    assert graph.value("tail").array.tolist() == [3]


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike", "Bernoulli", "Dropout"])
def test_random_ops_are_retained(op: str, build) -> None:
    b = build("N")
    noise = b.graph.op(op, b.constant(np.full(4, 0.5, np.float32)), name="noise")
    graph = b.finish(b.graph.op("Abs", noise))
    assert FoldConstants()(graph).rewrites == 0


def test_grids_and_what_reads_them_are_retained(build) -> None:
    b = build("N", 4)
    w, scale, zero = b.weight(4, 3), b.constant(np.float32(0.1)), b.constant(np.int8(0))
    q = b.graph.op("QuantizeLinear", w, scale, zero, name="q")
    turned = b.graph.op("Transpose", b.graph.op("DequantizeLinear", q, scale, zero, name="dq"), name="t")
    fake = b.graph.op("Transpose", b.fake_quant(b.weight(4, 3, name="v"), 0), name="u")
    back = [b.graph.op("Transpose", v) for v in (turned, fake)]
    graph = b.finish(*(b.graph.op("MatMul", b.x, v) for v in back))
    assert FoldConstants()(graph).rewrites == 0


def test_other_domains_and_local_functions_are_retained(build) -> None:
    b = build("N", 2)
    foreign = b.graph.op("Gelu", b.weight(2), domain="com.microsoft")
    graph = b.finish(b.graph.op("Add", b.x, foreign), infer=False)
    assert FoldConstants()(graph).rewrites == 0


def test_an_overridable_initialiser_is_retained(build) -> None:
    b = build("N", 2)
    default = b.weight(2)
    b.graph.feed(default)
    graph = b.finish(b.graph.op("Add", b.x, b.graph.op("Neg", default)))
    assert FoldConstants()(graph).rewrites == 0


def test_a_graph_output_keeps_its_node(build) -> None:
    b = build("N")
    graph = b.finish(b.graph.op("Neg", b.weight(2), name="y"), b.graph.op("Constant", name="c", value_float=1.0))
    assert FoldConstants()(graph).rewrites == 0


def wide(b: object, copies: int) -> tuple[Graph, Value]:
    big = b.graph.op("Tile", b.weight(256), b.constant(np.array([copies])), name="tile")
    return b.finish(b.graph.op("Add", b.x, big)), big


def test_growth_beyond_the_limit_is_refused(build) -> None:
    graph, big = wide(build("N", 256 * 2000), 2000)
    outcome = FoldConstants()(graph)
    assert outcome.rewrites == 0
    assert [(r.where, r.why) for r in outcome.refused] == [
        ("node 'tile' (Tile)", "folding it would add 2,046,968 bytes")
    ]
    assert graph.producer(big) is not None


def test_growth_within_the_limit_fires(build) -> None:
    graph, big = wide(build("N", 256 * 2000), 2000)
    assert FoldConstants(max_growth=1 << 22)(graph).rewrites == 1
    assert big.array.nbytes == 256 * 2000 * 4


def test_what_replaces_large_constants_is_no_growth(build) -> None:
    b = build("N", 512)
    turned = b.graph.op("Transpose", b.weight(1024, 512), name="t", perm=[1, 0])
    graph = b.finish(b.graph.op("MatMul", b.x, b.graph.op("Neg", turned, name="n")))
    outcome = FoldConstants(max_growth=1000)(graph)
    assert (outcome.rewrites, outcome.refused) == (1, ())


def test_a_shared_large_constant_counts(build) -> None:
    b = build("N", 512)
    w = b.weight(1024, 512)
    turned = b.graph.op("Transpose", w, name="t", perm=[1, 0])
    graph = b.finish(b.graph.op("MatMul", b.graph.op("MatMul", b.x, turned), w))
    assert "2,097,152 bytes" in FoldConstants(max_growth=1000)(graph).refused[0].why


def test_huge_results_are_not_even_computed(build) -> None:
    b = build("N")
    filled = b.graph.op("ConstantOfShape", b.constant(np.array([1 << 16, 1 << 16])), name="huge")
    graph = b.finish(b.graph.op("ReduceSum", filled, keepdims=0))
    outcome = FoldConstants()(graph)
    assert outcome.rewrites == 0
    assert "17,179,869,184 bytes" in outcome.refused[0].why


def test_nodes_with_several_outputs(build, largest_error) -> None:
    b = build("N", 2)
    node = b.graph.add_node("Split", [b.weight(4)], ["left", "right"], {"num_outputs": 2}, name="split")
    left, right = b.graph.node_outputs(node)
    graph = b.finish(b.graph.op("Add", b.graph.op("Mul", b.x, left), right))
    before = graph.copy()
    assert FoldConstants()(graph).rewrites == 1
    assert largest_error(before, graph) == 0
    assert all(graph.value(name).array is not None for name in ("left", "right"))


def test_an_op_without_a_kernel_does_not_stop_the_others(build) -> None:
    b = build("N", 2)
    shape = b.constant(np.array([2]))
    odd = b.graph.op("ConstantOfShape", shape, name="odd", value=helper.make_tensor("v", DType.BFLOAT16, [1], [1.0]))
    sine = b.graph.op("Sin", b.constant(np.array([1, 2], np.float64)), name="sine")
    g = b.graph
    graph = b.finish(g.op("Add", b.x, g.op("Cast", sine, to=1)), g.op("Cast", g.op("Abs", odd, name="a"), to=1))
    FoldConstants()(graph)
    assert graph.producer(graph.value("odd")) is not None
    cast = graph.uses(b.x)[0].node
    assert graph.operand(cast, 1).array is not None


HUGE = 1 << 31
"""Elements: what is made of them would take gigabytes."""


def hidden(build: Builder, number: int, *, scalar: bool = False) -> Value:
    """An int64 that inference does not follow, because it is computed in floats."""
    half = build.constant(np.array(number / 2 if scalar else [number / 2], np.float64))
    two = build.constant(np.array(2.0 if scalar else [2.0], np.float64))
    return build.graph.op("Cast", build.graph.op("Mul", half, two), to=7)


def made_from(op: str, b: Builder, size: int) -> Value:
    g, one = b.graph, b.constant(np.ones(1, np.float32))
    if op == "ConstantOfShape":
        return g.op(op, hidden(b, size))
    if op in ("Expand", "Tile"):
        return g.op(op, one, hidden(b, size))
    if op == "Range":
        return g.op(op, b.constant(np.array(0)), hidden(b, size, scalar=True), b.constant(np.array(1)))
    if op == "OneHot":
        return g.op(op, b.constant(np.array([0])), hidden(b, size, scalar=True), b.constant(np.zeros(2, np.float32)))
    if op == "Pad":
        return g.op(op, one, g.op("Concat", hidden(b, 0), hidden(b, size), axis=0))
    if op == "Resize":
        return g.op(op, one, None, None, hidden(b, size))
    if op == "Reshape":  # a view in numpy, as large as what it is given
        return g.op(op, g.op("ConstantOfShape", hidden(b, size)), b.constant(np.array([-1])))
    if op == "EyeLike":
        return g.op(op, g.op("ConstantOfShape", g.op("Concat", hidden(b, size >> 15), hidden(b, 1 << 15), axis=0)))
    assert op == "NonZero"
    filled = numpy_helper.from_array(np.ones(1, np.int8))
    return g.op(op, g.op("ConstantOfShape", hidden(b, size >> 4), value=filled))


@pytest.mark.parametrize(
    "op", ["ConstantOfShape", "Expand", "Tile", "Range", "OneHot", "Pad", "Resize", "Reshape", "EyeLike", "NonZero"]
)
def test_a_size_that_is_computed_is_known_before_the_result_is(op: str, build) -> None:
    b = build("N")
    graph = b.finish(b.graph.op("Shape", made_from(op, b, HUGE)), infer=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = FoldConstants()(graph, Context())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert any(" bytes" in r.why for r in outcome.refused), outcome.refused
    assert grown < 1 << 19  # KiB: a half of FOLDED_BYTES may be held for a moment, not the gigabytes of the result
    small = build("N")
    folded = small.finish(small.graph.op("Cast", made_from(op, small, 1 << 16), to=1), infer=False)
    assert not any("bytes" in r.why and "add" not in r.why for r in FoldConstants()(folded, Context()).refused)


def test_work_is_bounded_for_all_rounds_together(build) -> None:
    """2,048³ multiplications each, 8.6e9: the budget takes 15 of 20, however often folding is asked."""
    b = build("N", 2048)
    w = b.weight(2048, 2048)
    product = w
    for _ in range(20):
        product = b.graph.op("MatMul", product, w)
    graph = b.finish(b.graph.op("MatMul", b.x, product))
    context = Context(folding=Folding(work=Budget(1 << 28)))
    outcome = FoldConstants()(graph, context)
    assert outcome.rewrites == 0
    assert "it takes 8,602,517,504 operations: more than folding may take" in [r.why for r in outcome.refused]
    assert FoldConstants()(graph, context).rewrites == 0


def test_growth_is_bounded_for_all_results_together(build) -> None:
    b = build("N", 100)
    ones = b.constant(np.ones((1, 100), np.float32))
    total = b.x
    for _ in range(5):
        total = b.graph.op("Add", total, b.graph.op("Tile", b.graph.op("Neg", ones), b.constant(np.array([3, 1]))))
    graph = b.finish(total)
    outcome = FoldConstants()(graph, Context(folding=Folding(growth=Budget(2500))))
    assert 0 < outcome.rewrites < 5
    assert any("would add" in r.why for r in outcome.refused)
