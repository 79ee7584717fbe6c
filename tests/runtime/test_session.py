"""Session: runs what a graph says, its options, and its errors in our words."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxslim.errors import DataError, ModelError, ModelFormatError, OnnxSlimError, UnsupportedError
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.onnx_io import from_proto, read, to_bytes, to_proto, write
from onnxslim.runtime import session as room
from onnxslim.runtime.child import Child
from onnxslim.runtime.session import Session


def affine(rows: int = 3) -> Graph:
    """y = x · w + b."""
    graph = Graph("affine")
    x = graph.add_input("x", DType.FLOAT, ["N", rows])
    w = graph.add_constant("w", np.arange(rows * 2, dtype=np.float32).reshape(rows, 2))
    product = graph.op("MatMul", x, w, name="product")
    y = graph.op("Add", product, graph.add_constant("b", np.ones(2, np.float32)), name="y")
    for value in (y, product):
        graph.set_type(value, DType.FLOAT, ("N", 2))
        graph.add_output(value)
    return graph


X = {"x": np.ones((1, 3), np.float32)}


@pytest.mark.parametrize("form", ["graph", "proto", "bytes"])
@pytest.mark.parametrize("optimize", [True, False])
def test_runs_every_form_of_a_model(form: str, optimize: bool) -> None:
    graph = affine()
    model = {"graph": graph, "proto": to_proto(graph), "bytes": to_bytes(graph)}[form]
    session = Session(model, optimize=optimize)
    found = session.run(X)
    assert list(found) == ["y", "product"]
    assert found["y"].tolist() == [[7, 10]]
    assert [(p.name, p.dtype, p.shape) for p in session.inputs] == [("x", DType.FLOAT, ("N", 3))]
    assert [(p.name, p.dtype, p.shape) for p in session.outputs] == [(n, DType.FLOAT, ("N", 2)) for n in found]


def test_chosen_outputs_in_the_order_asked_for() -> None:
    session = Session(affine())
    assert list(session.run(X, ["product", "y"])) == ["product", "y"]
    assert list(session.run(X, ["product"])) == ["product"]
    assert session.run(X, []) == {}


def test_every_model_file_as_graph_and_as_file(model_path: Path) -> None:
    graph = read(model_path)
    feeds = {
        v.name: np.random.default_rng(1).standard_normal([d if isinstance(d, int) else 2 for d in v.shape], np.float32)
        for v in graph.inputs
    }
    ours, files = Session(graph).run(feeds), Session(model_path.read_bytes()).run(feeds)
    assert list(ours) == list(files)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, files[name])


def test_threads_never_spin_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    options = Session(affine(), threads=2).raw.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(ModelError):
        Session(failing()).run({"x": np.zeros((2, 3), np.float32), "shape": np.array([7, 7])})
    assert capfd.readouterr() == ("", "")


def test_unfused_quantisation_is_an_option() -> None:
    key = "session.disable_quant_qdq"
    assert Session(affine(), fuse_qdq=False).raw.get_session_options().get_session_config_entry(key) == "1"
    with pytest.raises(RuntimeError, match="does not have configuration with key"):
        Session(affine()).raw.get_session_options().get_session_config_entry(key)


@pytest.mark.parametrize(
    "feeds, message",
    [
        ({}, "needs input 'x', which was not fed; fed: none"),
        ({**X, "z": np.zeros(1)}, "has no input 'z'; its inputs: x"),
        ({"x": np.ones((1, 3))}, "Input 'x' of graph 'affine': expected float32, got float64"),
        ({"x": np.ones((1, 4), np.float32)}, r"Input 'x' of graph 'affine': expected shape \(N, 3\), got \(1, 4\)"),
        ({"x": np.ones(3, np.float32)}, r"expected shape \(N, 3\), got \(3,\)"),
    ],
)
def test_feeds_that_do_not_fit(feeds: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Session(affine()).run(feeds)


def test_an_unknown_output_and_no_thread() -> None:
    with pytest.raises(DataError, match="has no output 'z'; it has: y, product"):
        Session(affine()).run(X, ["z"])
    with pytest.raises(DataError, match="at least 1 thread, got 0"):
        Session(affine(), threads=0)


def failing() -> Graph:
    """Reshape to a shape that is fed."""
    graph = Graph("failing")
    x, shape = graph.add_input("x", DType.FLOAT, ["N", 3]), graph.add_input("shape", DType.INT64, [2])
    y = graph.op("Reshape", x, shape, name="reshape")
    graph.set_type(y, DType.FLOAT)
    graph.add_output(y)
    return graph


def test_a_node_that_fails_is_named() -> None:
    with pytest.raises(ModelError, match="Running graph 'failing' failed: .*'reshape'") as error:
        Session(failing()).run({"x": np.zeros((2, 3), np.float32), "shape": np.array([7, 7])})
    assert ".cc:" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x01"])
def test_bytes_that_are_no_model(data: bytes) -> None:
    with pytest.raises(ModelFormatError, match="cannot load the model of"):
        Session(data)


def changed(op: str | None = None, opset: int = 18, ir: int = 9) -> onnx.ModelProto:
    model = to_proto(affine())
    model.ir_version, model.opset_import[0].version = ir, opset
    if op is not None:
        model.graph.node[0].op_type = op
    return model


@pytest.mark.parametrize("model", [changed(ir=99), changed(opset=99), changed("Frobnicate")])
def test_what_the_runtime_cannot_take(model: onnx.ModelProto) -> None:
    with pytest.raises((UnsupportedError, ModelError), match="cannot load graph 'affine'"):
        Session(model)


def test_versions_it_cannot_read_are_unsupported() -> None:
    for model in (changed(ir=99), changed(opset=99)):
        with pytest.raises(UnsupportedError, match="see `onnxslim doctor`"):
            Session(model)


def test_types_without_a_kernel_or_a_numpy_type() -> None:
    graph = Graph("half")
    x = graph.add_input("x", DType.FLOAT, [2])
    y = graph.op("Cast", x, name="y", to=int(DType.BFLOAT16))
    graph.set_type(y, DType.BFLOAT16)
    graph.add_output(y)
    with pytest.raises(UnsupportedError, match="no counterpart in numpy"):
        Session(graph).run({"x": np.zeros(2, np.float32)})


def test_our_errors_have_one_root() -> None:
    with pytest.raises(OnnxSlimError):
        Session(b"x")


def big(folder: Path) -> Graph:
    """A model whose weight of 2.4 MB is memory-mapped."""
    graph = affine(300_000)
    write(graph, folder / "big.onnx", external_data=True)
    return read(folder / "big.onnx")


def test_mapped_weights_are_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = big(tmp_path)
    handed = []
    original = room.Session._serialised

    def spy(self: Session, *args: object) -> bytes:
        data = original(self, *args)
        handed.append(len(data))
        return data

    monkeypatch.setattr(room.Session, "_serialised", spy)
    x = {"x": np.random.default_rng(0).standard_normal((2, 300_000), np.float32)}
    found = Session(graph).run(x)["y"]
    assert handed[0] < 2000
    expected = Session(affine(300_000)).run(x)["y"]
    assert handed[1] > 2_000_000
    np.testing.assert_array_equal(found, expected)
    assert graph.value("w").array is not None  # the graph itself is as it was


def test_many_large_weights_are_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_EMBED_LIMIT", 1 << 20)
    graph = affine(300_000)
    assert [v.name for v in room._handed_over(graph)] == ["w"]
    x = {"x": np.ones((1, 300_000), np.float32)}
    assert Session(graph).run(x)["product"].shape == (1, 2)
    assert room._handed_over(affine()) == []


def test_an_initialiser_that_may_be_fed() -> None:
    graph = affine()
    graph.feed(graph.value("b"))
    session = Session(graph)
    assert session.run(X)["y"].tolist() == [[7, 10]]
    assert session.run({**X, "b": np.zeros(2, np.float32)})["y"].tolist() == [[6, 9]]


def test_a_very_long_name_is_cut_in_the_message() -> None:
    """And does not take long: ONNX Runtime's message holds it several times."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (2,))
    graph.add_output(graph.op("n" * 100_000, x, name="y"))
    began = time.process_time()
    with pytest.raises(OnnxSlimError) as caught:
        Session(graph)
    assert time.process_time() - began < 5
    assert len(str(caught.value)) < 5_000


@pytest.mark.parametrize("depth", [3, 20])
def test_bodies_that_would_take_hours_to_load_are_refused(depth: int) -> None:
    """Each level doubles ONNX Runtime's time: 20 take minutes, 30 days."""
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y0"])], "b", [], [onnx.ValueInfoProto(name="y0")])
    for level in range(1, depth + 1):
        other = helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "e", [], [onnx.ValueInfoProto(name="n")])
        node = helper.make_node("If", ["c"], [f"y{level}"], then_branch=body, else_branch=other)
        body = helper.make_graph([node], "b", [], [onnx.ValueInfoProto(name=f"y{level}")])
    inputs = [helper.make_tensor_value_info("x", 1, [2]), helper.make_tensor_value_info("c", 9, [])]
    outputs = [helper.make_tensor_value_info(f"y{depth}", 1, [2])]
    graph = helper.make_graph(body.node, "deep", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if depth < 12:
        assert Session(model).run({"x": np.ones(2, np.float32), "c": np.array(True)})
        return
    for given in (model, from_proto(model)):
        with pytest.raises(UnsupportedError, match="20 deep; expected at most 12"):
            Session(given)
        with Child() as child, pytest.raises(UnsupportedError, match="20 deep"):
            child.load(given)
