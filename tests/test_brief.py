"""What calls give back is shown at a prompt in a few words, whatever it holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import onnxslim
from onnxslim.brief import Brief
from onnxslim.builders.small import small_cnn


@dataclasses.dataclass(frozen=True, repr=False)
class Result(Brief):
    """One of each kind of field."""

    numbers: tuple[float, ...]
    array: np.ndarray
    inner: Result | None = None
    text: str = ""


def test_numbers_and_lengths() -> None:
    result = Result((1 / 3,), np.zeros((2, 3), np.float32), Result(tuple(map(float, range(99))), np.zeros(4)))
    inner = "Result(numbers=<99>, array=float64[4])"
    assert repr(result) == f"Result(numbers=(0.333333,), array=float32[2, 3], inner={inner})"


@pytest.fixture(scope="module")
def model() -> onnxslim.Graph:
    return small_cnn((16, 32, 16), 4, (3, 32, 32))


@pytest.mark.parametrize(
    "what", ["graph", "simplify", "quantize", "plan", "prune", "inspect", "cost", "evaluate", "export"]
)
def test_every_result_is_short(what: str, model: onnxslim.Graph, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
    data = {"image": images, "label": np.arange(8) % 4}
    calls = {
        "graph": lambda: model,
        "simplify": lambda: onnxslim.simplify(model),
        "quantize": lambda: onnxslim.quantize(model, data),
        "plan": lambda: onnxslim.plan_pruning(model, macs=0.5),
        "prune": lambda: onnxslim.prune(model, macs=0.5),
        "inspect": lambda: onnxslim.inspect_model(model),
        "cost": lambda: onnxslim.cost(model),
        "evaluate": lambda: onnxslim.evaluate(model, onnxslim.open_dataset(data)),
        "export": lambda: onnxslim.export(model, "x64", tmp_path),
    }
    result = calls[what]()
    assert len(repr(result)) < 600 + len(str(tmp_path)) * 3
    assert " at 0x" not in repr(result)
    assert all(" at 0x" not in repr(item) for item in [*model.nodes(), *model.values()])
