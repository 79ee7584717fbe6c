"""Recipes: what is valid, how errors read, and where paths lead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from onnxslim.builders import mlp
from onnxslim.errors import RecipeError
from onnxslim.recipe import Recipe, dump_recipe, load_recipe, parse_recipe
from onnxslim.stages import Export, Quantize, Train

RECIPE = """\
model: student.onnx
teacher: teachers/teacher.onnx
data:
  train: data.npz
  val: {path: data.npz, split: test}
  normalize: {mean: [1, 2.5], std: [1e-1, 2]}
run: {name: mine, seed: 3}
stages:
  - quantize: {target: arm}
  - train:
      epochs: 10
      optimizer: {learning_rate: 1e-3}
      distill: {soft_label: {weight: 0.7, student_temperature: 4}}
  - export:
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "teachers").mkdir()
    for name in ("student.onnx", "teachers/teacher.onnx", "data.npz"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def fault(folder: Path, old: str, new: str) -> str:
    """The error's text for the recipe with one piece replaced."""
    assert RECIPE.count(old) == 1
    (folder / "r.yaml").write_text(RECIPE.replace(old, new))
    with pytest.raises(RecipeError) as error:
        load_recipe(folder / "r.yaml")
    return str(error.value).replace(f"{folder}/", "")


def test_a_recipe_is_read_with_defaults_and_absolute_paths(folder: Path) -> None:
    recipe = load_recipe(folder / "r.yaml")
    assert recipe.model == str(folder / "student.onnx")
    assert recipe.teacher == str(folder / "teachers" / "teacher.onnx")
    assert recipe.data.train is not None
    assert (recipe.data.train.path, recipe.data.train.split) == (str(folder / "data.npz"), None)
    assert recipe.data.normalize.mean == [1.0, 2.5]
    quantize, train, export = (entry.stage for entry in recipe.stages)
    assert isinstance(quantize, Quantize)
    assert isinstance(train, Train)
    assert isinstance(export, Export)
    assert (quantize.target, quantize.samples) == ("arm", 512)
    assert train.optimizer.learning_rate == 1e-3
    assert train.distill is not None
    assert train.distill.soft_label.student_temperature == 4.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 10", "epoch: 10", "r.yaml:11: unknown key 'epoch' in stages.1.train; did you mean 'epochs'?"),
        ("run: {", "runn: {", "r.yaml:7: unknown key 'runn'; did you mean 'run'?"),
        ("seed: 3", "sead: 3", "r.yaml:7: unknown key 'sead' in run; did you mean 'seed'?"),
        ("split: test", "splitt: test", "r.yaml:5: unknown key 'splitt' in data.val; did you mean 'split'?"),
        ("- export:", "- exprot:", "r.yaml:14: unknown key 'exprot' in stages.2; did you mean 'export'?"),
        ("{weight: 0.7,", "{wait: 1,", "key 'wait' in stages.1.train.distill.soft_label; did you mean 'weight'?"),
        ("seed: 3", "xyz: 3", "r.yaml:7: unknown key 'xyz' in run; known keys: name, folder, seed, workers"),
        ("epochs: 10", "epochs: ten", "r.yaml:11: stages.1.train.epochs: expected a whole number, got text 'ten'"),
        ("epochs: 10", "epochs: 1.5", "r.yaml:11: stages.1.train.epochs: expected a whole number, got 1.5"),
        ("epochs: 10", "epochs: true", "stages.1.train.epochs: expected a whole number, got true"),
        ("epochs: 10", "epochs: '10'", "stages.1.train.epochs: expected a whole number, got text '10'"),
        ("epochs: 10", "epochs: 0", "stages.1.train.epochs: expected at least 1, got 0"),
        ("epochs: 10", "epochs:", "stages.1.train.epochs: expected a whole number, got nothing"),
        ("1e-3}", "fast}", "r.yaml:12: stages.1.train.optimizer.learning_rate: expected a number, got text 'fast'"),
        ("optimizer: {learning_rate: 1e-3}", "optimizer: sgd", "expected keys and values, got text 'sgd'"),
        ("1e-3}", "1e-3, name: adamv}", "expected 'sgd' or 'adamw', got text 'adamv'; did you mean 'adamw'?"),
        ("target: arm", "target: ram", "r.yaml:9: stages.0.quantize.target: expected 'arm' or 'x64', got text 'ram'"),
        ("[1, 2.5]", "[1, two]", "r.yaml:6: data.normalize.mean.1: expected a number, got text 'two'"),
        ("[1, 2.5]", "[1]", "r.yaml:6: data.normalize: expected as many stds as means (1), got 2"),
        ("[1e-1, 2]", "[0, 2]", "data.normalize.std.0: expected more than 0.0, got 0"),
        ("model: student.onnx", "model: 3", "r.yaml:1: model: expected the path of an ONNX file, got 3"),
        ("model: student.onnx\n", "", "r.yaml:1: key 'model' is missing"),
        ("name: mine", "name: ../mine", "run.name: expected a plain name without slashes, got text '../mine'"),
        ("name: mine", "name: '..'", "run.name: expected a plain name"),
        ("- export:", "- export:\n    quantize:", "r.yaml:14: stages.2: expected one stage an entry"),
        ("- export:", "- export", "r.yaml:14: stages.2: expected keys and values, got text 'export'"),
        ("train: data.npz", "train: 5", "r.yaml:4: data.train: expected keys and values, got 5"),
        ("train: data.npz", "train: [data.npz]", "r.yaml:4: data.train: expected keys and values, got a list of 1"),
        ("train: data.npz", "train: {given: [1]}", "r.yaml:4: unknown key 'given'"),
        ("train: data.npz", "train: {split: train}", "r.yaml:4: data.train: expected a path"),
    ],
)  # fmt: skip
def test_errors_name_line_key_expected_and_got(folder: Path, old: str, new: str, message: str) -> None:
    assert message in fault(folder, old, new)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model: student.onnx", "model: gone.onnx", "r.yaml:1: model: file not found: gone.onnx does not exist"),
        ("teachers/teacher.onnx", "t.onnx", "r.yaml:2: teacher: file not found: t.onnx does not exist"),
        ("train: data.npz", "train: d/e.npz", "r.yaml:4: data.train.path: file not found: d/e.npz does not exist"),
    ],
)
def test_missing_files_are_named_with_line_and_resolved_path(folder: Path, old: str, new: str, message: str) -> None:
    assert fault(folder, old, new) == message


def test_all_faults_are_told_at_once_in_the_order_of_lines(folder: Path) -> None:
    bad = RECIPE.replace("seed: 3", "sead: 3").replace("epochs: 10", "epochs: ten").replace("target:", "targte:")
    (folder / "r.yaml").write_text(bad)
    with pytest.raises(RecipeError) as error:
        load_recipe(folder / "r.yaml")
    lines = [int(line.split("r.yaml:")[1].split(":")[0]) for line in str(error.value).splitlines()]
    assert lines == [7, 9, 11]


def test_overrides_and_their_errors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(folder / "r.yaml", ["stages.1.train.epochs=2", "run.name=other", "teacher="])
    train = recipe.stages[1].stage
    assert isinstance(train, Train)
    assert (train.epochs, recipe.run.name, recipe.teacher) == (2, "other", None)
    with pytest.raises(
        RecipeError, match=r"overrides=\[.stages\.1\.train\.epoch=2.\]`: unknown key 'epoch' .*mean 'epochs'"
    ):
        load_recipe(folder / "r.yaml", ["stages.1.train.epoch=2"])
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.npz").write_bytes(b"")
    monkeypatch.chdir(elsewhere)
    recipe = load_recipe(folder / "r.yaml", ["data.train=mine.npz"])
    assert recipe.data.train is not None
    assert recipe.data.train.path == str(elsewhere / "mine.npz")
    with pytest.raises(
        RecipeError, match=r"overrides=\[.model=gone.\]`: model: file not found: .*elsewhere/gone does not exist"
    ):
        load_recipe(folder / "r.yaml", ["model=gone"])


def test_paths_are_relative_to_the_file_they_are_written_in(folder: Path) -> None:
    (folder / "teachers" / "base.yaml").write_text("teacher: teacher.onnx\n")
    (folder / "r.yaml").write_text(RECIPE.replace("teacher: teachers/teacher.onnx", "include: teachers/base.yaml"))
    assert load_recipe(folder / "r.yaml").teacher == str(folder / "teachers" / "teacher.onnx")


def test_a_faulty_include_is_named_itself(folder: Path) -> None:
    (folder / "base.yaml").write_text("\nrun: {sead: 1}\n")
    (folder / "r.yaml").write_text("include: base.yaml\n" + RECIPE)
    with pytest.raises(RecipeError, match=r"base\.yaml:2: unknown key 'sead' in run"):
        load_recipe(folder / "r.yaml")


def test_the_resolved_recipe_reads_back_as_itself(folder: Path) -> None:
    recipe = load_recipe(folder / "r.yaml")
    text = dump_recipe(recipe, {"versions": {"onnx": "1"}})
    (folder / "resolved.yaml").write_text(text)
    again = load_recipe(folder / "resolved.yaml")
    assert again.provenance == {"versions": {"onnx": "1"}}
    assert again.model_copy(update={"provenance": None}) == recipe
    assert yaml.safe_load(text)["stages"][1]["train"]["batch"] == 64


def test_the_name_defaults_to_the_file(folder: Path) -> None:
    (folder / "r.yaml").write_text(RECIPE.replace("name: mine, ", ""))
    assert load_recipe(folder / "r.yaml").run.name == "r"


def test_from_python_models_and_data_may_be_objects() -> None:
    graph = mlp()
    arrays = {"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.zeros(4, np.int64)}
    recipe = parse_recipe({"model": graph, "data": {"train": arrays}, "stages": [{"export": {}}]})
    assert isinstance(recipe, Recipe)
    assert recipe.model is graph
    assert recipe.data.train is not None
    assert recipe.data.train.given is arrays
    assert recipe.run.name == "mlp"
    assert "given from Python" in dump_recipe(recipe)


def test_from_python_errors_name_the_key() -> None:
    with pytest.raises(RecipeError, match="the recipe: unknown key 'stage'; did you mean 'stages'"):
        parse_recipe({"model": mlp(), "stage": []})
    with pytest.raises(RecipeError, match="stages: expected at least 1 in the list, got a list of 0"):
        parse_recipe({"model": mlp(), "stages": []})
    with pytest.raises(RecipeError, match="model: expected the path of an ONNX file, got an object of type object"):
        parse_recipe({"model": object(), "stages": [{"export": {}}]})
