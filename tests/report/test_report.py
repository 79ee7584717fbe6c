"""Reports: JSON and back, and tables that say what they should."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxslim.analysis.inspection import inspect_model
from onnxslim.builders import small_cnn
from onnxslim.errors import CheckpointError
from onnxslim.evaluation import Evaluation, wilson_interval
from onnxslim.report import (
    Accuracy,
    ModelRow,
    Report,
    StageRow,
    accuracy_of,
    doctor_table,
    inspection_view,
    render,
    rows_table,
)
from onnxslim.runtime.capabilities import capabilities
from onnxslim.targets import load_target

LATENCY = {"median_ms": 1.234567, "p95_ms": 2.0, "ratio": 1.0, "batch": 1, "threads": 1, "repeats": 100}
FLOAT = ModelRow("float", 4000, 1.0, Accuracy(100, 0.5, (0.4, 0.6), 0.9, (0.8, 0.95)), None, LATENCY)
INT8 = ModelRow(
    "int8 x64",
    1000,
    0.25,
    Accuracy(100, 0.49, (0.39, 0.59), 0.9, (0.8, 0.95)),
    {"b": 2, "c": 1, "p": 1.0},
    {**LATENCY, "ratio": 0.4},
    1100,
)
STAGES = (StageRow("quantize", 1.0, {"nodes": 3, "files": [1]}, None, (("node 'x'", "no kernel"),)),)


@pytest.fixture
def report() -> Report:
    return Report("mine", "runs/mine", "test", (FLOAT, INT8), STAGES, FLOAT.accuracy, {"cpu": "A CPU", "int8": "VNNI"})


def test_a_report_is_read_back_as_it_was(tmp_path: Path, report: Report) -> None:
    report.write(tmp_path / "report.json")
    assert Report.read(tmp_path / "report.json") == report
    assert report.row("int8 x64") is report.rows[1]
    with pytest.raises(KeyError):
        report.row("int8 arm")


@pytest.mark.parametrize("change", [{"version": 99}, {"rows": 3}, {"unknown": 1}])
def test_what_is_no_report_is_an_error(tmp_path: Path, report: Report, change: dict[str, object]) -> None:
    (tmp_path / "report.json").write_text(json.dumps({**json.loads(report.to_json()), **change}))
    with pytest.raises(CheckpointError, match=r"report\.json"):
        Report.read(tmp_path / "report.json")


def test_a_report_shows_everything_that_was_measured(report: Report) -> None:
    text = str(report)
    for piece in (
        "Run 'mine'",
        "Result on test",
        "50.00 [40.00, 60.00]",
        "90.00",
        "2/1, 1",
        "1.235, 2.000",
        "0.40",
        "25.00",
        "27.50",
        "nodes 3",
        "node 'x': no kernel",
        "A CPU; VNNI",
        "runs/mine",
    ):
        assert piece in text
    assert "files" not in text


def test_columns_that_nobody_fills_are_left_out() -> None:
    text = render(rows_table([ModelRow("only", 10, 1.0)]))
    assert text.split() == ["model", "bytes", "only", "10"]


def test_accuracy_of_an_evaluation() -> None:
    correct = np.array([True, True, False, False])
    found = accuracy_of(Evaluation(3, np.zeros(4, np.int64), correct, None, 0.1))
    assert found == Accuracy(4, 0.5, wilson_interval(2, 4))
    assert accuracy_of(None) is None


def test_an_inspection_names_what_cannot_be_done() -> None:
    graph = small_cnn((4,))
    found = inspect_model(
        graph, target=load_target("x64"), differentiable=lambda node: "no rule" if node.op == "Relu" else None
    )
    text = render(inspection_view(found, target="x64"))
    for piece in ("input", "[N, 1, 8, 8]", "opset", "Conv × 1", "Can be quantised for x64: ", "(Relu): no rule"):
        assert piece in text
    assert f"{found.cost.macs:,}" in text


def test_square_brackets_are_not_markup() -> None:
    graph = small_cnn((4,))
    graph.set_type(graph.inputs[0], shape=("batch", 1, 8, 8))
    assert "FLOAT[batch, 1, 8, 8]" in render(inspection_view(inspect_model(graph)))
    assert "[red]" in render(rows_table([ModelRow("[red]", 10, 1.0)]))


def test_the_doctor_says_what_there_is() -> None:
    found = capabilities()
    text = render(doctor_table(found))
    assert found.version in text
    assert "int8 path" in text


def test_a_node_is_left_as_it_was_once() -> None:
    """Whatever the later stages say of it, too."""
    first = StageRow("quantize", 1.0, refused=(("node 'a'", "its weights are not constant"), ("node 'b'", "skipped")))
    last = StageRow("export", 1.0, refused=(("node 'a'", "its weight has no grid"), ("node 'c'", "no kernel")))
    text = str(Report("r", "runs/r", None, (ModelRow("float", 10, 1.0),), (first, last)))
    left = text[text.index("Left as they were:") :].splitlines()[1:4]
    expected = ["node 'a': its weights are not constant", "node 'b': skipped", "node 'c': no kernel"]
    assert [line.strip() for line in left] == expected
