"""Preprocessing is noted in the model, and read back from .onnx and .ort files."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxslim.builders import mlp
from onnxslim.data import Preprocess
from onnxslim.errors import ModelError
from onnxslim.ir.onnx_io import to_bytes, write
from onnxslim.runtime.ort_format import write_ort
from onnxslim.stages.preprocessing import KEY, note_preprocess, noted_preprocess

PREPROCESS = Preprocess((125.3, 123.0), (63.0, 62.1), "NHWC")


def test_what_is_noted_is_read_back(tmp_path: Path) -> None:
    graph = mlp()
    assert noted_preprocess(graph) is None
    note_preprocess(graph, PREPROCESS)
    assert noted_preprocess(graph) == PREPROCESS
    write(graph, tmp_path / "m.onnx")
    assert noted_preprocess(tmp_path / "m.onnx") == PREPROCESS
    files = write_ort(to_bytes(graph), tmp_path, "arm")
    assert noted_preprocess(files.model) == PREPROCESS


def test_nothing_to_say_is_not_said() -> None:
    graph = mlp()
    note_preprocess(graph, PREPROCESS)
    note_preprocess(graph, Preprocess())
    assert KEY not in graph.metadata


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"mean": ["a"], "std": [1], "layout": "NCHW"}'])
def test_a_note_of_another_kind_is_an_error(text: str) -> None:
    graph = mlp()
    graph.metadata[KEY] = text
    with pytest.raises(ModelError, match="is not a preprocessing note"):
        noted_preprocess(graph)
