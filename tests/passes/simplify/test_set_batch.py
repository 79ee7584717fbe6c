"""SetBatch: whatever batch comes, each sample gets what it would get alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from onnxslim import set_batch
from onnxslim.errors import ModelError, UnsupportedError
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import read, to_bytes
from onnxslim.ir.verify import verify
from onnxslim.runtime.checker import relative_error
from onnxslim.runtime.session import Session
from passes.simplify import SetBatch, simplify


def check(before: Graph, exported: int) -> Graph:
    """With any batch: rows are those of single runs, and the export's own batch gives what it gave."""
    after = set_batch(before)
    verify(after)
    (x,), (y,) = after.inputs, after.outputs
    assert (x.shape or ())[0] == (y.shape or ())[0] == "batch"
    session = Session(after)
    images = np.random.default_rng(0).normal(size=(5, *(x.shape or ())[1:])).astype(np.float32)
    rows = np.concatenate([session.run({x.name: images[i : i + 1]})[y.name] for i in range(5)])
    for batch in (2, 3, 5):
        found = session.run({x.name: images[:batch]})[y.name]
        assert relative_error(rows[:batch], found) <= 1e-5
    own = {x.name: images[:exported]}
    assert relative_error(Session(before).run(own)[y.name], session.run(own)[y.name]) <= 1e-6
    four = set_batch(before, 4)
    verify(four)
    assert (four.inputs[0].shape or ())[0] == (four.outputs[0].shape or ())[0] == 4
    return after


def test_every_model_file(model_path: Path) -> None:
    graph = read(model_path)
    shape = graph.inputs[0].shape
    assert shape
    check(graph, shape[0] if isinstance(shape[0], int) else 2)


def test_after_simplifying(model_path: Path) -> None:
    graph = read(model_path)
    simplify()(graph)
    shape = graph.inputs[0].shape
    assert shape
    check(graph, shape[0] if isinstance(shape[0], int) else 2)


@pytest.mark.parametrize("exported", [1, 2, 3])
@pytest.mark.parametrize("allowzero", [0, 1])
def test_reshapes(exported: int, allowzero: int, build) -> None:
    """Split and merged axes, the batch merged with another, a free axis beside the written one, a Constant node."""
    b = build(exported, 6, 4)

    def target(*numbers: int) -> object:
        return b.graph.op("Constant", value_ints=list(numbers))

    y = b.graph.op("Reshape", b.x, target(exported, 2, -1, 4), name="split", allowzero=allowzero)
    y = b.graph.op("Transpose", y, perm=[0, 2, 1, 3])
    y = b.graph.op("Reshape", y, target(exported * 3, 8), name="merged", allowzero=allowzero)
    y = b.graph.op("Softmax", y, axis=1)
    y = b.graph.op("Reshape", y, target(exported, 24), name="flat", allowzero=allowzero)
    check(b.finish(y), exported)


def test_a_batch_that_is_not_in_front(build) -> None:
    b = build(2, 6, 4)
    turned = b.graph.op("Transpose", b.x, perm=[1, 0, 2])
    y = b.graph.op("Reshape", turned, b.constant(np.array([6, 2, 2, 2])), name="split")
    check(b.finish(b.graph.op("Transpose", y, perm=[1, 0, 2, 3])), 2)


def test_what_is_filled_in_follows_the_input(build) -> None:
    """Expand of a constant that is joined to the data, zeros, and a Resize to sizes."""
    b = build(2, 3, 4)
    token = b.graph.op("Expand", b.weight(1, 1, 4), b.constant(np.array([2, 1, 4])), name="token")
    fill = helper.make_tensor("v", 1, [1], [0.5])
    zeros = b.graph.op("ConstantOfShape", b.constant(np.array([2, 1, 4])), name="zeros", value=fill)
    wide = b.graph.op(
        "Expand", b.graph.op("ReduceMean", b.x, b.constant(np.array([1]))), b.constant(np.array([2, 2, 4]))
    )
    joined = b.graph.op("Concat", token, b.x, zeros, wide, axis=1)
    sizes = b.constant(np.array([2, 14, 4]))
    y = b.graph.op("Resize", joined, None, None, sizes, name="r", mode="nearest")
    check(b.finish(y), 2)


def test_the_state_of_a_recurrent_op(build) -> None:
    b = build(2, 3, 4)
    steps = b.graph.op("Transpose", b.x, perm=[1, 0, 2])
    state = b.graph.op("Expand", b.weight(1, 1, 5), b.constant(np.array([1, 2, 5])), name="state")
    node = b.graph.add_node(
        "GRU", [steps, b.weight(1, 15, 4), b.weight(1, 15, 5), None, None, state], 2, {"hidden_size": 5}, name="gru"
    )
    y = b.graph.op("Squeeze", b.graph.result(node), b.constant(np.array([1])))
    check(b.finish(b.graph.op("Transpose", y, perm=[1, 0, 2])), 2)


def test_constants_that_only_look_like_a_batch_stay(build, ops) -> None:
    b = build(2, 2, 2)
    table = b.graph.op("Expand", b.weight(1, 2), b.constant(np.array([2, 2])), name="table")
    after = check(b.finish(b.graph.op("MatMul", b.x, table)), 2)
    assert ops(after) == ["Expand", "MatMul"]


def test_what_takes_one_batch_only_is_refused_by_name(build) -> None:
    b = build(2, 3)
    graph = b.finish(b.graph.op("Concat", b.x, b.weight(2, 1), name="culprit", axis=1))
    with pytest.raises(UnsupportedError, match=r"node 'culprit' \(Concat\)"):
        set_batch(graph)
    with pytest.raises(UnsupportedError, match=r"node 'culprit' \(Concat\)"):
        set_batch(graph, 4)
    for batch in (0, 1 << 40):
        with pytest.raises(ModelError, match=f"from 1 to 65,536, got {batch}"):
            set_batch(graph, batch)


def test_the_graph_that_is_given_and_its_own_batch_stay(build) -> None:
    b = build(2, 3)
    graph = b.finish(b.graph.op("Reshape", b.x, b.constant(np.array([2, 3]))))
    before = to_bytes(graph)
    set_batch(graph, 5)
    assert to_bytes(graph) == before
    assert SetBatch(2)(graph).rewrites == 0
