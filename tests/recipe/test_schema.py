"""Every key has a description and a default, and the stages are those of the list."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from onnxslim.builders import mlp
from onnxslim.errors import RecipeError
from onnxslim.ir.onnx_io import write
from onnxslim.recipe import describe, json_schema, load_recipe
from onnxslim.stages import STAGES, Train


def test_every_key_is_described() -> None:
    keys = list(describe())
    assert [key.path for key in keys if not key.description] == []
    assert [key.path for key in keys if not key.default and key.type != "keys"] == []
    assert len({key.path for key in keys}) == len(keys)


def test_every_stage_has_its_key() -> None:
    paths = {key.path for key in describe()}
    assert {f"stages[…].{stage.kind}" for stage in STAGES} <= paths
    assert "stages[…].train.distill.soft_label.teacher_temperature" in paths
    assert "data.train.given" not in paths


def test_only_the_model_and_the_stages_are_required() -> None:
    assert [key.path for key in describe() if key.default == "required"] == ["model", "stages[…]"]


def test_the_json_schema_is_json_and_strict() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"model", "stages"}


@pytest.mark.parametrize(
    "key",
    [
        "optimizer.learning_rate",
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "task_loss.weight",
        "distill.soft_label.weight",
        "distill.soft_label.student_temperature",
        "distill.mean_square.weight",
        "schedule.warmup_epochs",
    ],
)
@pytest.mark.parametrize("number", [".inf", "1e400", ".nan", "1e39"])  # the last is infinite in float32
def test_numbers_that_training_cannot_use_are_refused(tmp_path: Path, key: str, number: str) -> None:
    write(mlp(), tmp_path / "m.onnx")
    (tmp_path / "r.yaml").write_text(f"model: {tmp_path / 'm.onnx'}\nstages: [{{train: {{}}}}]\n")
    message = rf"stages\.0\.train\.{re.escape(key)}: expected (a finite number|at most 1000000\.0), got"
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "r.yaml", [f"stages.0.train.{key}={number}"])


def test_a_warm_up_longer_than_training_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup_epochs of at most 3, the epochs there are"):
        Train(epochs=3, schedule={"warmup_epochs": 3.5})
    assert Train(epochs=3, schedule={"warmup_epochs": 3.0}).schedule.warmup_epochs == 3
