"""require_runs: what the installed runtime does not run is not written, where the model it was made from runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from onnxslim.builders import small_cnn
from onnxslim.cli import app
from onnxslim.errors import ModelError
from onnxslim.evaluation.trial import require_runs
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.onnx_io import to_bytes, write
from onnxslim.stages import export
from onnxslim.stages.export import export_model


def chain(op: str, domain: str = "") -> Graph:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ["N", 4])
    y = graph.op(op, x, name="last", domain=domain)
    graph.set_type(y, DType.FLOAT, ["N", 4])
    graph.add_output(y)
    return graph


def broken() -> Graph:
    """A Reshape to a size that the numbers do not fill: it loads, and does not run."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ["N", 4])
    y = graph.op("Reshape", x, graph.add_constant("shape", np.array([3, 7])))
    graph.set_type(y, DType.FLOAT, [3, 7])
    graph.add_output(y)
    return graph


def test_what_runs_is_fine() -> None:
    graph = small_cnn()
    assert require_runs(graph, graph) is None
    assert require_runs(graph, graph, [to_bytes(graph, value_info=False)]) is None


def test_what_does_not_run_is_not_written() -> None:
    with pytest.raises(ModelError, match="Nothing was written.*does run the model it was made from") as caught:
        require_runs(broken(), chain("Abs"))
    assert "[2, 4]" in str(caught.value)


def test_each_file_is_run() -> None:
    good = chain("Abs")
    with pytest.raises(ModelError, match="Nothing was written"):
        require_runs(good, good, [to_bytes(good), to_bytes(chain("Nothing", "somebody"))])


def test_a_model_that_does_not_run_either_is_written_with_a_note() -> None:
    note = require_runs(chain("Nothing", "somebody"), chain("Nothing", "somebody"))
    assert note is not None
    assert "the model it was made from does not run here" in note


def test_an_input_that_cannot_be_made_up_is_told() -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, None)
    y = graph.op("Abs", x)
    graph.set_type(y, DType.FLOAT)
    graph.add_output(y)
    note = require_runs(graph, graph)
    assert note is not None
    assert "'x'" in note


def test_a_newer_opset_is_run_in_one_that_is_read() -> None:
    graph = chain("Abs")
    graph.opsets[""], graph.ir_version = 23, 10
    assert require_runs(graph, graph) is None


def test_an_export_that_does_not_run_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lower(graph: Graph, *options: object) -> tuple[Graph, object]:
        return broken(), export.Outcome()

    monkeypatch.setattr(export, "lower", lower)
    with pytest.raises(ModelError, match="Nothing was written"):
        export_model(chain("Abs"), "x64", tmp_path / "out", ort=False)
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_what_could_not_be_run(tmp_path: Path) -> None:
    write(chain("Nothing", "somebody"), tmp_path / "in.onnx")
    result = CliRunner().invoke(app, ["simplify", str(tmp_path / "in.onnx"), "-o", str(tmp_path / "out.onnx")])
    assert result.exit_code == 0, result.output
    assert "does not run here" in " ".join(result.output.split())
    assert (tmp_path / "out.onnx").is_file()
