"""A run on disk: what is finished is kept, checked, and protected against other options."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxslim.builders import mlp
from onnxslim.errors import CheckpointError, OutputError, RecipeError
from onnxslim.ir.onnx_io import to_bytes
from onnxslim.report import Accuracy, StageRow
from onnxslim.run import RunFolder
from onnxslim.run.folder import files_of
from onnxslim.run.ownership import listed_files
from onnxslim.stages import Export, Quantize, Train

FIXED = {"run": {"seed": 0}, "digests": {"model": "abc"}}
ROW = StageRow("quantize", 1.5, {"nodes": 3}, Accuracy(10, 0.5, (0.2, 0.8)), (("node 'a'", "why"),))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.create(files_of([Quantize(), Train(), Export()]), replace_old=False)
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


def put(folder: Path, *names: str) -> list[Path]:
    """Files of those names, with something in them."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    return paths


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


STAGES = [Quantize(), Train(), Export(targets=["x64", "arm"])]
WRITTEN = (
    "recipe.yaml", "log.jsonl", "report.json", "plan.json", "model.onnx", "model.ort", "required_operators.config",
    "arm/model.onnx", "stages/0.onnx", "stages/0.json", "stages/1.begun.json", "checkpoints/1-train-0003/state.json",
    "checkpoints/1-train-best-0002/state.safetensors", "checkpoints/.1-train-0004.ab12/state.json",
    ".model.onnx.0123456789ab.tmp", "checkpoints/1-train-0003/.state.json.0123456789ab.tmp",
)  # fmt: skip
FOREIGN = (
    "notes.txt", "data.npz", "images/cat.png", "checkpoints/mine.bin", "checkpoints/0-train-0001/state.json",
    "checkpoints/1-train-0003/plot.png", "stages/7.onnx", "arm/readme.txt", "model.onnx.data", ".hidden",
    "sub/run.json",
)  # fmt: skip


def test_force_removes_what_the_run_has_listed_and_nothing_else(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.create(files_of(STAGES), replace_old=False)
    put(folder.path, *WRITTEN)
    foreign = put(folder.path, *FOREIGN)
    folder.create(files_of([Quantize()]), replace_old=True)
    assert names(folder.path) == {*FOREIGN, "run.json"}
    assert {path.read_bytes() for path in foreign} == {b"mine"}


def test_without_foreign_files_nothing_of_the_old_run_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.create(files_of(STAGES), replace_old=False)
    put(folder.path, *WRITTEN)
    folder.create(files_of([Quantize()]), replace_old=True)
    assert [path.name for path in folder.path.rglob("*")] == ["run.json"]


@pytest.mark.parametrize("inside", ["model.onnx", "stages/0.onnx", "recipe.yaml"])
def test_what_the_new_run_reads_is_not_removed(tmp_path: Path, inside: str) -> None:
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.create(files_of(STAGES), replace_old=False)
    (given,) = put(folder.path, inside)
    link = tmp_path / "link"
    link.symlink_to(given)
    before = names(folder.path)
    for path in (given, link):
        with pytest.raises(OutputError, match="belongs to the run .* that it is to replace: copy it elsewhere"):
            folder.create(files_of(STAGES), replace_old=True, inputs=[path])
    assert names(folder.path) == before


def test_the_new_run_writes_over_nothing_that_is_not_the_old_ones(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.create(files_of([Quantize()]), replace_old=False)
    put(folder.path, "model.onnx", "recipe.yaml")
    with pytest.raises(OutputError, match=r"model\.onnx' is not of the run that is there"):
        folder.create(files_of(STAGES), replace_old=True)
    assert names(folder.path) == {"model.onnx", "recipe.yaml", "run.json"}


def test_a_run_that_was_killed_at_its_very_beginning_is_no_obstacle(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "mine")
    put(folder.path, ".run.json.0123456789ab.tmp")
    assert not folder.exists
    folder.require_run()
    folder.create(files_of(STAGES), replace_old=False)
    assert names(folder.path) == {"run.json"}


def test_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere", "0.onnx", "model.onnx")
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.create(files_of(STAGES), replace_old=False)
    (folder.path / "stages").symlink_to(tmp_path / "elsewhere")
    (folder.path / "model.onnx").symlink_to(elsewhere[1])
    folder.create(files_of([Quantize()]), replace_old=True)
    assert [path.read_bytes() for path in elsewhere] == [b"mine"] * 2
    assert not (folder.path / "model.onnx").is_symlink()
    link = RunFolder(tmp_path / "runs" / "link")
    link.path.symlink_to(folder.path)
    for act in (link.require_run, lambda: link.create((), replace_old=True)):
        with pytest.raises(OutputError, match="'.*link' is a link: a run is neither resumed nor replaced through one"):
            act()
    assert names(folder.path) == {"run.json"}


@pytest.mark.parametrize("record", [None, "{}", "[]", '{"files": ["*"]}', "run.json of a run, changed"])
def test_only_a_run_is_resumed_or_replaced(tmp_path: Path, record: str | None) -> None:
    other = RunFolder(tmp_path / "photos")
    if record is not None and record.startswith("run.json of"):
        other.create(files_of(STAGES), replace_old=False)
        record = (other.path / "run.json").read_text().replace("model.ort", "cat.jpg")
    put(other.path, "cat.jpg")
    if record is not None:
        (other.path / "run.json").write_text(record)
    before = names(other.path)
    for act in (other.require_run, lambda: other.create((), replace_old=True)):
        with pytest.raises(OutputError, match="is not a run's folder .*: it is neither resumed nor replaced"):
            act()
    assert names(other.path) == before


def test_a_list_reaches_nothing_outside(tmp_path: Path) -> None:
    (outside,) = put(tmp_path, "precious")
    folder = tmp_path / "mine"
    put(folder, "precious", "checkpoints/a/b")
    for pattern in ("../precious", str(outside), "*", "checkpoints/*", "checkpoints/../precious", "./precious/.."):
        assert listed_files(folder, [pattern]) == []
    assert [path.name for path in listed_files(folder, ["checkpoints/*/b"])] == ["b"]


def test_exports_may_be_followed_changed_and_left_out(folder: RunFolder) -> None:
    graph = mlp()
    kept = folder.finish(0, Quantize(), graph, mlp(seed=1), ROW).graph
    (path,) = put(folder.path, "model.onnx")
    for stages in ([Quantize(), Train()], [Quantize(), Export(ort=False)], [Quantize()]):
        folder.finish(1, Export(), kept, kept, StageRow("export", 1.0), [path])
        assert folder.finished(1, Export(), kept) is not None
        folder.require_same(FIXED, stages)
        assert not path.exists()
        assert folder.finished(1, Export(), kept) is None
        put(folder.path, "model.onnx")


def test_an_export_without_its_files_is_not_done(folder: RunFolder) -> None:
    graph = mlp()
    (path,) = put(folder.path, "model.onnx")
    folder.finish(0, Export(), graph, graph, ROW, [path])
    path.write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"model\.onnx is not what stage 0 \(export\) wrote: move it away"):
        folder.finished(0, Export(), graph)
    path.unlink()
    assert folder.finished(0, Export(), graph) is None


@pytest.mark.parametrize("name", ["run.json", "stages/0.json"])
def test_a_digit_changed_in_a_record_is_noticed(folder: RunFolder, name: str) -> None:
    folder.finish(0, Quantize(), mlp(), mlp(seed=1), ROW)
    path = folder.path / name
    text = path.read_text()
    path.write_text(text.replace("512", "513") if "512" in text else text.replace('"seed": 0', '"seed": 1'))
    assert path.read_text() != text
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: it does not match its own digest"):
        folder.require_same(FIXED, [Quantize(samples=513)])


def test_what_a_stage_reads_must_hold_the_same(tmp_path: Path, folder: RunFolder) -> None:
    (loss,) = put(tmp_path, "loss.onnx")
    train = Train(task_loss={"name": "onnx", "path": str(loss)})
    folder.begin(0, train)
    folder.require_same(FIXED, [train])
    loss.write_bytes(b"another")
    with pytest.raises(RecipeError, match=r"stages\.0\.train\.task_loss\.path was .* but stage 0 is interrupted"):
        folder.require_same(FIXED, [train])


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(OutputError, match="Cannot make the folder"):
        RunFolder(tmp_path / "runs" / "mine").create((), replace_old=False)


def test_an_unreadable_record_is_a_checkpoint_error(folder: RunFolder) -> None:
    (folder.path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="run.json cannot be read"):
        folder.stored("run")
