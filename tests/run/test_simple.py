"""Quantising and exporting without a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxslim.data import Preprocess
from onnxslim.errors import OutputError, RecipeError
from onnxslim.evaluation import open_session
from onnxslim.onnx_io import read, to_bytes, write
from onnxslim.run import compress, export, quantize
from onnxslim.stages.preprocessing import noted_preprocess

PREPROCESS = Preprocess((100.0,), (50.0,))


def test_quantize_gives_what_a_run_gives(job: Path) -> None:
    compress("r.yaml")
    found = quantize("student.onnx", "data.npz", split="train", preprocess=PREPROCESS, samples=32)
    assert len(to_bytes(found.graph, value_info=False)) == (job / "runs" / "mine" / "model.onnx").stat().st_size
    images = np.random.default_rng(0).standard_normal((9, 1, 8, 8)).astype(np.float32)
    first, second = (open_session(model) for model in (found.graph, "runs/mine/model.onnx"))
    for mine, theirs in zip(first.run({"image": images}).values(), second.run({"image": images}).values(), strict=True):
        assert np.array_equal(mine, theirs)


def test_quantize_takes_the_preprocessing_that_a_model_notes(job: Path) -> None:
    found = quantize("student.onnx", "data.npz", split="train", preprocess=PREPROCESS)
    assert noted_preprocess(found.graph) == PREPROCESS
    graph = read("student.onnx")
    graph.metadata.update(found.graph.metadata)
    assert to_bytes(quantize(graph, "data.npz", split="train").graph) == to_bytes(found.graph)


def test_wrong_options_are_recipe_errors(job: Path) -> None:
    with pytest.raises(RecipeError, match="samples: expected at least 1, got 0"):
        quantize("student.onnx", "data.npz", split="train", samples=0)
    with pytest.raises(RecipeError, match="Unknown target 'amr'.*'arm'"):
        quantize("student.onnx", "data.npz", split="train", target="amr")
    with pytest.raises(RecipeError, match="Unknown target"):
        export("student.onnx", "amr", job)


def test_export_of_a_runs_stage_serves_the_other_target(job: Path) -> None:
    compress("r.yaml", overrides=["stages.1.export.targets=[x64, arm]"])
    exported = export("runs/mine/stages/0.onnx", "arm", job / "phone")
    assert (exported.target, exported.precision) == ("arm", "int8")
    assert exported.onnx.read_bytes() != (job / "runs" / "mine" / "model.onnx").read_bytes()
    with pytest.raises(OutputError, match=r"phone/model\.onnx exists already"):
        export("runs/mine/stages/0.onnx", "arm", job / "phone")
    export("runs/mine/stages/0.onnx", "arm", job / "phone", force=True)


def test_an_int8_model_is_exported_as_it_is(job: Path) -> None:
    found = quantize("student.onnx", "data.npz", split="train", preprocess=PREPROCESS)
    write(found.graph, "int8.onnx", value_info=False)
    exported = export("int8.onnx", "x64", job / "out")
    assert exported.ort is not None
    assert exported.ort.is_file()
    assert exported.onnx.stat().st_size <= (job / "int8.onnx").stat().st_size
