"""int8 models for a target that this machine is not: their integers are evaluated, their latency is marked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.data.dataset import ArrayDataset
from onnxslim.evaluation import compare, evaluate
from onnxslim.evaluation.foreign import foreign_target, open_runner
from onnxslim.ir.onnx_io import write
from onnxslim.report import model_rows, rows_table
from onnxslim.report.tables import foreign_note, render
from onnxslim.run import export, quantize
from onnxslim.runtime.integer import run_integer
from onnxslim.runtime.session import Session


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs these tests is an x64 machine."""
    monkeypatch.setattr("onnxslim.evaluation.foreign.host_target", lambda: "x64")


@pytest.fixture
def dataset(rng: np.random.Generator) -> ArrayDataset:
    images = rng.normal(size=(40, 8, 8, 1)).astype(np.float32)
    return ArrayDataset({"image": images, "label": np.arange(40) % 6})


@pytest.mark.usefixtures("host")
def test_another_targets_integers_are_evaluated(dataset: ArrayDataset, tmp_path: Path) -> None:
    float_model = small_cnn((4, 8), classes=6)
    made = {target: quantize(float_model, dataset, target=target).graph for target in ("x64", "arm")}
    assert [foreign_target(model) for model in (float_model, made["x64"], made["arm"])] == [None, None, "arm"]
    assert isinstance(open_runner(made["x64"]), Session)
    images = dataset.read(np.arange(40))["image"].transpose(0, 3, 1, 2)
    (name,) = (value.name for value in made["arm"].inputs if value.array is None)
    (scores,) = run_integer(made["arm"], {name: np.ascontiguousarray(images)}).values()
    np.testing.assert_array_equal(evaluate(made["arm"], dataset).predictions, scores.argmax(axis=1))
    write(made["arm"], tmp_path / "phone.onnx")
    rows = model_rows(compare({"float": float_model, "phone": tmp_path / "phone.onnx"}, dataset, latency_repeats=2))
    assert [row.foreign for row in rows] == [None, "arm"]
    text = render(rows_table(rows), 200)
    line = next(line for line in text.splitlines() if "phone" in line)
    assert "*" in line
    note = foreign_note(rows)
    assert note is not None
    assert "int8 for arm, which this machine is not" in note
    assert "not comparable" in note
    assert foreign_note(rows[:1]) is None


@pytest.mark.usefixtures("host")
def test_an_ort_file_is_told_by_its_note(dataset: ArrayDataset, tmp_path: Path) -> None:
    made = quantize(small_cnn((4, 8), classes=6), dataset, target="arm").graph
    exported = export(made, None, tmp_path / "out")
    assert exported.ort is not None
    assert foreign_target(exported.ort) == "arm"
    assert isinstance(open_runner(exported.ort), Session)


def test_a_machine_that_no_profile_describes_runs_everything(
    dataset: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxslim.evaluation.foreign.host_target", lambda: None)
    made = quantize(small_cnn((4, 8), classes=6), dataset, target="arm").graph
    assert foreign_target(made) is None
    assert isinstance(open_runner(made), Session)
