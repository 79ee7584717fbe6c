"""What stages are given: data by role, the log, and options that are strict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from onnxslim.analysis.sizes import only_data_input
from onnxslim.builders import mlp
from onnxslim.data import Dataset
from onnxslim.data.dataset import ArrayDataset
from onnxslim.errors import DataError, OptionError
from onnxslim.ir.graph import DType
from onnxslim.stages import STAGES, Data, Quantize
from onnxslim.stages.base import Log


def test_data_are_opened_once_and_only_when_asked_for() -> None:
    opened: list[str] = []

    def opener() -> Dataset:
        opened.append("train")
        return ArrayDataset({"image": np.zeros((2, 4, 4, 1), np.uint8)})

    data = Data({"train": opener})
    assert (data.has("train"), data.has("val"), opened) == (True, False, [])
    assert data.get("train") is data.get("train")
    assert opened == ["train"]
    with pytest.raises(OptionError, match=r"data\.val: is needed here, .*given: train"):
        data.get("val")


def test_the_log_is_kept_across_runs(tmp_path: Path) -> None:
    Log(tmp_path / "log.jsonl")(event="a", n=1)
    log = Log(tmp_path / "log.jsonl")
    log(event="b")
    log(event="c")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["a", "b", "c"]
    Log()(event="nowhere")


def test_options_are_strict_and_frozen() -> None:
    for wrong in ({"samples": "5"}, {"sample": 5}, {"samples": 1.0}, {"target": "nowhere"}):
        with pytest.raises(ValidationError):
            Quantize.model_validate(wrong)
    stage = Quantize(samples=5)
    with pytest.raises(ValidationError):
        stage.samples = 6  # type: ignore[misc]


def test_kinds_are_distinct_and_documented() -> None:
    kinds = [stage.kind for stage in STAGES]
    assert len(set(kinds)) == len(kinds)
    assert all(stage.__doc__ for stage in STAGES)


def test_a_model_needs_exactly_one_input_for_the_data() -> None:
    graph = mlp()
    assert only_data_input(graph).name == graph.inputs[0].name
    graph.add_input("second", DType.FLOAT, (1,))
    with pytest.raises(DataError, match="expected one input to feed images to, got '.*', 'second'"):
        only_data_input(graph)
