"""Child: ONNX Runtime in a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxslim.errors import CrashError, DataError, ModelError, ModelFormatError
from onnxslim.ir.graph import DType, Graph
from onnxslim.runtime.child import Child
from onnxslim.runtime.session import Session


def doubled(factor: float = 2.0) -> Graph:
    graph = Graph("net")
    x = graph.add_input("x", DType.FLOAT, ["N", 3])
    y = graph.op("Mul", x, graph.add_constant("k", np.array(factor, np.float32)), name="y")
    graph.set_type(y, DType.FLOAT, ["N", 3])
    graph.add_output(y)
    return graph


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    with Child(seconds=60) as found:
        yield found


def kill(child: Child) -> None:
    """As a fault in native code would end it."""
    process = child._peer.process
    assert process is not None
    os.kill(process.pid, signal.SIGSEGV)


def test_a_child_gives_what_a_session_gives(child: Child) -> None:
    x = np.array([[1, -2, 3.5]], np.float32)
    for model in (doubled(), doubled(3.0)):
        child.load(model)
        expected, got = Session(model).run({"x": x}), child.run({"x": x})
        assert list(got) == list(expected)
        assert got["y"].dtype == expected["y"].dtype
        np.testing.assert_array_equal(got["y"], expected["y"])


def test_every_kind_of_element_crosses(child: Child) -> None:
    kinds = (DType.FLOAT16, DType.BOOL, DType.INT8, DType.UINT64, DType.STRING)
    graph = Graph("kinds")
    feeds = {}
    for dtype in kinds:
        value = graph.add_input(f"{dtype.name}", dtype, [2, 0] if dtype is DType.UINT64 else [2, 1])
        made = graph.op("Identity", value, name=f"{dtype.name}/same")
        graph.set_type(made, dtype, value.shape)
        graph.add_output(made)
        feeds[value.name] = np.ones(value.static_shape, dtype.numpy)
    feeds["STRING"] = np.array([["ä"], ["b"]], object)
    child.load(graph)
    for (name, got), expected in zip(child.run(feeds).items(), feeds.values(), strict=True):
        assert got.dtype == expected.dtype, name
        np.testing.assert_array_equal(got, expected)


def test_a_sequence_comes_element_by_element(child: Child) -> None:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "ab"]
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["a", "b"], ["s"])], "g", inputs, [helper.make_value_info("s", kind)]
    )
    child.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    got = child.run({"a": np.zeros(1, np.float32), "b": np.ones(1, np.float32)})
    assert {name: array.tolist() for name, array in got.items()} == {"s[0]": [0.0], "s[1]": [1.0]}


def test_errors_are_those_of_a_session(child: Child) -> None:
    child.load(doubled())
    with pytest.raises(DataError, match=r"Input 'x' of graph 'net': expected shape \(N, 3\), got \(2, 4\)"):
        child.run({"x": np.zeros((2, 4), np.float32)})
    child.load(b"nothing of the kind")
    with pytest.raises(ModelFormatError, match="expected an ONNX or ORT model, got other bytes"):
        child.run({})


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
def test_a_death_is_an_error_and_the_next_run_starts_anew(child: Child) -> None:
    x = {"x": np.ones((1, 3), np.float32)}
    child.load(doubled())
    child.run(x)
    kill(child)
    with pytest.raises(CrashError, match=r"ONNX Runtime died with graph 'net' \(SIGSEGV, memory that is not its own\)"):
        child.run(x)
    assert child.run(x)["y"].tolist() == [[2, 2, 2]]


def test_what_takes_too_long_is_ended() -> None:
    with Child(seconds=0.01) as child:  # starting alone takes longer
        child.load(doubled())
        with pytest.raises(CrashError, match=r"still busy with graph 'net' after 0.01 s, and was ended"):
            child.run({"x": np.ones((1, 3), np.float32)})


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_memory_is_bounded() -> None:
    graph = Graph("large")
    shape = graph.add_input("shape", DType.INT64, [1])
    y = graph.op("ConstantOfShape", shape, name="y")
    graph.set_type(y, DType.FLOAT, ["n"])
    graph.add_output(y)
    with Child(seconds=60, memory=4 << 30) as child:
        child.load(graph)
        assert child.run({"shape": np.array([5])})["y"].shape == (5,)
        with pytest.raises(ModelError, match="large"):
            child.run({"shape": np.array([1 << 32])})  # 16 GiB


def test_nothing_of_the_current_folder_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnxslim", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Child(seconds=60) as child:
        child.load(doubled())
        assert child.run({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[2, 2, 2]]


def test_large_models_are_handed_over_as_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxslim.runtime.child._EMBED_LIMIT", 1 << 10)
    graph = Graph("wide")
    x = graph.add_input("x", DType.FLOAT, [1, 512])
    y = graph.op("Add", x, graph.add_constant("k", np.arange(512, dtype=np.float32)), name="y")
    graph.set_type(y, DType.FLOAT, [1, 512])
    graph.add_output(y)
    with Child(seconds=60) as child:
        for _ in range(2):
            child.load(graph)
            assert child.run({"x": np.zeros((1, 512), np.float32)})["y"].sum() == 511 * 256
