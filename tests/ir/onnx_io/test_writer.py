"""Files are written whole or not at all; large weights go beside them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxslim.errors import ModelError, OutputError
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.onnx_io import node_proto, read, to_bytes, to_proto, write
from onnxslim.ir.onnx_io import writer as writer_module


def _graph() -> Graph:
    graph = Graph("g")
    x = graph.add_input("x", DType.FLOAT, ("n", 500))
    weight = graph.add_constant("w", np.arange(250_000, dtype=np.float32).reshape(500, 500))
    small = graph.add_constant("b", np.ones(500, np.float16)[:10])
    nibbles = graph.add_constant("n", (np.arange(4001) % 16 - 8).astype(ml_dtypes.int4))
    y = graph.op("MatMul", x, weight, name="product")
    graph.set_type(y, DType.FLOAT, ("n", 500))
    z = graph.op("Relu", y)
    for value in (z, small, nibbles):
        graph.add_output(value)
    return graph


def test_external_data_is_aligned_and_read_back(tmp_path: Path) -> None:
    graph = _graph()
    write(graph, tmp_path / "m.onnx", external_data=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    model = onnx.load(str(tmp_path / "m.onnx"), load_external_data=False)
    entries = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}
    assert entries["w"] == {"location": "m.onnx.data", "offset": "0", "length": "1000000"}
    assert int(entries["n"]["offset"]) % 4096 == 0
    assert entries["b"] == {}  # small ones stay
    assert to_bytes(read(tmp_path / "m.onnx")) == to_bytes(graph)
    assert (
        onnx.load(str(tmp_path / "m.onnx")).graph.initializer[0].raw_data
        == to_proto(graph).graph.initializer[0].raw_data
    )


def test_a_mapped_model_can_be_written_over_itself(tmp_path: Path) -> None:
    write(_graph(), tmp_path / "m.onnx", external_data=True)
    graph = read(tmp_path / "m.onnx")
    write(graph, tmp_path / "m.onnx", external_data=True)
    assert to_bytes(read(tmp_path / "m.onnx")) == to_bytes(_graph())
    assert to_bytes(graph) == to_bytes(_graph())


def test_what_exceeds_a_file_goes_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_LIMIT", 500_000)
    with pytest.raises(ModelError, match="write it with external data"):
        to_bytes(_graph())
    write(_graph(), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size > 1_000_000
    monkeypatch.undo()
    assert to_bytes(read(tmp_path / "m.onnx")) == to_bytes(_graph())


def test_value_info_can_be_left_out() -> None:
    graph = _graph()
    assert [i.name for i in to_proto(graph).graph.value_info] == ["product"]
    assert not to_proto(graph, value_info=False).graph.value_info
    assert len(to_bytes(graph, value_info=False)) < len(to_bytes(graph))


def test_a_refusing_system_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="a part of the path is a file"):
        write(_graph(), tmp_path / "file" / "m.onnx")
    with pytest.raises(OutputError, match="create its folder first"):
        write(_graph(), tmp_path / "none" / "m.onnx", external_data=True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_removed_values_leave_no_annotation(everything: onnx.ModelProto) -> None:
    from onnxslim.ir.onnx_io import from_proto

    graph = from_proto(everything)
    graph.rename(graph.value("relu"), "rectified")
    assert to_proto(graph).graph.quantization_annotation[0].tensor_name == "rectified"
    graph.remove_value(graph.value("scalar"))
    assert not to_proto(graph).graph.quantization_annotation


def test_node_proto_has_empty_slots() -> None:
    graph = Graph("g")
    x = graph.add_input("x", DType.FLOAT, (3,))
    high = graph.add_constant("high", np.float32(6))
    node = graph.add_node("Clip", [x, None, high], ["y"], name="clip")
    proto = node_proto(graph, node)
    assert list(proto.input) == ["x", "", "high"]
    assert list(proto.output) == ["y"]
