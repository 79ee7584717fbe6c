"""write_ort: an .ort file that runs, its operator list, and nothing left behind on failure."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.errors import ModelFormatError, OutputError, UnsupportedError
from onnxslim.ir.graph import Array
from onnxslim.ir.onnx_io import to_bytes, write
from onnxslim.ir.rewrite import Context
from onnxslim.runtime.ort_format import write_ort
from onnxslim.runtime.session import Session
from onnxslim.targets import load_target
from passes.deploy import ShortenNames
from passes.quantize import InsertFakeQuant, LowerToQdq
from tests.fixed_range import FixedRange


def int8_model(target: str) -> tuple[bytes, dict[str, Array]]:
    """A small int8 model (batch norm left in float: only the format matters here), and an input."""
    graph = small_cnn()
    context = Context(target=load_target(target))
    InsertFakeQuant(calibrator=FixedRange(-2.0, 4.0))(graph, context)
    LowerToQdq()(graph, context)
    ShortenNames()(graph)
    shape = [d if isinstance(d, int) else 3 for d in graph.inputs[0].shape or ()]
    feeds = {graph.inputs[0].name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    return to_bytes(graph, value_info=False), feeds


@pytest.mark.parametrize(("target", "kind"), [("x64", "uint8_t"), ("arm", "int8_t")])
def test_ort_file_runs_like_the_model(
    tmp_path: Path, target: str, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data, feeds = int8_model(target)
    handlers = list(logging.getLogger().handlers)
    files = write_ort(data, tmp_path, load_target(target).ort_platform)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.ort", "required_operators.config"]
    config = files.config.read_text()
    assert str(tmp_path) not in config
    assert kind in config
    expected, found = (Session(m).run(feeds) for m in (data, files.model.read_bytes()))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5)


def test_from_a_file_under_another_name(tmp_path: Path) -> None:
    write(small_cnn(), tmp_path / "in.onnx")
    (tmp_path / "out").mkdir()
    files = write_ort(tmp_path / "in.onnx", tmp_path / "out", "amd64", name="small")
    assert files.model.name == "small.ort"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.onnx", "out"]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="expected 'arm' or 'amd64', got 'x86'"):
        write_ort(b"", tmp_path, "x86")
    with pytest.raises(ModelFormatError, match="is not a file"):
        write_ort(tmp_path / "none.onnx", tmp_path, "arm")
    with pytest.raises(UnsupportedError, match="cannot convert"):
        write_ort(b"not a model", tmp_path, "arm")
    with pytest.raises(OutputError):
        write_ort(int8_model("x64")[0], tmp_path / "missing", "amd64")
    assert list(tmp_path.iterdir()) == []
