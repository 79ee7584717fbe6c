"""Each manifest of `models/` tells the truth about its file."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import yaml

from onnxslim.ir.onnx_io import read
from onnxslim.recipe import load_recipe

MODELS = Path(__file__).resolve().parents[1] / "models"
MANIFESTS = sorted(MODELS.glob("*/manifest.yaml"))
NEEDED = {"name", "title", "file", "sha256", "bytes", "parameters", "input", "output", "data", "source", "licence"}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.parent.name)
def test_manifest_agrees_with_its_file(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text("utf-8"))
    assert set(manifest) >= NEEDED
    assert manifest["name"] == path.parent.name
    content = (path.parent / manifest["file"]).read_bytes()
    assert len(content) == manifest["bytes"]
    assert hashlib.sha256(content).hexdigest() == manifest["sha256"]

    graph = read(path.parent / manifest["file"])
    assert graph.opset == manifest["opset"]
    weights = [v for v in graph.initializers() if v.dtype.is_float]
    assert sum(math.prod(v.static_shape) for v in weights) == manifest["parameters"]
    (image,), (logits,) = graph.inputs, graph.outputs
    for value, declared in ((image, manifest["input"]), (logits, manifest["output"])):
        assert value.name == declared["name"]
        assert value.shape is not None
        assert list(value.shape[1:]) == declared["shape"][1:]
    assert len(manifest["output"]["classes"]) == manifest["output"]["shape"][-1]
    assert len(manifest["input"]["mean"]) == len(manifest["input"]["std"]) == manifest["input"]["shape"][1]


def test_every_folder_of_models_has_a_manifest() -> None:
    folders = sorted(p.name for p in MODELS.iterdir() if p.is_dir())
    assert folders == [p.parent.name for p in MANIFESTS]
    assert folders


RECIPES = [p for p in sorted(MODELS.glob("*/*.yaml")) if "stages" in yaml.safe_load(p.read_text("utf-8"))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipes_are_valid_and_their_models_are_here(path: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.zip"
    data.touch()  # the recipes name the user's own copy of the data
    recipe = load_recipe(path, [f"data.{role}={data}" for role in ("train", "val", "test")])
    assert recipe.stages[-1].stage.kind in ("export", "train")
    distils = any(getattr(entry.stage, "distill", None) is not None for entry in recipe.stages)
    assert distils == (recipe.teacher is not None)
