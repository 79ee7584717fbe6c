"""ConvertOpset: every rule agrees with ONNX Runtime's own reading of the old opset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import defs, helper

from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.onnx_io import from_proto, read
from onnxslim.ir.verify import verify
from onnxslim.runtime.session import Session
from passes.simplify import ConvertOpset
from passes.simplify.convert_opset import _difference
from passes.simplify.opset_rules import RULES


def converted(graph: Graph, version: int = 18) -> Graph:
    twin = graph.copy()
    assert ConvertOpset(version)(twin).rewrites == 1
    verify(twin)
    assert twin.opset == version
    return twin


def test_every_model_file(model_path: Path, run_on_file, largest_error) -> None:
    before, after, outcome = run_on_file(ConvertOpset(), model_path)
    assert (after.opset, after.ir_version, outcome.rewrites) == (18, 9, 1)
    assert largest_error(before, after) <= 1e-5
    old = {v.name: v for v in before.initializers()}
    for value in after.initializers():
        if value.name in old:
            assert np.shares_memory(value.array, old[value.name].array) or value.array.size == 0


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
@pytest.mark.parametrize(
    "op", ["ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare", "ReduceProd"]
)
def test_axes_of_reductions(op: str, opset: int, build, largest_error) -> None:
    b = build("N", 3, 4, 5, opset=opset)
    outputs = [b.graph.op(op, b.x, name=f"{op}{i}", **a) for i, a in enumerate(({"axes": [1, -1], "keepdims": 0}, {}))]
    before = b.finish(*outputs, infer=False)
    after = converted(before)
    assert all("axes" not in node.attributes for node in after.nodes())
    assert largest_error(before, after) == 0


@pytest.mark.parametrize("opset", [11, 12])
def test_what_became_inputs_at_13(opset: int, build, largest_error) -> None:
    b = build("N", 4, 6, opset=opset)
    g = b.graph
    summed = g.op("ReduceSum", b.x, axes=[2], keepdims=1)
    squeezed = g.op("Squeeze", summed, axes=[2])
    unsqueezed = g.op("Unsqueeze", squeezed, axes=[0, 3])
    uneven = g.add_node("Split", [b.x], 2, {"axis": 2, "split": [1, 5]}, name="uneven")
    even = g.add_node("Split", [b.x], 3, {"axis": 2}, name="even")
    outputs = [unsqueezed, *g.node_outputs(uneven), *g.node_outputs(even)]
    before = b.finish(*outputs, infer=False)
    after = converted(before)
    assert after.node_named("even").attr("num_outputs") == 3
    assert largest_error(before, after) == 0


@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -1, -2])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_over_all_axes_from_one_on(op: str, axis: int | None, build, largest_error, ops) -> None:
    b = build(2, 3, 4, 5, opset=12)
    before = b.finish(b.graph.op(op, b.x, name="s", **({} if axis is None else {"axis": axis})), infer=False)
    after = converted(before)
    assert len(after.nodes()) == (1 if axis in (3, -1) else 4)
    assert largest_error(before, after) <= 1e-6


def test_softmax_of_opset_13_is_retained(build, ops) -> None:
    b = build(2, 3, 4, opset=13)
    after = converted(b.finish(b.graph.op("Softmax", b.x, name="s", axis=1)))
    assert ops(after) == ["Softmax"]
    assert after.nodes()[0].attr("axis") == 1


def test_dropout_pad_resize_and_roi_align(build, largest_error) -> None:
    b = build(1, 3, 8, 8, opset=11)
    g = b.graph
    dropped = g.op("Dropout", b.x, name="d", ratio=0.3)
    padded = g.op("Pad", dropped, b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])), b.constant(np.float32(0.5)), name="p")
    empty = b.constant(np.zeros(0, np.float32), "roi")
    resized = g.op("Resize", padded, empty, b.constant(np.array([1, 1, 2, 2], np.float32)), name="r", mode="linear")
    boxes = b.constant(np.array([[1, 1, 6.5, 7]], np.float32), "boxes")
    aligned = g.op("RoiAlign", padded, boxes, b.constant(np.array([0])), name="a", output_height=3, output_width=3)
    before = b.finish(resized, aligned, infer=False)
    after = converted(before)
    assert after.node_named("a").attr("coordinate_transformation_mode") == "output_half_pixel"
    assert largest_error(before, after) <= 1e-6


@pytest.mark.parametrize("approximate", [None, "none", "tanh"])
def test_gelu_of_opset_20(approximate: str | None, build, largest_error, ops) -> None:
    b = build("N", 300, opset=20)
    before = b.finish(b.graph.op("Gelu", b.x, name="gelu", approximate=approximate))
    after = converted(before)
    assert "Gelu" not in ops(after)
    assert largest_error(before, after) <= 1e-6


def test_upwards_gelu_needs_no_rule(build) -> None:
    b = build("N", 3, opset=20)
    after = converted(b.finish(b.graph.op("Gelu", b.x)), 21)
    assert [node.op for node in after.nodes()] == ["Gelu"]


@pytest.mark.parametrize("opset", [20, 21])
def test_downwards_what_means_the_same_is_retained(opset: int, build, largest_error, ops) -> None:
    b = build("N", 4, 6, 6, opset=opset)
    g = b.graph
    pooled = g.op("AveragePool", b.x, name="pool", kernel_shape=[2, 2])
    scale, zero = b.constant(np.float32(0.1)), b.constant(np.uint8(128))
    attributes = {"saturate": 1} if opset == 20 else {"saturate": 1, "block_size": 0}
    q = g.op("QuantizeLinear", pooled, scale, zero, name="q", **attributes)
    real = g.op("DequantizeLinear", q, scale, zero, name="dq")
    before = b.finish(g.op("Cast", real, name="cast", to=1, saturate=1), infer=False)
    after = converted(before)
    assert ops(after) == ops(before)
    assert all("saturate" not in n.attributes and "block_size" not in n.attributes for n in after.nodes())
    assert largest_error(before, after) == 0


def test_grid_sample_both_ways(build, largest_error) -> None:
    b = build(1, 2, 5, 5, opset=20)
    grid = b.constant(np.random.default_rng(0).uniform(-1, 1, (1, 4, 4, 2)).astype(np.float32))
    before = b.finish(b.graph.op("GridSample", b.x, grid, name="s", mode="linear"))
    after = converted(before)
    assert after.nodes()[0].attr("mode") == "bilinear"
    assert largest_error(before, after) <= 1e-6
    assert converted(after, 20).nodes()[0].attr("mode") == "linear"


REFUSED = {
    "AveragePool": (20, {"kernel_shape": [2, 2], "dilations": [2, 2]}, 1, "no attribute 'dilations'"),
    "Pad": (20, {"mode": "wrap"}, 2, "no mode 'wrap'"),
    "StringConcat": (20, {}, 2, "no such op"),
    "BitCast": (26, {"to": 1}, 1, "no such op"),
    "Mod": (28, {}, 2, "fmod=0 of integers only"),
    "Scan": (8, {}, 1, "batch axis"),
    "DFT": (20, {}, 1, "axis differently"),
    "Resize": (20, {"coordinate_transformation_mode": "half_pixel_symmetric"}, 3, "half_pixel_symmetric"),
}


@pytest.mark.parametrize("op", REFUSED)
def test_what_cannot_be_said_is_refused_by_name(op: str, build) -> None:
    opset, attributes, arity, why = REFUSED[op]
    b = build(1, 4, 4, 4, opset=opset)
    b.graph.op(op, *[b.x] * arity, name="culprit", **attributes)
    with pytest.raises(UnsupportedError, match=rf"node 'culprit' \({op}\) of opset {opset} .*to opset 18.*{why}"):
        ConvertOpset().run(b.graph, None)


def test_saved_statistics_of_an_old_training_batch_norm_are_refused(build) -> None:
    b = build(2, 3, 4, opset=13)
    values = [b.constant(np.ones(3, np.float32)) for _ in range(4)]
    bn = b.graph.add_node("BatchNormalization", [b.x, *values], 5, name="bn")
    b.graph.add_output(b.graph.result(bn, 3))
    with pytest.raises(UnsupportedError, match="'bn'.*training mode"):
        ConvertOpset().run(b.graph, None)


@pytest.mark.parametrize(("opset", "why"), [(6, "older than 7.*version_converter"), (29, "newer than 28.*newer onnx")])
def test_opsets_that_nobody_knows_are_refused(opset: int, why: str, build) -> None:
    with pytest.raises(UnsupportedError, match=f"opset {opset}, {why}"):
        ConvertOpset()(build(1, 2, opset=opset).graph)


@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_attributes_of_old_opsets(opset: int, build, largest_error, ops) -> None:
    """Limits, pads, ratios and the rest became inputs; a Clip without limits has none."""
    b = build("N", 4, 6, opset=opset)
    g = b.graph
    clipped = g.op("Clip", b.x, name="clip", min=-0.5, max=1.0)
    above = g.op("Clip", g.op("Clip", b.x, name="all"), name="above", max=0.25)
    padded = g.op("Pad", clipped, name="pad", pads=[0, 0, 1, 0, 0, 2], value=0.75)
    reflected = g.op("Pad", b.x, name="reflect", mode="reflect", pads=[0, 0, 1, 0, 0, 2])
    dropped = g.op("Dropout", padded, name="drop", ratio=0.25)
    outputs = [
        dropped,
        above,
        reflected,
        g.op("Softmax", reflected, name="soft"),
        g.op("Squeeze", g.op("Unsqueeze", above, name="un", axes=[0]), name="sq", axes=[0]),
    ]
    if opset < 10:
        outputs.append(g.op("Slice", padded, name="slice", axes=[1, 2], starts=[1, -3], ends=[99, -1]))
        top = g.add_node("TopK", [b.x], 2, {"k": 2, "axis": 1}, name="top")
    else:
        top = g.add_node("TopK", [b.x, b.constant(np.array([2]))], 2, {"axis": 1}, name="top")
    outputs.append(g.result(top))
    before = b.finish(*outputs, infer=False)
    after = converted(before)
    assert largest_error(before, after) <= 1e-6
    node = after.node_named("clip")
    assert (node.arity[0], after.constant_of(after.operand(node, 2)).dtype) == (3, np.float32)
    assert after.node_named("all").arity[0] == 1


def test_clip_of_doubles_has_limits_of_doubles(build) -> None:
    b = build("N", 4, opset=10)
    wide = b.graph.op("Cast", b.x, to=int(DType.DOUBLE))
    after = converted(b.finish(b.graph.op("Cast", b.graph.op("Clip", wide, name="c", min=0.1), to=1)))
    assert after.operand(after.node_named("c"), 1).dtype is DType.DOUBLE
    (found,) = Session(after).run({"x": np.array([[-1, 0, 1, 2]], np.float32)}).values()
    np.testing.assert_array_equal(found, np.array([[0.1, 0.1, 1, 2]], np.float32))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [7, 9, 10])
def test_upsample_and_the_first_resize(opset: int, mode: str, build, largest_error, ops) -> None:
    b = build(1, 2, 4, 5, opset=opset)
    sizes = [1, 1, 2, 2.5]
    op = "Resize" if opset == 10 else "Upsample"
    if opset < 9:
        y = b.graph.op(op, b.x, name="up", mode=mode, scales=sizes)
    else:
        y = b.graph.op(op, b.x, b.constant(np.array(sizes, np.float32)), name="up", mode=mode)
    before = b.finish(y, infer=False)
    after = converted(before)
    assert ops(after) == ["Resize"]
    assert largest_error(before, after) <= 1e-6


def test_the_first_resize_made_smaller(build, largest_error) -> None:
    for sizes in ([1, 1, 0.6, 0.5], [1, 1, 0.4, 1]):
        b = build(1, 1, 5, 7, opset=10)
        before = b.finish(b.graph.op("Resize", b.x, b.constant(np.array(sizes, np.float32)), name="r"), infer=False)
        assert largest_error(before, converted(before)) == 0
    b = build(1, 1, 5, 7, opset=10)
    b.graph.op("Resize", b.x, b.constant(np.array([1, 1, 0.5, 2], np.float32)), name="both")
    with pytest.raises(UnsupportedError, match="node 'both'.*the same way on every axis"):
        ConvertOpset()(b.graph)


@pytest.mark.parametrize("opset", [9, 10])
def test_scatter(opset: int, build, largest_error, ops) -> None:
    b = build(3, 3, opset=9)
    at = b.constant(np.array([[0, 2, 1]]))
    before = b.finish(b.graph.op("Scatter", b.x, at, b.constant(np.ones((1, 3), np.float32)), name="s", axis=0))
    before.opsets[""] = opset
    after = converted(before)
    assert ops(after) == ["ScatterElements"]
    assert largest_error(before, after) == 0


@pytest.mark.parametrize("spatial", [0, 1])
def test_batch_norm_of_opset_7(spatial: int, build, largest_error) -> None:
    b = build("N", 3, 2, 2, opset=7)
    shape = (3,) if spatial else (3, 2, 2)
    values = [b.constant(b.rng.uniform(0.5, 2, shape).astype(np.float32)) for _ in range(4)]
    before = b.finish(b.graph.op("BatchNormalization", b.x, *values, name="bn", spatial=spatial, epsilon=1e-3))
    after = converted(before)
    assert largest_error(before, after) <= 1e-6
    assert all("spatial" not in node.attributes for node in after.nodes())


def test_the_mask_of_an_old_dropout_is_refused(build) -> None:
    b = build("N", 3, opset=7)
    node = b.graph.add_node("Dropout", [b.x], 2, name="d")
    spare = b.graph.copy()
    assert ConvertOpset()(spare).rewrites == 1
    assert spare.node_named("d").arity == (2, 1)
    b.graph.add_output(b.graph.result(node, 1))
    with pytest.raises(UnsupportedError, match="node 'd'.*another mask"):
        ConvertOpset()(b.graph)


@pytest.mark.parametrize("opset", [22, 23, 24, 25, 28])
def test_newer_opsets_by_what_the_standard_defines_them_by(opset: int, build, ops) -> None:
    """Against numpy: not every runtime reads these opsets."""
    b = build("N", 4, 6, opset=opset)
    g = b.graph
    scale, shift = b.constant(np.linspace(0.5, 2, 4, dtype=np.float32)), b.constant(np.ones(4, np.float32))
    y = g.op("GroupNormalization", b.x, scale, shift, name="gn", num_groups=2)
    if opset >= 23:
        y = g.op("RMSNormalization", y, b.constant(np.full(6, 0.5, np.float32)), name="rms")
    if opset >= 24:
        y = g.op("Swish", y, name="swish", alpha=1.5)
    after = converted(b.finish(y))
    x = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    (found,) = Session(after).run({"x": x}).values()
    groups = x.astype(np.float64).reshape(2, 2, 12)
    groups = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    expected = groups.reshape(x.shape) * np.linspace(0.5, 2, 4)[:, None] + 1
    if opset >= 23:
        expected = expected / np.sqrt((expected**2).mean(2, keepdims=True) + 1e-5) * 0.5
    if opset >= 24:
        expected = expected / (1 + np.exp(-1.5 * expected))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not {"RMSNormalization", "Swish"} & set(ops(after))
    assert after.node_named("gn").op == "GroupNormalization"  # by its own name, for what says why it is cut or not


def test_a_quantisation_that_says_its_type(build, largest_error) -> None:
    b = build("N", 4, opset=21)
    step = b.constant(np.float32(0.1))
    q = b.graph.op("QuantizeLinear", b.x, step, name="q", output_dtype=int(DType.INT8))
    before = b.finish(b.graph.op("DequantizeLinear", q, step, name="dq"))
    after = converted(before)
    assert after.operand(after.node_named("q"), 2).dtype is DType.INT8
    assert largest_error(before, after) == 0


def test_a_type_that_the_opset_does_not_take_is_refused(build) -> None:
    b = build("N", 4, opset=20)
    mask = b.graph.op("Greater", b.x, b.x)
    b.graph.op("ReduceMax", mask, name="any")
    with pytest.raises(UnsupportedError, match="node 'any'.*no BOOL for its input 0"):
        ConvertOpset()(b.graph)


def test_four_bit_integers_keep_what_they_need(build) -> None:
    b = build("N", 2, opset=21)
    b.graph.set_type(b.graph.add_value("q"), DType.INT4)
    with pytest.raises(UnsupportedError, match=r"value 'q' \(INT4\) of opset 21"):
        ConvertOpset().run(b.graph, None)
    assert ConvertOpset(21)(b.graph).rewrites == 1
    assert b.graph.ir_version == 10


def branches(node: onnx.NodeProto, opset: int) -> Graph:
    """If(c) then node(x) else x."""
    out = helper.make_tensor_value_info("y", 1, None)
    info = helper.make_tensor_value_info("t", 1, None)
    then = helper.make_graph([node], "then", [], [info])
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)]
    )
    choice = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=then, else_branch=other)
    inputs = [helper.make_tensor_value_info("c", 9, []), helper.make_tensor_value_info("x", 1, ["N", 3])]
    model = helper.make_model(
        helper.make_graph([choice], "g", inputs, [out]), opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    )
    return from_proto(model)


def test_a_body_that_means_the_same_is_carried_along() -> None:
    graph = branches(helper.make_node("Relu", ["x"], ["t"], name="inner"), 13)
    assert ConvertOpset()(graph).rewrites == 1


def test_other_domains_names_and_roles_stay(mobilenet: Path) -> None:
    graph = read(mobilenet)
    graph.opsets["com.example"] = 3
    names = [node.name for node in graph.nodes()]
    weight = graph.initializers()[0]
    ConvertOpset()(graph)
    assert graph.opsets == {"": 18, "com.example": 3}
    assert [node.name for node in graph.nodes()] == names
    assert graph.value(weight.name) is weight


@pytest.mark.parametrize("old", [o for o in range(7, defs.onnx_opset_version() + 1) if o != 18])
def test_every_op_has_a_rule_or_means_the_same(old: int) -> None:
    """No op falls through: what differs in more than types is in the table, or is new since."""
    missing = []
    for name in sorted({s.name for s in defs.get_all_schemas() if not s.domain}):
        try:
            before = defs.get_schema(name, old)
            after = defs.get_schema(name, 18)
        except defs.SchemaError:
            continue
        if before.since_version == after.since_version or name in RULES or before.deprecated:
            continue
        inputs = before.max_input if before.max_input < 100 else 1
        if _difference(before, after, (), min(inputs, after.max_input)) is not None:
            missing.append(name)
    assert missing == []
