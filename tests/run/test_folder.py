"""A run on disk: what is finished is kept, checked, and protected against other options."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxslim.builders import mlp
from onnxslim.errors import CheckpointError, OutputError, RecipeError
from onnxslim.onnx_io import to_bytes
from onnxslim.report import Accuracy, StageRow
from onnxslim.run import RunFolder
from onnxslim.stages import Export, Quantize, Train

FIXED = {"run": {"seed": 0}, "digests": {"model": "abc"}}
ROW = StageRow("quantize", 1.5, {"nodes": 3}, Accuracy(10, 0.5, (0.2, 0.8)), (("node 'a'", "why"),))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.create(replace_old=False)
    folder.write_recipe("model: m.onnx\n", FIXED)
    return folder


def test_a_finished_stage_is_read_back(folder: RunFolder) -> None:
    before, after, stage = mlp(), mlp(seed=1), Quantize()
    assert folder.finished(0, stage, before) is None
    kept = folder.finish(0, stage, before, after, ROW)
    again = folder.finished(0, stage, before)
    assert again is not None
    assert to_bytes(again.graph) == to_bytes(kept.graph) == to_bytes(after)
    assert again.row == kept.row == ROW


def test_a_stage_that_changes_nothing_keeps_no_copy(folder: RunFolder) -> None:
    graph = mlp()
    folder.finish(0, Export(), graph, graph, ROW)
    assert not (folder.path / "stages" / "0.onnx").exists()
    again = folder.finished(0, Export(), graph)
    assert again is not None
    assert again.graph is graph


def test_a_damaged_model_is_noticed(folder: RunFolder) -> None:
    folder.finish(0, Quantize(), mlp(), mlp(seed=1), ROW)
    path = folder.path / "stages" / "0.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="0.onnx is missing or not what stage 0 .quantize. wrote: remove"):
        folder.finished(0, Quantize(), mlp())


def test_measurements_are_made_once(folder: RunFolder) -> None:
    accuracy = Accuracy(10, 0.5, (0.25, 0.75))
    assert folder.kept("val", lambda: accuracy) == accuracy
    assert folder.kept("val", lambda: pytest.fail("measured twice")) == accuracy
    assert folder.kept("none", lambda: None) is None
    assert folder.kept("none", lambda: pytest.fail("measured twice")) is None


def test_before_anything_is_done_all_may_change(folder: RunFolder) -> None:
    folder.require_same({"run": {"seed": 5}}, [Quantize(samples=3)])


def test_finished_and_interrupted_stages_are_protected_and_later_ones_free(folder: RunFolder) -> None:
    stages = [Quantize(), Train(epochs=3), Export()]
    folder.begin(0, stages[0])
    folder.finish(0, stages[0], mlp(), mlp(seed=1), ROW)
    folder.require_same(FIXED, [stages[0], Train(epochs=5)])
    with pytest.raises(
        RecipeError, match=r"stages\.0\.quantize\.samples was 512 and now is 3, but stage 0 is finished"
    ):
        folder.require_same(FIXED, [Quantize(samples=3), *stages[1:]])
    with pytest.raises(RecipeError, match=r"run\.seed was 0 and now is 1"):
        folder.require_same({**FIXED, "run": {"seed": 1}}, stages)
    with pytest.raises(RecipeError, match=r"stages\.0 was .* and now is nothing"):
        folder.require_same(FIXED, [])
    folder.begin(1, stages[1])
    with pytest.raises(RecipeError, match=r"stages\.1\.train\.epochs was 3 and now is 5, but stage 1 is interrupted"):
        folder.require_same(FIXED, [stages[0], Train(epochs=5)])
    folder.require_same(FIXED, [*stages[:2], Export(ort=False), Export()])


def test_only_a_run_is_replaced(tmp_path: Path, folder: RunFolder) -> None:
    assert folder.exists
    folder.create(replace_old=True)
    assert list(folder.path.iterdir()) == []
    other = RunFolder(tmp_path / "photos")
    other.path.mkdir()
    (other.path / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(OutputError, match="is not a run's folder"):
        other.create(replace_old=True)
    assert (other.path / "cat.jpg").read_bytes() == b"meow"


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(OutputError, match="Cannot make the folder"):
        RunFolder(tmp_path / "runs" / "mine").create(replace_old=False)


def test_an_unreadable_record_is_a_checkpoint_error(folder: RunFolder) -> None:
    (folder.path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="run.json cannot be read"):
        folder.stored("run")
