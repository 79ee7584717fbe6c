"""SetBatch runs a model before and after: samples that meet are refused, however the batch is written in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxslim import set_batch
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import from_proto
from onnxslim.runtime.checker import relative_error
from onnxslim.runtime.session import Session
from passes.simplify import takes_any_batch

N = helper.make_node
T, D, H = 5, 8, 2
RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((D, D)).astype(np.float32)
ROW = RNG.standard_normal((1, 1, D)).astype(np.float32)
SEQUENCE = RNG.standard_normal((1, T, D)).astype(np.float32)

Model = Callable[[int], tuple[list[Any], dict[str, Any]]]
"""By the batch of the export: nodes from x [batch, T, D] to y, and constants."""


def graph_of(model: Model, batch: int, shape: tuple[int, ...] = (T, D)) -> Graph:
    nodes, constants = model(batch)
    arrays = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    x = helper.make_tensor_value_info("x", 1, [batch, *shape])
    body = helper.make_graph(nodes, "net", [x], [helper.make_tensor_value_info("y", 1, None)], arrays)
    return from_proto(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def attention(batch: int) -> tuple[list[Any], dict[str, Any]]:
    """As exporters write it out: heads beside the batch, then a linear layer over [T·N, D]."""
    nodes = [
        N("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        N("Reshape", ["t", "heads"], ["split"]),
        N("Transpose", ["split"], ["q"], perm=[1, 0, 2]),
        N("Transpose", ["split"], ["k"], perm=[1, 2, 0]),
        N("MatMul", ["q", "k"], ["scores"]),
        N("Softmax", ["scores"], ["weights"], axis=-1),
        N("MatMul", ["weights", "q"], ["mixed"]),
        N("Transpose", ["mixed"], ["back"], perm=[1, 0, 2]),
        N("Reshape", ["back", "rows"], ["flat"]),
        N("Gemm", ["flat", "w"], ["linear"]),
        N("Reshape", ["linear", "sequence"], ["long"]),
        N("Transpose", ["long"], ["y"], perm=[1, 0, 2]),
    ]
    sizes = {"heads": [T, batch * H, D // H], "rows": [T * batch, D], "sequence": [T, batch, D]}
    return nodes, {"w": MATRIX, **{name: np.array(s, np.int64) for name, s in sizes.items()}}


def recurrent(op: str, gates: int) -> Model:
    def model(batch: int) -> tuple[list[Any], dict[str, Any]]:
        states = ["h", "c"] if op == "LSTM" else ["h"]
        rng = np.random.default_rng(1)
        weights = {"W": (1, gates * 3, D), "R": (1, gates * 3, 3), "B": (1, gates * 6)}
        constants = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
        row = rng.standard_normal((1, 1, 3)).astype(np.float32)
        constants |= {name: np.repeat(row, batch, 1) for name in states}
        last = "t"
        nodes = [
            N("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            N(op, [last, *"WRB", "", *states], ["", "e"], hidden_size=3),
        ]
        return [*nodes, N("Squeeze", ["e", "axis"], ["y"])], {**constants, "axis": np.zeros(1, np.int64)}

    return model


def strided(batch: int) -> tuple[list[Any], dict[str, Any]]:
    """A window of each sample through flat indices, as as_strided is exported."""
    steps = np.arange(batch)[:, None, None] * T * D + np.arange(T - 1)[:, None] * D + np.arange(D - 2)
    return [N("Reshape", ["x", "flat"], ["f"]), N("Gather", ["f", "i"], ["y"])], {"flat": np.array([-1]), "i": steps}


TAKEN: dict[str, Model] = {
    "attention": attention,
    "class token": lambda batch: ([N("Concat", ["c", "x"], ["y"], axis=1)], {"c": np.repeat(ROW, batch, 0)}),
    "equal rows": lambda batch: ([N("Add", ["x", "p"], ["y"])], {"p": np.repeat(SEQUENCE, batch, 0)}),
    "gather by arange": lambda batch: ([N("Gather", ["x", "i"], ["y"])], {"i": np.arange(batch)}),
    "as_strided": strided,
    "lstm": recurrent("LSTM", 4),
    "gru": recurrent("GRU", 3),
    "rnn": recurrent("RNN", 1),
    "time in front": lambda batch: (
        [
            N("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            N("Softmax", ["t"], ["s"], axis=0),
            N("Transpose", ["s"], ["y"], perm=[1, 0, 2]),
        ],
        {},
    ),
}
REFUSED: dict[str, Model] = {
    "softmax over the batch": lambda batch: ([N("Softmax", ["x"], ["y"], axis=0)], {}),
    "mean over the batch": lambda batch: (
        [N("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1), N("Sub", ["x", "m"], ["y"])],
        {},
    ),
    "a sum over the batch alone": lambda batch: (
        [N("ReduceSum", ["x", "a"], ["y"], keepdims=0)],
        {"a": np.zeros(1, np.int64)},
    ),
    "the first sample": lambda batch: ([N("Gather", ["x", "i"], ["y"])], {"i": np.array(0)}),
    "the first sample in all": lambda batch: (
        [N("Gather", ["x", "i"], ["g"]), N("Add", ["x", "g"], ["y"])],
        {"i": np.zeros(1, np.int64)},
    ),
    "samples moved": lambda batch: ([N("Reshape", ["x", "s"], ["y"])], {"s": np.array([T * D, batch])}),
    "another row each": lambda batch: (
        [N("Add", ["x", "p"], ["y"])],
        {"p": RNG.standard_normal((batch, T, D)).astype(np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("model", TAKEN.values(), ids=TAKEN.keys())
def test_independent_samples_are_taken_however_the_batch_is_written_in(model: Model, batch: int) -> None:
    before = graph_of(model, batch)
    alone = Session(graph_of(model, 1))
    for wanted in ("batch", 1, 4):
        after = set_batch(before, wanted)
        assert (after.inputs[0].shape or ())[0] == wanted
        size = wanted if isinstance(wanted, int) else 5
        x = np.random.default_rng(2).standard_normal((size, T, D)).astype(np.float32)
        expected = np.concatenate([alone.run({"x": x[i : i + 1]})["y"] for i in range(size)])
        assert relative_error(expected, Session(after).run({"x": x})["y"]) <= 1e-5
    assert takes_any_batch(before)


@pytest.mark.parametrize("batch", [2, 3])
def test_a_batch_that_ends_the_process_is_not_tried(batch: int) -> None:
    """Of one sample the Squeeze takes the batch away, too, and the GRU gets two axes: 1.19.2 aborts."""
    constants = {
        "axis": np.array([2]), "first": np.array([0]),
        "w": np.ones((1, 9, D), np.float32), "r": np.ones((1, 9, 3), np.float32),
    }  # fmt: skip
    nodes = [
        N("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        N("Unsqueeze", ["t", "axis"], ["u"]),
        N("Squeeze", ["u"], ["s"]),
        N("GRU", ["s", "w", "r"], ["", "h"], hidden_size=3),
        N("Squeeze", ["h", "first"], ["y"]),
    ]
    graph = graph_of(lambda batch: (nodes, constants), batch)
    with pytest.raises(
        UnsupportedError, match=r"With batch 1 .*'h': expected its input X to have 3 axes, got .*\[5, 8\]"
    ):
        set_batch(graph, "batch")
    assert not takes_any_batch(graph)
    assert set_batch(graph, 4).inputs[0].shape == (4, T, D)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("name", REFUSED)
def test_samples_that_meet_are_refused(name: str, batch: int) -> None:
    if name in ("another row each", "the first sample in all") and batch == 1:
        pytest.skip("what is done for one sample can be done for each")
    before = graph_of(REFUSED[name], batch)
    for wanted in ("batch", 4):
        with pytest.raises(UnsupportedError, match="sample|batch"):
            set_batch(before, wanted)
    assert not takes_any_batch(before)
    assert set_batch(before, batch).inputs[0].shape == (batch, T, D)


def test_a_free_batch_is_not_tested() -> None:
    """It is as free as it was: a number takes its place."""
    graph = graph_of(REFUSED["softmax over the batch"], 2)
    graph.set_type(graph.value("x"), shape=("N", T, D))
    assert set_batch(graph, 3).inputs[0].shape == (3, T, D)
    assert takes_any_batch(graph)


def test_free_sizes_beside_a_written_batch_are_found() -> None:
    def model(batch: int) -> tuple[list[Any], dict[str, Any]]:
        target = np.array([batch, -1, D // 2])
        return [N("Reshape", ["x", "s"], ["y"])], {"s": target}

    graph = graph_of(model, 2)
    graph.set_type(graph.value("x"), shape=(2, "t", D))
    after = set_batch(graph)
    assert Session(after).run({"x": np.zeros((3, 7, D), np.float32)})["y"].shape == (3, 14, D // 2)


def test_inputs_whose_first_axes_differ_are_refused() -> None:
    """A recurrent state has its layers there."""
    graph = graph_of(REFUSED["mean over the batch"], 1)
    graph.add_input("state", graph.value("x").dtype, (2, 1, 3))
    with pytest.raises(UnsupportedError, match=r"the first ones of 'x' \[1, 5, 8\], 'state' \[2, 1, 3\] differ"):
        set_batch(graph)
