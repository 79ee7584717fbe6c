"""What an op's attributes mean: the same in the form of an old opset as in that of a new one."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.analysis.regions import cuts_at_zero, hands_on
from onnxslim.ir.graph import Node
from onnxslim.ir.ops import axes_of, is_training, padding, sliced
from onnxslim.targets import load_target
from passes.simplify import ConvertOpset, EliminateDropout, EliminateIdentity, FoldBatchnorm, FoldPad
from tests.passes.simplify.conftest import Builder, largest_error


def candidate(b: Builder) -> Node:
    return b.graph.node_named("candidate")


def in_training(opset: int) -> Builder:
    """Conv, then a batch norm in training mode as that opset says it: with its running statistics as outputs."""
    b = Builder(4, 3, 6, 6, opset=opset)
    x = b.graph.op("Conv", b.x, b.weight(5, 3, 3, 3), name="conv")
    y = b.batchnorm(x, 5)
    inputs = b.graph.node_inputs(b.graph.producer(y))
    b.graph.remove_node(b.graph.producer(y))
    parts, attributes = (5, {}) if opset < 14 else (3, {"training_mode": 1})
    node = b.graph.add_node("BatchNormalization", inputs, parts, attributes, name="candidate")
    b.finish(*(b.graph.result(node, slot) for slot in range(3)))
    return b


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 18])
def test_batchnorm_in_training_is_not_folded(opset: int) -> None:
    graph = in_training(opset).graph
    outcome = FoldBatchnorm()(graph)
    assert outcome.rewrites == 0
    assert [refusal.why for refusal in outcome.refused] == ["it is in training mode"]


@pytest.mark.parametrize("opset", [7, 9, 13])
def test_batchnorm_in_training_keeps_its_numbers_in_a_new_opset(opset: int) -> None:
    b = in_training(opset)
    before = b.graph.copy()
    ConvertOpset()(b.graph)
    assert candidate(b).attr("training_mode") == 1
    assert candidate(b).arity[1] == 3
    assert largest_error(before, b.graph) <= 1e-6  # the same kernel: what differs is rounding, if anything


@pytest.mark.parametrize(("opset", "mode", "expected"), [(7, None, False), (12, True, True), (18, False, False)])
def test_dropout(opset: int, mode: bool | None, expected: bool) -> None:
    b = Builder(2, 3, opset=opset)
    ratio = [] if mode is None else [b.constant(np.float32(0.5)), b.constant(np.array(mode))]
    b.finish(b.graph.op("Relu", b.graph.op("Dropout", b.x, *ratio, name="candidate"), name="y"))
    assert is_training(b.graph, candidate(b)) is expected
    assert EliminateDropout()(b.graph).rewrites == (0 if expected else 1)


@pytest.mark.parametrize("opset", [10, 11])
def test_pad(opset: int) -> None:
    b = Builder(1, 2, 4, 4, opset=opset)
    pads = [0, 0, 1, 0, 0, 0, 2, 1]
    old = opset < 11
    attributes = {"pads": pads, "value": 1.5} if old else {}
    inputs = [] if old else [b.constant(np.array(pads)), b.constant(np.float32(1.5))]
    y = b.graph.op("Pad", b.x, *inputs, name="candidate", **attributes)
    b.finish(b.graph.op("Conv", y, b.weight(3, 2, 3, 3), name="y"))
    assert padding(b.graph, candidate(b)) == [(0, 0), (0, 0), (1, 2), (0, 1)]
    assert not hands_on(b.graph, candidate(b), load_target("x64"))  # it fills in what no grid of x need have
    assert [r.why for r in FoldPad()(b.graph).refused] == ["it pads with something else than 0"]


@pytest.mark.parametrize("opset", [10, 11])
def test_pad_of_zeros_is_folded(opset: int) -> None:
    b = Builder(1, 2, 4, 4, opset=opset)
    pads = [0, 0, 1, 1, 0, 0, 2, 1]
    inputs, attributes = ([], {"pads": pads}) if opset < 11 else ([b.constant(np.array(pads))], {})
    y = b.graph.op("Pad", b.x, *inputs, name="candidate", **attributes)
    graph = b.finish(b.graph.op("Conv", y, b.weight(3, 2, 3, 3), name="y"))
    before = graph.copy()
    assert FoldPad()(graph).rewrites == 1
    assert graph.node_named("y").attr("pads") == [1, 1, 2, 1]
    assert largest_error(before, graph) <= 1e-5


@pytest.mark.parametrize("opset", [10, 11])
def test_pad_by_nothing_goes(opset: int) -> None:
    b = Builder(1, 2, opset=opset)
    inputs, attributes = ([], {"pads": [0] * 4}) if opset < 11 else ([b.constant(np.zeros(4, np.int64))], {})
    b.finish(b.graph.op("Relu", b.graph.op("Pad", b.x, *inputs, **attributes), name="y"))
    assert EliminateIdentity()(b.graph).rewrites == 1


@pytest.mark.parametrize("opset", [9, 10])
def test_slice(opset: int) -> None:
    b = Builder(2, 8, opset=opset)
    given = {"starts": [2], "ends": [5], "axes": [1]}
    inputs, attributes = ([], given) if opset < 10 else ([b.constant(np.array(n)) for n in given.values()], {})
    b.finish(b.graph.op("Slice", b.x, *inputs, name="candidate", **attributes))
    taken = sliced(b.graph, candidate(b))
    assert taken is not None
    assert list(taken) == [1]
    np.testing.assert_array_equal(taken[1], [2, 3, 4])


@pytest.mark.parametrize("opset", [12, 13])
def test_axes(opset: int) -> None:
    b = Builder(2, 3, 4, opset=opset)
    inputs, attributes = ([], {"axes": [-1, 1]}) if opset < 13 else ([b.constant(np.array([-1, 1]))], {})
    b.finish(b.graph.op("ReduceSum", b.x, *inputs, name="candidate", **attributes))
    assert axes_of(b.graph, candidate(b), 3) == (1, 2)


@pytest.mark.parametrize("opset", [10, 11])
@pytest.mark.parametrize(("lowest", "expected"), [(0.0, True), (-1.0, False), (None, False)])
def test_clip(opset: int, lowest: float | None, expected: bool) -> None:
    b = Builder(2, 3, opset=opset)
    inputs = [None if lowest is None else b.constant(np.float32(lowest)), b.constant(np.float32(6))]
    attributes = {"max": 6.0} if lowest is None else {"min": lowest, "max": 6.0}
    op = (inputs, {}) if opset >= 11 else ([], attributes)
    b.finish(b.graph.op("Clip", b.x, *op[0], name="candidate", **op[1]))
    assert cuts_at_zero(b.graph, candidate(b)) is expected


def test_a_clip_with_a_bound_a_channel_is_no_relu() -> None:
    b = Builder(1, 2, 4, 4)
    node = b.graph.producer(b.graph.op("Clip", b.x, b.constant(np.zeros((2, 1, 1), np.float32))))
    assert node is not None
    assert not cuts_at_zero(b.graph, node)
