"""Sizes, digests and sessions of graphs, files and bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxslim.errors import ModelFormatError, VerifyError
from onnxslim.evaluation import digest_of, open_session, size_of
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.onnx_io import to_bytes, to_proto, write

Make = Callable[..., Graph]


def test_size_and_digest_are_those_of_the_file(make_model: Make, tmp_path: Path) -> None:
    graph = make_model(np.eye(8))
    write(graph, tmp_path / "m.onnx")
    for form in (graph, to_bytes(graph), tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        assert size_of(form) == (tmp_path / "m.onnx").stat().st_size
        assert digest_of(form) == digest_of(graph)
    assert digest_of(make_model(2 * np.eye(8))) != digest_of(graph)


def test_external_data_counts(make_model: Make, tmp_path: Path) -> None:
    proto = to_proto(make_model(np.zeros((8, 64))))
    onnx.save(proto, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    assert size_of(tmp_path / "m.onnx") == sum((tmp_path / n).stat().st_size for n in ("m.onnx", "w.bin"))
    before = digest_of(tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_bytes(b"\1" * 2048)
    assert digest_of(tmp_path / "m.onnx") != before


def test_ort_files(make_model: Make, tmp_path: Path) -> None:
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    InferenceSession(to_bytes(make_model(np.eye(8))), options, providers=["CPUExecutionProvider"])
    assert size_of(tmp_path / "m.ort") == (tmp_path / "m.ort").stat().st_size
    x = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    for form in (tmp_path / "m.ort", (tmp_path / "m.ort").read_bytes()):
        assert open_session(form).run({"image": x})["logits"].tolist() == [list(range(8))]


def test_damaged_ort_files(tmp_path: Path) -> None:
    (tmp_path / "m.ort").write_bytes(b"\x10\0\0\0ORTM" + b"\xff" * 64)
    with pytest.raises(ModelFormatError, match=r"Cannot read '.*m.ort'"):
        open_session(tmp_path / "m.ort")


@pytest.mark.parametrize(
    "shape, sizes, why",
    [
        ((1, 3, 8), [4, 3, 3, 3], "as many spatial axes everywhere"),
        ((1, 3, 8, 8), [4, 3, 3, 0], "at least one number along each spatial axis"),
    ],
)
def test_filters_whose_shape_is_computed_are_looked_at(shape: tuple[int, ...], sizes: list[int], why: str) -> None:
    """ONNX Runtime 1.19.2 ends the process of these while it loads them."""
    graph = Graph("net")
    x = graph.add_input("x", DType.FLOAT, shape)
    one = graph.add_constant("one", np.ones((4, 3, 1, 1), np.float32))
    filters = graph.op("Expand", one, graph.add_constant("sizes", np.array(sizes, np.int64)), name="filters")
    graph.add_output(graph.op("Conv", x, filters, name="y"))
    with pytest.raises(VerifyError, match=why):
        open_session(graph)
    assert filters.shape is None  # what was inferred stays out of the graph that was given


def test_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model at all")
    for action in (open_session, size_of, digest_of):
        with pytest.raises(ModelFormatError, match="m.onnx"):
            action(tmp_path / "m.onnx")
