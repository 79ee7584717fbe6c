"""A metric of the user's own: it is found, called, and what goes wrong in it is said with its place."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.data import ArrayDataset, Preprocess
from onnxslim.errors import DataError, OnnxSlimError, OptionError
from onnxslim.pruning.metric import load_metric

MODULE = """
import numpy as np
from onnxslim.errors import ModelError

def images(graph, dataset, preprocess):
    return np.float32(len(dataset))

def fails(graph, dataset, preprocess):
    return 1 / 0

def refuses(graph, dataset, preprocess):
    raise ModelError("not this one")

def nothing(graph, dataset, preprocess):
    pass

def text(graph, dataset, preprocess):
    return "good"

def nan(graph, dataset, preprocess):
    return float("nan")
"""
ARGUMENTS = (small_cnn((4,)), ArrayDataset({"image": np.zeros((3, 3, 8, 8), np.float32)}), Preprocess())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "metrics_of_mine.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "metrics_of_mine", raising=False)
    return tmp_path


def test_a_number_of_any_kind_will_do(here: Path) -> None:
    assert load_metric("metrics_of_mine:images")(*ARGUMENTS) == 3.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fails",
            r"'metrics_of_mine:fails' failed: ZeroDivisionError: division by zero \(.*metrics_of_mine.py, line 9",
        ),
        ("refuses", "^not this one$"),
        ("nothing", "returned None: expected a finite number"),
        ("text", "returned 'good': expected a finite number"),
        ("nan", "returned nan: expected a finite number"),
    ],
)
def test_what_goes_wrong_is_said(here: Path, name: str, message: str) -> None:
    with pytest.raises(OnnxSlimError, match=message) as error:
        load_metric(f"metrics_of_mine:{name}")(*ARGUMENTS)
    assert isinstance(error.value, DataError) == (name != "refuses")


def test_a_module_that_cannot_be_read_is_named(here: Path) -> None:
    (here / "broken_metrics_of_mine.py").write_text("def metric(:\n")
    with pytest.raises(OptionError, match="cannot import 'broken_metrics_of_mine' .*: SyntaxError"):
        load_metric("broken_metrics_of_mine:metric")
