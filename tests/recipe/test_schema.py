"""Every key has a description and a default, and the stages are those of the list."""

from __future__ import annotations

import json

from onnxslim.recipe import describe, json_schema
from onnxslim.stages import STAGES


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
