"""`compress` from recipe to report: post-training quantisation, resumed, refused, replaced."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from onnxslim.data import open_dataset
from onnxslim.errors import (
    CheckpointError,
    DataError,
    ModelFormatError,
    OptionError,
    OutputError,
    RecipeError,
    UnsupportedError,
)
from onnxslim.evaluation import compare, digest_of, size_of
from onnxslim.ir.graph import DType
from onnxslim.ir.onnx_io import read, to_bytes, write
from onnxslim.recipe import parse_recipe
from onnxslim.report import Report
from onnxslim.run import compress
from onnxslim.run.folder import RunFolder
from onnxslim.run.job import open_data
from onnxslim.stages import Export, Quantize
from onnxslim.stages.preprocessing import noted_preprocess

PLAIN = "stages.1.export.ort=false"  # without the ORT format, whose conversion takes a second


def test_a_run_leaves_what_it_says(job: Path) -> None:
    report = compress("r.yaml")
    folder = job / "runs" / "mine"
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names == {
        "recipe.yaml", "run.json", "log.jsonl", "report.json", "model.onnx", "model.ort", "required_operators.config",
        "stages/0.onnx", "stages/0.json", "stages/1.json",
    }  # fmt: skip
    assert Report.read(folder / "report.json") == report
    assert [row.name for row in report.rows] == ["float", "int8 x64"]
    assert (report.split, report.name) == ("val", "mine")
    assert [stage.kind for stage in report.stages] == ["quantize", "export"]
    assert report.baseline_val == report.rows[0].accuracy
    assert report.rows[1].bytes == (folder / "model.onnx").stat().st_size
    assert report.rows[1].ort_bytes == (folder / "model.ort").stat().st_size
    assert report.rows[1].mcnemar is not None
    assert report.rows[1].latency is not None
    resolved = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert resolved["stages"][0]["quantize"]["target"] == "x64"
    assert resolved["run"] == {"name": "mine", "folder": "runs", "seed": 0, "workers": 1}
    assert {"cpu", "runtime", "versions", "digests"} <= set(resolved["provenance"])
    events = [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert events == ["run", "stage", "stage", "finished"]


def test_the_same_recipe_gives_the_same_bytes(job: Path) -> None:
    compress("r.yaml")
    compress("r.yaml", overrides=["run.name=again"])
    runs = job / "runs"
    for name in ("model.onnx", "stages/0.onnx"):  # ONNX Runtime's own converter orders its hash maps by address
        assert (runs / "mine" / name).read_bytes() == (runs / "again" / name).read_bytes()


def test_the_resolved_recipe_runs_again(job: Path) -> None:
    compress("r.yaml")
    compress("runs/mine/recipe.yaml", overrides=["run.name=again"])
    runs = job / "runs"
    assert (runs / "mine" / "model.onnx").read_bytes() == (runs / "again" / "model.onnx").read_bytes()


def test_a_float16_model_trains_in_float32_and_says_so(job: Path) -> None:
    graph = read(job / "student.onnx")
    for value in graph.values():  # weights, activations, input and output
        if value.array is not None and value.dtype is DType.FLOAT:
            graph.set_array(value, value.array.astype(np.float16))
        elif value.dtype is DType.FLOAT:
            graph.set_type(value, DType.FLOAT16)
    write(graph, job / "half.onnx")
    stages = "  - train: {epochs: 1, batch: 16}\n  - export:"
    (job / "half.yaml").write_text(
        (job / "r.yaml").read_text().replace("student.onnx", "half.onnx").replace("  - export:", stages)
    )
    report = compress("half.yaml")
    assert report.notes[0].startswith("The model is in float16; it is trained and quantised in float32")
    assert "Note: The model is in float16" in str(report)
    assert Report.read(Path(report.folder) / "report.json") == report
    trained = read(Path(report.folder) / "stages" / "1.onnx")
    assert {v.dtype for v in trained.initializers() if v.dtype.is_float} == {DType.FLOAT}
    exact = "stages.0.quantize.weight_bits=7"  # on every CPU
    assert compress("r.yaml", overrides=["run.name=other", exact]).notes == ()


def test_the_test_set_is_measured_only_when_asked_for(job: Path) -> None:
    with np.load(job / "data.npz") as arrays:
        expected = arrays["test_label"]
    report = compress("r.yaml", overrides=["data.test=data.npz", "evaluate.test=true"])
    assert report.split == "test"
    assert report.rows[0].accuracy is not None
    assert report.rows[0].accuracy.n == len(expected)
    with pytest.raises(RecipeError, match=r"data\.test: is needed here"):
        compress("r.yaml", overrides=["run.name=other", "evaluate.test=true"])


def test_an_existing_run_is_not_overwritten(job: Path) -> None:
    compress("r.yaml")
    before = {p: p.read_bytes() for p in (job / "runs").rglob("*") if p.is_file()}
    with pytest.raises(OutputError, match="'runs/mine' exists already: continue it .`resume=True`"):
        compress("r.yaml")
    assert {p: p.read_bytes() for p in (job / "runs").rglob("*") if p.is_file()} == before
    replaced = compress("r.yaml", force=True, overrides=["stages.0.quantize.samples=16"])
    assert replaced.stages[0].summary["samples"] == 16
    with pytest.raises(OptionError, match="give one of them"):
        compress("r.yaml", force=True, resume=True)


def test_a_run_under_way_is_left_alone(job: Path) -> None:
    with RunFolder(Path("runs/mine")).held():
        for options in ({}, {"resume": True}, {"force": True}):
            with pytest.raises(OutputError, match="'runs/mine' is under way in another process: wait for it"):
                compress("r.yaml", **options)
        assert not (job / "runs" / "mine").exists()
    assert compress("r.yaml").rows


def test_resuming_a_finished_run_only_reports(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = compress("r.yaml")
    monkeypatch.setattr(Quantize, "run", lambda *_: pytest.fail("ran again"))
    monkeypatch.setattr(Export, "run", lambda *_: pytest.fail("ran again"))
    assert compress("r.yaml", resume=True) == report


def test_resuming_skips_finished_stages_and_ends_with_the_same_bytes(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress("r.yaml", overrides=["run.name=whole"])
    with monkeypatch.context() as broken:
        broken.setattr(Export, "run", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress("r.yaml")
    assert not (job / "runs" / "mine" / "report.json").exists()
    with pytest.raises(RecipeError, match=r"stages\.0\.quantize\.samples was 32 and now is 8, but stage 0 is finished"):
        compress("r.yaml", resume=True, overrides=["stages.0.quantize.samples=8"])
    with pytest.raises(RecipeError, match=r"run\.seed was 0 and now is 1"):
        compress("r.yaml", resume=True, overrides=["run.seed=1"])
    monkeypatch.setattr(Quantize, "run", lambda *_: pytest.fail("ran again"))
    report = compress("r.yaml", resume=True, overrides=["stages.1.export.targets=[x64, arm]"])
    assert [row.name for row in report.rows] == ["float", "int8 x64", "int8 arm"]
    runs = job / "runs"
    assert (runs / "mine" / "model.onnx").read_bytes() == (runs / "whole" / "model.onnx").read_bytes()


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_resuming_with_another_model_is_refused(job: Path) -> None:
    compress("r.yaml")
    (job / "student.onnx").write_bytes((job / "teacher.onnx").read_bytes())
    with pytest.raises(RecipeError, match=r"digests\.model was "):
        compress("r.yaml", resume=True)


def test_resuming_nothing_begins(job: Path) -> None:
    assert compress("r.yaml", resume=True).name == "mine"


def test_from_python_with_objects(job: Path) -> None:
    with np.load(job / "data.npz") as arrays:
        train = {"image": arrays["train_image"]}
        val = {"image": arrays["val_image"], "label": arrays["val_label"]}
    recipe = {
        "model": read(job / "student.onnx"),
        "data": {"train": train, "val": val, "normalize": {"mean": [100.0], "std": [50.0]}},
        "run": {"name": "python", "workers": 1},
        "stages": [{"quantize": {"samples": 32}}, {"export": {}}],
        "evaluate": {"latency_repeats": 0},
    }
    report = compress(recipe)
    assert report.rows[0].latency is None
    compress("r.yaml")
    runs = job / "runs"
    assert (runs / "python" / "model.onnx").read_bytes() == (runs / "mine" / "model.onnx").read_bytes()
    assert compress(recipe, resume=True) == report
    val["label"] = (val["label"] + 1) % 6
    with pytest.raises(RecipeError, match=r"digests\.val was"):
        compress(recipe, resume=True)


def test_without_labels_only_size_and_latency_are_reported(job: Path) -> None:
    report = compress("r.yaml", overrides=["data.val=", "data.train={path: data.npz, split: train}"])
    assert report.split is None
    assert [row.accuracy for row in report.rows] == [None, None]
    assert report.rows[1].latency is not None


def test_without_an_export_there_is_one_all_the_same(job: Path) -> None:
    whole = compress("r.yaml", overrides=["run.name=whole"])
    (job / "r.yaml").write_text((job / "r.yaml").read_text().replace("  - export:\n", ""))
    report = compress("r.yaml")
    assert [row.name for row in report.rows] == [row.name for row in whole.rows] == ["float", "int8 x64"]
    runs = job / "runs"
    assert (runs / "mine" / "model.onnx").read_bytes() == (runs / "whole" / "model.onnx").read_bytes()
    assert (runs / "mine" / "model.ort").is_file()


def test_a_finished_run_goes_on_with_the_stages_that_are_added(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in front of its export, which is done again; and ends as if it had been asked for all at once."""
    text = (job / "r.yaml").read_text()
    more = text.replace("  - export:", "  - train: {epochs: 1, batch: 16, layout: plain}\n  - export: {ort: false}")
    (job / "more.yaml").write_text(more)
    compress("more.yaml", overrides=["run.name=whole"])
    first = compress("r.yaml", overrides=[PLAIN, "stages.1.export.targets=[arm, x64]"])
    with monkeypatch.context() as once:
        once.setattr(Quantize, "run", lambda *_: pytest.fail("ran again"))
        report = compress("more.yaml", resume=True)
    assert [stage.kind for stage in report.stages] == ["quantize", "train", "export"]
    runs = job / "runs"
    assert (runs / "mine" / "model.onnx").read_bytes() == (runs / "whole" / "model.onnx").read_bytes()
    assert not (runs / "mine" / "x64").exists()  # not asked for any more
    assert report.stages[0] == first.stages[0]
    assert report.seconds >= sum(stage.seconds for stage in report.stages) - 0.1  # those of both processes
    assert compress("more.yaml", resume=True) == report
    with pytest.raises(RecipeError, match=r"stages\.1\.train was .*… and now is nothing, but stage 1 is finished"):
        compress("more.yaml", resume=True, overrides=["stages=[{quantize: {samples: 32}}]"])


@pytest.mark.parametrize("change", ["evaluate.batch=7", "evaluate.test=true", "data.test={path: data.npz, split: val}"])
def test_a_finished_run_is_measured_as_the_recipe_now_says(
    job: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = [PLAIN, "data.test=data.npz"] + ["evaluate.test=true"] * change.startswith("data")
    old = compress("r.yaml", overrides=test)
    monkeypatch.setattr(Quantize, "run", lambda *_: pytest.fail("ran again"))
    monkeypatch.setattr(Export, "run", lambda *_: pytest.fail("ran again"))
    new = compress("r.yaml", resume=True, overrides=[*test, change])
    assert new.stages == old.stages
    assert (new.split, new.rows[0].latency) != (old.split, old.rows[0].latency)  # measured anew
    assert compress("r.yaml", resume=True, overrides=[*test, change]) == new


@pytest.mark.parametrize("gone", ["model.onnx", "model.ort", "report.json"])
def test_a_finished_run_without_its_files_writes_them_again(job: Path, gone: str) -> None:
    report = compress("r.yaml")
    path = job / "runs" / "mine" / gone
    before = path.read_bytes()
    path.unlink()
    again = compress("r.yaml", resume=True)
    assert path.is_file()
    assert [row.accuracy for row in again.rows] == [row.accuracy for row in report.rows]
    if gone == "model.onnx":
        assert path.read_bytes() == before


@pytest.mark.parametrize("damaged", ["model.onnx", "stages/0.onnx", "stages/0.json", "run.json"])
def test_a_finished_run_with_other_files_is_refused_by_name(job: Path, damaged: str) -> None:
    compress("r.yaml", overrides=[PLAIN])
    path = job / "runs" / "mine" / damaged
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises((CheckpointError, OutputError), match=path.name):
        compress("r.yaml", resume=True, overrides=[PLAIN])


def test_a_changed_report_is_not_believed(job: Path) -> None:
    report = compress("r.yaml", overrides=[PLAIN])
    path = job / "runs" / "mine" / "report.json"
    path.write_text(path.read_text().replace('"top1": 0.', '"top1": 1.'))
    again = compress("r.yaml", resume=True, overrides=[PLAIN])
    assert again.rows[0].accuracy == report.rows[0].accuracy


def test_other_data_under_the_same_name_are_refused(job: Path) -> None:
    compress("r.yaml", overrides=[PLAIN])
    with np.load(job / "data.npz") as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["train_image"] = changed["train_image"].copy()
    changed["train_image"][40, 3, 3, 0] ^= 1
    np.savez(job / "data.npz", **changed)
    with pytest.raises(RecipeError, match=r"digests\.train was"):
        compress("r.yaml", resume=True)


@pytest.mark.parametrize("change", ["pixel", "new image", "label"])
def test_images_changed_between_kill_and_resume_are_refused(
    job: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        path = job / "photos" / f"class{number % 6}" / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)
    options = [PLAIN, "data.train=photos", "data.val=", "stages.0.quantize.samples=8"]
    with monkeypatch.context() as broken:
        broken.setattr(Export, "run", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress("r.yaml", overrides=options)
    image = job / "photos" / "class0" / "0.bmp"
    if change == "pixel":
        content = image.read_bytes()
        image.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif change == "new image":
        shutil.copy(image, image.with_name("12.bmp"))
    else:
        image.rename(job / "photos" / "class1" / "0.bmp")
    with pytest.raises(RecipeError, match=r"digests\.train was .*, but the run was begun with it"):
        compress("r.yaml", resume=True, overrides=options)


def test_a_run_that_is_refused_leaves_no_folder(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UnsupportedError("not this one")

    with monkeypatch.context() as refusing:
        refusing.setattr(Quantize, "run", refuse)
        with pytest.raises(UnsupportedError, match="not this one"):
            compress("r.yaml")
    assert not (job / "runs").exists()
    with monkeypatch.context() as refusing:
        refusing.setattr(Export, "run", refuse)
        with pytest.raises(UnsupportedError, match="not this one"):
            compress("r.yaml")
    assert (job / "runs" / "mine" / "stages" / "0.onnx").is_file()  # what is done is kept
    assert compress("r.yaml", resume=True, overrides=[PLAIN]).rows


def test_a_folder_that_is_no_run_is_not_resumed(job: Path) -> None:
    (job / "runs" / "mine").mkdir(parents=True)
    (job / "runs" / "mine" / "thesis.txt").write_text("years")
    for options in ({"resume": True}, {"force": True}, {}):
        with pytest.raises(OutputError, match="not a run's folder|exists already"):
            compress("r.yaml", **options)
    assert [path.name for path in (job / "runs" / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("given", ["model=runs/mine/model.onnx", "recipe"])
def test_force_does_not_remove_what_it_is_to_read(job: Path, given: str) -> None:
    compress("r.yaml", overrides=[PLAIN])
    recipe, overrides = (
        ("runs/mine/recipe.yaml", []) if given == "recipe" else ("r.yaml", [given, "stages=[export: {ort: false}]"])
    )
    before = {p: p.read_bytes() for p in (job / "runs").rglob("*") if p.is_file()}
    with pytest.raises(OutputError, match="belongs to the run 'runs/mine' that it is to replace|belongs to the run"):
        compress(recipe, force=True, overrides=[*overrides, "run.name=mine", f"run.folder={job / 'runs'}"])
    assert {p: p.read_bytes() for p in (job / "runs").rglob("*") if p.is_file()} == before


def test_a_run_is_a_model_wherever_one_is_taken(job: Path) -> None:
    report = compress("r.yaml", overrides=[PLAIN])
    folder, file = Path(report.folder), Path(report.folder) / "model.onnx"
    assert to_bytes(read(folder)) == to_bytes(read(file))
    assert (digest_of(folder), size_of(folder)) == (digest_of(file), size_of(file))
    again = compress("r.yaml", overrides=["run.name=again", f"model={folder}", "stages=[{export: {ort: false}}]"])
    assert again.rows[0].bytes == file.stat().st_size
    (row,) = compare({"run": folder}, open_dataset("data.npz", "val"), noted_preprocess(read(folder)))
    assert row.evaluation is not None
    assert report.rows[1].accuracy is not None
    assert row.evaluation.top1 == report.rows[1].accuracy.top1
    with pytest.raises(OutputError, match="belongs to the run"):
        compress("r.yaml", force=True, overrides=[f"model={folder}", "stages=[{export: {ort: false}}]"])
    with pytest.raises(ModelFormatError, match=r"'runs': it is a folder without a model\.onnx"):
        read("runs")


def test_how_many_samples_there_were_is_what_is_said(job: Path) -> None:
    report = compress("r.yaml", overrides=[PLAIN, "stages.0.quantize.samples=512"])
    assert report.stages[0].summary["samples"] == 80


def test_what_happens_is_said(job: Path) -> None:
    lines: list[str] = []
    compress("r.yaml", say=lines.append, overrides=[PLAIN])
    assert lines[0] == "checking the recipe, the models and the data"
    assert "stage 1 of 2: quantize" in lines
    assert any(re.fullmatch(r"0-quantize: done in \d+ s, val top-1 [\d.]+ %", line) for line in lines)
    assert lines[-1] == "comparing the result with the model it came from"


def test_a_run_that_was_interrupted_counts_all_of_its_seconds(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process spends a minute on its stage; the second only the rest."""
    run = Quantize.run

    def slow(*arguments: Any) -> Any:
        return replace(run(*arguments), seconds_before=60.0)

    monkeypatch.setattr(Quantize, "run", slow)
    with monkeypatch.context() as broken:
        broken.setattr(Export, "run", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress("r.yaml", overrides=[PLAIN])
    report = compress("r.yaml", resume=True, overrides=[PLAIN])
    assert 60 <= report.stages[0].seconds < 120
    assert 60 <= report.seconds < 180


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("stages.0.quantize.skip=[nothing]", RecipeError, r"stages\.0\.quantize\.skip: 'nothing' matches no node"),
        ("data.normalize={mean: [1, 2, 3], std: [1, 1, 1]}", DataError, "3 channels, the data have 1"),
        ("stages.0.quantize.data=test", RecipeError, "expected 'train' or 'val', got text 'test'"),
        ("data={val: {path: data.npz, split: val}}", RecipeError, r"stages\.0\.quantize: data\.train: is needed"),
        ("data.val={path: data.npz, split: vla}", DataError, "no such split 'vla'"),
        ("model=r.yaml", ModelFormatError, r"r\.yaml"),
    ],
)
def test_what_can_be_known_before_is_said_before_anything_is_written(
    job: Path, override: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        compress("r.yaml", overrides=[override])
    assert not (job / "runs").exists()


def test_no_data_at_all_is_an_error(job: Path) -> None:
    with pytest.raises(RecipeError, match="data: expected train, val or test, got none"):
        compress({"model": str(job / "student.onnx"), "stages": [{"export": {}}]})


def test_a_role_is_its_split_only_where_roles_share_a_path(job: Path) -> None:
    recipe = parse_recipe({"model": "student.onnx", "data": {"train": "data.npz"}, "stages": [{"export": {}}]})
    assert recipe.data.train is not None
    with pytest.raises(DataError, match="has the splits .*: say which"):
        open_data(recipe.data.train, "train", recipe.data)


def test_an_unsound_installation_stops_the_run(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsound() -> None:
        raise UnsupportedError("broken")

    monkeypatch.setattr("onnxslim.run.job.require_sound", unsound)
    with pytest.raises(UnsupportedError, match="broken"):
        compress("r.yaml")
    assert not (job / "runs").exists()
