"""CutChannels and MaskChannels: a cut model is one whose channels are zero wherever they are summed over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxslim.analysis.channels import find_groups
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.onnx_io import read, to_bytes
from onnxslim.ir.rewrite import Context
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.text import to_text
from onnxslim.runtime.checker import relative_error
from passes.prune import CutChannels, MaskChannels
from passes.quantize import InsertFakeQuant
from passes.simplify import canonicalize, simplify
from tests.conftest import model_files
from tests.passes.prune.conftest import Net, check_cuts, cut_errors, masked, session, some_units
from tests.passes.quantize.conftest import ranges, residual_net

FEW = 8
"""Groups that are cut at once in one case, so that every group of every file has its turn."""


def opened(path: Path, *, canonical: bool = False) -> tuple[Graph, tuple[str, ...]]:
    """A file simplified, or canonical; and what to compare beside its outputs: what its last Softmax reads, which on
    random weights says nothing."""
    graph = read(path)
    (canonicalize(float32=True) if canonical else simplify())(graph)
    last = [graph.producer(value) for value in graph.outputs]
    taps = [graph.operand(node, 0).name for node in last if node is not None and node.op == "Softmax"]
    return graph, tuple(taps)


def images(graph: Graph, batches: tuple[int, ...] = (1, 2, 3), sizes: tuple[int, ...] = ()) -> list[dict[str, Array]]:
    """Random images of each batch, or of the one that the graph takes; of each size where that is free."""
    (image,) = graph.inputs
    shape = image.shape or ()
    rng = np.random.default_rng(11)
    made = []
    for batch in batches if isinstance(shape[0], str) else batches[:1]:
        for size in sizes or (0,):
            whole = [d if isinstance(d, int) else size if place else batch for place, d in enumerate(shape)]
            made.append({image.name: rng.standard_normal(whole).astype(np.float32)})
    return made


def test_every_group_of_every_file(model_path: Path) -> None:
    graph, taps = opened(model_path)
    groups, rng, feeds = find_groups(graph), np.random.default_rng(7), images(graph)
    free = [group for group in groups.free if group.units > 1]
    assert len(free) >= 6
    turns = rng.permutation(len(free))
    for start in range(0, len(free), FEW):
        chosen = [free[i] for i in turns[start : start + FEW]]
        cuts = {g.name: rng.choice(g.units, rng.integers(1, g.units), replace=False).tolist() for g in chosen}
        assert max(cut_errors(graph, cuts, feeds, groups, taps)) <= 1e-5, cuts


def test_half_of_all_groups_of_every_file(model_path: Path) -> None:
    """Of the canonical graph, which keeps what simplifying folds; the mask is seen in the outputs."""
    graph, taps = opened(model_path, canonical=True)
    groups, feeds = find_groups(graph), images(graph, (2,))
    cuts = some_units(groups, np.random.default_rng(8))
    cut = graph.copy()
    CutChannels(cuts)(cut)
    whole, less, small = (session(g, taps).run(feeds[0]) for g in (graph, masked(graph, groups, cuts), cut))
    assert max(relative_error(less[name], small[name]) for name in less) <= 1e-5
    assert max(relative_error(whole[name], less[name]) for name in taps or whole) > 1e-3


FREE = [path for path in model_files("**/*.torchscript.onnx") if "shufflenet" not in path.stem]
"""Files in which no constant has the size of the image."""


@pytest.mark.parametrize("path", FREE, ids=lambda p: p.stem)
def test_images_of_any_size(path: Path) -> None:
    graph, _ = opened(path)
    fixed = [(g.name, g.units) for g in find_groups(graph).groups]
    graph.set_type(graph.inputs[0], shape=("batch", 3, "H", "W"))
    for value in graph.values():
        if graph.producer(value) is not None:
            graph.clear_shape(value)
    infer_shapes(graph)
    groups = find_groups(graph)
    assert [(g.name, g.units) for g in groups.groups] == fixed
    cuts = some_units(groups, np.random.default_rng(9))
    assert max(cut_errors(graph, cuts, images(graph, (1, 2), (32, 64)), groups)) <= 1e-5


def test_what_cannot_be_cut_in_the_files(model_path: Path) -> None:
    """Nothing but what makes the outputs: 100 % of the channels of convolutions can be cut, or are an output's."""
    graph, taps = opened(model_path)
    groups = find_groups(graph)
    (pinned,) = [group for group in groups.groups if group.pinned]
    (output,) = graph.outputs
    why = f"'{output.name}' is an output of the graph"
    if taps:
        why = f"{graph.producer(output)} normalises over it"
    assert pinned.pinned == (why,)
    covered = {member.value.name for group in groups.groups for member in group.members if member.axis == 0}
    weights = [graph.operand(node, 1).name for node in graph.nodes() if node.op == "Conv"]
    assert [name for name in weights if name not in covered] == []


def test_a_residual_network_with_fake_quant() -> None:
    graph = residual_net()
    x = np.random.default_rng(2).normal(size=(8, 3, 8, 8)).astype(np.float32)
    step = InsertFakeQuant()
    step(graph, Context(statistics=ranges(graph, list(step.requests(graph, Context())), x)))
    groups = find_groups(graph)
    rng = np.random.default_rng(1)
    assert len(groups.free) == 4
    for cuts in (some_units(groups, rng), some_units(groups, rng)):
        # A step of 1/255 of the range, where a sum in another order falls to the other side of a rounding.
        cut, _ = cut_errors(graph, cuts, [{"x": x}], groups)
        assert cut <= 0.01


def chain() -> Graph:
    net = Net("N", 1, 2, 2)
    a = net.op("Relu", net.conv(net.x, 3, "a", bias=True))
    return net.finish(net.conv(net.conv(a, 3, "b", group=3), 2, "c"))


def test_golden() -> None:
    graph = chain()
    for name, numbers in (("a.w", [1, 2, 3]), ("a.b", [4, 5, 6]), ("b.w", [7, 8, 9]), ("c.w", [1, 2, 3, 4, 5, 6])):
        value = graph.value(name)
        graph.set_array(value, np.array(numbers, np.float32).reshape(value.static_shape))
    outcome = CutChannels({"a": [1]})(graph)
    assert outcome.rewrites == 1
    assert to_text(graph) == (
        "graph net opset ai.onnx 18\n"
        "in   x: FLOAT[N, 1, 2, 2]\n"
        "init a.w: FLOAT[2, 1, 1, 1] parameter {1, 3}\n"
        "init a.b: FLOAT[2] parameter {4, 6}\n"
        "init b.w: FLOAT[2, 1, 1, 1] parameter {7, 9}\n"
        "init c.w: FLOAT[2, 2, 1, 1] parameter {1, 3, 4, 6}\n"
        "node a: FLOAT[N, 2, 2, 2] = Conv(x, a.w, a.b) pads=[0, 0, 0, 0] # a\n"
        "node relu: FLOAT[N, 2, 2, 2] = Relu(a) # relu\n"
        "node b: FLOAT[N, 2, 2, 2] = Conv(relu, b.w) group=2 pads=[0, 0, 0, 0] # b\n"
        "node c: FLOAT[N, 2, 2, 2] = Conv(b, c.w) pads=[0, 0, 0, 0] # c\n"
        "out  c: FLOAT[N, 2, 2, 2]\n"
    )


def test_golden_mask() -> None:
    """Both sides of a weight are zero; a sum without one is masked before."""
    net = Net("N", 1, 2, 2)
    a = net.conv(net.x, 3, "a", bias=True)
    b = net.conv(a, 2, "b")
    graph = net.finish(net.op("ReduceSum", net.op("Neg", a), net.constant("axes", [1])), b)
    for name, numbers in (("a.w", [1, 2, 3]), ("a.b", [4, 5, 6]), ("b.w", [1, 2, 3, 4, 5, 6])):
        value = graph.value(name)
        graph.set_array(value, np.array(numbers, np.float32).reshape(value.static_shape))
    assert MaskChannels({"a": [0, 2]})(graph).rewrites == 2
    assert to_text(graph) == (
        "graph net opset ai.onnx 18\n"
        "in   x: FLOAT[N, 1, 2, 2]\n"
        "init a.w: FLOAT[3, 1, 1, 1] parameter {0, 2, 0}\n"
        "init a.b: FLOAT[3] parameter {0, 5, 0}\n"
        "init b.w: FLOAT[2, 3, 1, 1] parameter {0, 2, 0, 0, 5, 0}\n"
        "init axes: INT64[1] {1}\n"
        "init neg/mask: FLOAT[1, 3, 1, 1] {0, 1, 0}\n"
        "node a: FLOAT[N, 3, 2, 2] = Conv(x, a.w, a.b) pads=[0, 0, 0, 0] # a\n"
        "node b: FLOAT[N, 2, 2, 2] = Conv(a, b.w) pads=[0, 0, 0, 0] # b\n"
        "node neg: FLOAT[N, 3, 2, 2] = Neg(a) # neg\n"
        "node neg/masked: FLOAT[N, 3, 2, 2] = Mul(neg, neg/mask) # neg/masked\n"
        "node reducesum: FLOAT[N, 1, 2, 2] = ReduceSum(neg/masked, axes) # reducesum\n"
        "out  reducesum: FLOAT[N, 1, 2, 2]\n"
        "out  b: FLOAT[N, 2, 2, 2]\n"
    )


def test_both_axes_that_a_sum_ends_are_masked() -> None:
    """One reader, two groups."""
    net = Net(4, 5)
    a = net.op("Gemm", net.weight("a.w", 6, 4), net.x, name="a")
    b = net.op("MatMul", a, net.weight("b.w", 5, 7), name="b")
    graph = net.finish(net.op("ReduceSum", b, net.constant("axes", [0, 1])))
    assert {g.name: g.units for g in find_groups(graph).free} == {"a": 6, "b": 7}
    assert max(cut_errors(graph, {"a": [0, 3], "b": [1, 6]})) <= 1e-5


@pytest.mark.parametrize("op", ["ReduceLogSum", "InstanceNormalization", "LayerNormalization"])
def test_a_mask_leaves_numbers_where_zero_gives_none(op: str) -> None:
    net = Net(2, 3, 4, 4)
    a = net.conv(net.x, 8, "a", 3)
    if op == "ReduceLogSum":
        y = net.op(op, net.op("Exp", a), net.constant("axes", [2, 3]))
    elif op == "InstanceNormalization":
        y = net.op(op, a, net.weight("s", 8), net.weight("b", 8), epsilon=0.0)
    else:
        y = net.op(op, a, net.weight("s", 4), axis=-1, epsilon=0.0)
    assert max(check_cuts(net.finish(net.conv(y, 2, "o")))) <= 1e-5


def test_survivors_say_what_stayed_of_each_constant() -> None:
    graph = chain()
    before = {v.name: np.array(v.array) for v in graph.initializers()}
    survivors = CutChannels({"a": [2, 0]})(graph).survivors
    assert {name: {axis: kept.tolist() for axis, kept in axes.items()} for name, axes in survivors.items()} == {
        "a.w": {0: [1]},
        "a.b": {0: [1]},
        "b.w": {0: [1]},
        "c.w": {1: [1]},
    }
    for name, axes in survivors.items():
        for axis, kept in axes.items():
            before[name] = before[name].take(kept, axis)
        assert np.array_equal(before[name], graph.value(name).array)  # type: ignore[arg-type]


def test_cut_after_cut_is_one_cut() -> None:
    once, twice = chain(), chain()
    CutChannels({"a": [0, 1]})(once)
    first = CutChannels({"a": [1]})(twice)
    both = first + CutChannels({"a": [0]})(twice)
    assert to_text(once) == to_text(twice)
    assert both.survivors["c.w"][1].tolist() == [2]


def test_nothing_to_cut_is_the_fixed_point() -> None:
    graph = chain()
    before = to_bytes(graph)
    for cuts in ({}, {"a": []}):
        assert CutChannels(cuts)(graph).rewrites == 0
        assert MaskChannels(cuts)(graph).rewrites == 0
    assert to_bytes(graph) == before


@pytest.mark.parametrize("step", [CutChannels, MaskChannels])
@pytest.mark.parametrize(
    "cuts, message",
    [
        ({"missing": [0]}, "There is no channel group 'missing'$"),
        ({"aa": [0]}, "There is no channel group 'aa'; near names: a$"),
        ({"c": [0]}, "Channel group 'c' cannot be cut: 'c' is an output of the graph"),
        ({"a": [0, 1, 2]}, "Channel group 'a' would lose all of its 3 units"),
        ({"a": [3]}, r"Channel group 'a' has units 0 to 2, each to be named once: got \[3\]"),
        ({"a": [-1]}, r"units 0 to 2, each to be named once: got \[-1\]"),
        ({"a": [1, 1]}, r"each to be named once: got \[1, 1\]"),
        ({"a": [0], "b": [0]}, "There is no channel group 'b'"),
    ],
)
def test_errors_leave_the_graph_as_it_was(step, cuts: dict[str, list[int]], message: str) -> None:
    graph = chain()
    before, mark = to_bytes(graph), graph.mark()
    with pytest.raises(UnsupportedError, match=message):
        step(cuts)(graph)
    assert to_bytes(graph) == before
    assert list(graph.touched(mark)) == []


def test_equal_cuts_give_equal_bytes() -> None:
    files = []
    for _ in range(2):
        graph = residual_net()
        cuts = some_units(find_groups(graph), np.random.default_rng(3))
        CutChannels(cuts)(graph)
        files.append(to_bytes(graph))
    assert files[0] == files[1]


def test_there_are_files_to_cut(shared: Path) -> None:
    assert len(list((shared / "models").glob("**/*.onnx"))) >= 19
