"""What is no complete model is refused with an error of ours that names the file."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxslim.errors import ModelFormatError, OnnxSlimError, UnsupportedError
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import from_proto, read, to_bytes


def _model(**changes: object) -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"], name="sum")]
    infos = [helper.make_tensor_value_info(n, 1, [2]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [numpy_helper.from_array(np.ones(2, np.float32), "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, **changes)


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "an empty file"),
        (b"hello, this is no model", "bytes that are none"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "bytes that are none"),
        (b"PK\x03\x04" + bytes(50), "torch.onnx.export"),
        (b"\x20\x00\x00\x00ORTM" + bytes(50), "ORT-format"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x08\x09", "without graph"),
    ],
    ids=["empty", "text", "png", "zip", "ort", "lfs", "header"],
)
def test_other_files_are_refused_by_name(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "thing.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match="expected an ONNX model, got") as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["missing.onnx", "."])
def test_a_path_without_a_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="Cannot read .*give the path of an ONNX file"):
        read(tmp_path / name)


def test_every_truncation_is_refused(everything: onnx.ModelProto, tmp_path: Path) -> None:
    """Also those that protobuf takes for complete."""
    everything.ClearField("metadata_props")  # which follow the model's last necessary field
    everything.ClearField("functions")
    everything.ClearField("training_info")
    data = everything.SerializeToString()
    path = tmp_path / "cut.onnx"
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(ModelFormatError, match="cut.onnx"):
            read(path)


def test_damaged_bytes_give_errors_of_ours_only(everything: onnx.ModelProto, tmp_path: Path) -> None:
    data = everything.SerializeToString()
    path = tmp_path / "damaged.onnx"
    chance = random.Random(7)
    refused = 0
    for _ in range(1500):
        bent = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 5))):
            bent[chance.randrange(len(bent))] = chance.randrange(256)
        path.write_bytes(bent)
        with contextlib.suppress(OnnxSlimError):  # anything else ends the test
            to_bytes(read(path))
            continue
        refused += 1
    assert refused > 300


def test_raw_data_that_does_not_match_dims() -> None:
    model = _model()
    model.graph.initializer[0].raw_data = bytes(7)
    with pytest.raises(ModelFormatError, match=r"Tensor 'w': expected 8 bytes for dims \(2,\) of FLOAT, got 7"):
        from_proto(model)


@pytest.mark.parametrize("field, values", [("float_data", [1.0]), ("string_data", [b"one"]), ("int32_data", [1, 2, 3])])
def test_typed_data_that_does_not_match_dims(field: str, values: list[object]) -> None:
    kinds = {"float_data": 1, "string_data": 8, "int32_data": 16}
    model = _model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_type = kinds[field]
    getattr(tensor, field).extend(values)
    with pytest.raises(ModelFormatError, match="Tensor 'w': expected 2"):
        from_proto(model)


@pytest.mark.parametrize("dims", [[-1], [2, -3], [0, 1 << 62], [1] * 65], ids=str)
def test_impossible_dims(dims: list[int]) -> None:
    model = _model()
    tensor = model.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend(dims)
    tensor.raw_data = bytes(4) if dims == [1] * 65 else b""
    with pytest.raises(ModelFormatError, match="'w'"):
        from_proto(model)


def test_element_types_of_the_future() -> None:
    model = _model()
    model.graph.initializer[0].data_type = 99
    with pytest.raises(UnsupportedError, match="'w' has element type 99"):
        from_proto(model)
    model = _model()
    model.graph.input[0].type.tensor_type.elem_type = 77
    with pytest.raises(UnsupportedError, match="'x' has element type 77"):
        from_proto(model)


def test_structural_damage_is_named() -> None:
    model = _model()
    model.graph.node[0].input[1] = "nowhere"
    with pytest.raises(ModelFormatError, match=r"node 'sum' \(Add\) reads 'nowhere', which nothing produces"):
        from_proto(model)
    model = _model()
    model.graph.output[0].name = "nowhere"
    with pytest.raises(ModelFormatError, match="output 'nowhere'"):
        from_proto(model)
    model = _model()
    model.graph.node.append(model.graph.node[0])
    with pytest.raises(ModelFormatError, match="already produced"):
        from_proto(model)
    model = _model()
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(ModelFormatError, match="initialiser 'w'"):
        from_proto(model)
    model = _model()
    model.graph.input.append(model.graph.input[0])
    with pytest.raises(ModelFormatError, match="input 'x'"):
        from_proto(model)
    model = _model()
    model.graph.node[0].domain = "com.example"
    with pytest.raises(ModelFormatError, match="expected an opset of its domain 'com.example'"):
        from_proto(model)


def test_a_cycle_is_refused_by_name() -> None:
    model = _model()
    model.graph.node[0].input[1] = "z"
    model.graph.node.append(helper.make_node("Relu", ["y"], ["z"], name="back"))
    with pytest.raises(ModelFormatError, match="cycle: .*sum.*back|cycle: .*back.*sum"):
        from_proto(model)


@pytest.mark.parametrize("missing, says", [("graph", "graph"), ("opset_import", "opset")])
def test_models_without_their_parts(missing: str, says: str) -> None:
    model = _model()
    model.ClearField(missing)
    with pytest.raises(ModelFormatError, match=f"without {says}"):
        from_proto(model)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    data = _model().SerializeToString().replace(b"sum", b"\xff\xfe\xfd")
    (tmp_path / "bytes.onnx").write_bytes(data)
    with pytest.raises(ModelFormatError, match="expected text in 'name'"):
        read(tmp_path / "bytes.onnx")


def test_values_are_typed_and_ids_follow_the_file(everything: onnx.ModelProto) -> None:
    graph = from_proto(everything)
    assert isinstance(graph, Graph)
    assert graph.value("x").shape == (2, 3)
    assert graph.value("dense").shape == ("rows", 3)
    assert graph.value("relu").shape == (2, None)
    assert graph.value("chosen").shape is None
    assert graph.value("sparse").shape == (2, 3)
    assert graph.has_source(graph.value("sparse"))
    assert graph.value("sequence").type_proto is not None
    ids = [n.id for n in graph.nodes()]
    assert ids == sorted(ids)
    text = graph.value("text").array
    assert text is not None
    assert text.tolist() == [b"caf\xc3\xa9", b"\xff\x00"]
    half = graph.value("half").array
    assert half is not None
    assert half.dtype == np.float16
    assert not half.flags.writeable
