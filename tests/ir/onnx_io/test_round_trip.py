"""read → write of an untouched model is the same model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.onnx_io import from_proto, read, to_bytes, to_proto, write
from onnxslim.ir.verify import verify

Canonical = Callable[[onnx.ModelProto], onnx.ModelProto]


def test_every_model_file_survives(model_path: Path, canonical: Canonical) -> None:
    original = onnx.load(str(model_path))
    graph = read(model_path)
    written = to_proto(graph)
    assert canonical(written) == canonical(original)
    assert [n.name for n in written.graph.node] == [n.name for n in original.graph.node]
    assert to_bytes(from_proto(written)) == to_bytes(graph)
    verify(graph)


def test_everything_survives(everything: onnx.ModelProto, canonical: Canonical) -> None:
    graph = from_proto(everything)
    assert canonical(to_proto(graph)) == canonical(everything)
    assert canonical(to_proto(graph.copy())) == canonical(everything)


def test_reading_does_not_change_the_proto(everything: onnx.ModelProto) -> None:
    before = everything.SerializeToString(deterministic=True)
    graph = from_proto(everything)
    graph.set_attribute(graph.node_named("act"), "alpha", 1.0)
    graph.rename(graph.value("relu"), "rectified")
    to_proto(graph)
    assert everything.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("opset", range(11, 22))
def test_opsets_11_to_21_keep_their_opset(opset: int, tmp_path: Path) -> None:
    node = helper.make_node("Clip", ["x", "low"], ["y"])
    model = helper.make_model(
        helper.make_graph(
            [node],
            "clip",
            [helper.make_tensor_value_info("x", 1, ["n"])],
            [helper.make_tensor_value_info("y", 1, ["n"])],
            [numpy_helper.from_array(np.array(0, np.float32), "low")],
        ),
        opset_imports=[helper.make_opsetid("ai.onnx", opset)],
        ir_version=min(10, opset - 5),
    )
    onnx.save(model, str(tmp_path / "in.onnx"))
    graph = read(tmp_path / "in.onnx")
    verify(graph)
    write(graph, tmp_path / "out.onnx")
    again = onnx.load(str(tmp_path / "out.onnx"))
    assert graph.opset == opset
    assert [(o.domain, o.version) for o in again.opset_import] == [("", opset)]
    assert again.ir_version == model.ir_version
    onnx.checker.check_model(again)


def test_initialisers_that_are_inputs_too_stay_both() -> None:
    weight = numpy_helper.from_array(np.ones(3, np.float32), "w")
    infos = [helper.make_tensor_value_info(n, 1, [3]) for n in ("x", "w", "y")]
    body = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "ir3", infos[:2], infos[2:], [weight])
    model = helper.make_model(body, ir_version=3, opset_imports=[helper.make_opsetid("", 11)])
    graph = from_proto(model)
    assert graph.constant_of(graph.value("w")) is None  # the caller may override it
    written = to_proto(graph)
    assert [i.name for i in written.graph.input] == ["x", "w"]
    assert [t.name for t in written.graph.initializer] == ["w"]


def test_unsorted_nodes_come_out_sorted() -> None:
    infos = [helper.make_tensor_value_info(n, 1, [3]) for n in ("x", "z")]
    nodes = [helper.make_node("Relu", ["y"], ["z"]), helper.make_node("Neg", ["x"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:]))
    assert [n.op_type for n in to_proto(from_proto(model)).graph.node] == ["Neg", "Relu"]


_UNARY = ("Relu", "Neg", "Sigmoid", "Identity", "Tanh")


@st.composite
def _models(draw: st.DrawFn) -> onnx.ModelProto:
    """Random graphs of elementwise ops, some values unused, some given twice, names of any text."""
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
    names = draw(st.lists(text, min_size=4, max_size=14, unique=True))
    known = names[:2]
    nodes = []
    for name in names[2:]:
        if draw(st.booleans()):
            inputs, op = [draw(st.sampled_from(known))], draw(st.sampled_from(_UNARY))
        else:
            inputs, op = [draw(st.sampled_from(known)) for _ in range(2)], "Add"
        nodes.append(helper.make_node(op, inputs, [name], name=draw(st.one_of(st.just(""), text))))
        known.append(name)
    outputs = draw(st.lists(st.sampled_from(names[2:]), min_size=1, max_size=3, unique=True))
    array = draw(st.sampled_from([np.ones((2, 1), np.float32), np.zeros((), np.float32)]))
    return helper.make_model(
        helper.make_graph(
            nodes,
            draw(text),
            [helper.make_tensor_value_info(names[0], 1, ["n", 2])],
            [helper.make_tensor_value_info(n, 1, ["n", 2]) for n in outputs],
            [numpy_helper.from_array(array, names[1])],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )


@settings(deadline=None, max_examples=60)
@given(model=_models())
def test_random_graphs_survive(model: onnx.ModelProto) -> None:
    written = to_proto(from_proto(model))
    assert list(written.graph.node) == list(model.graph.node)
    assert list(written.graph.input) == list(model.graph.input)
    assert list(written.graph.output) == list(model.graph.output)
    assert [numpy_helper.to_array(t).tolist() for t in written.graph.initializer] == [
        numpy_helper.to_array(t).tolist() for t in model.graph.initializer
    ]


_SCRIPT = """
import sys, hashlib
from onnxslim.ir.onnx_io import read, to_bytes
from onnxslim.analysis.batch import with_batch
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.text import to_text
graph = read(sys.argv[1])
infer_shapes(graph)
both = graph.copy()
both.merge(graph, "teacher.", {v.name: v for v in both.inputs})
digest = hashlib.sha256(to_bytes(graph) + to_bytes(both) + to_text(both).encode())
print(digest.hexdigest())
"""


def test_bytes_do_not_depend_on_the_hash_seed(everything: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(everything.SerializeToString())
    digests = {
        subprocess.run(
            [sys.executable, "-c", _SCRIPT, str(path)],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "12345")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def test_five_thousand_nodes_are_read_and_verified_quickly() -> None:
    import time

    graph = Graph("big")
    value = graph.add_input("x", DType.FLOAT, ("n", 8))
    weight = graph.add_constant("w", np.eye(8, dtype=np.float32))
    for _ in range(2500):
        value = graph.op("Relu", graph.op("MatMul", value, weight))
    graph.add_output(value)
    data = to_bytes(graph)
    started = time.process_time()
    model = onnx.ModelProto()
    model.ParseFromString(data)
    again = from_proto(model)
    verify(again)
    assert time.process_time() - started < 2.0
    assert len(again.nodes()) == 5000
