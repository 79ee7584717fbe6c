"""An optimiser: a module and a line in the table; recipes name it, its options are checked, and it trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.extensions.conftest import Extension

PROGRAM = """
import json, sys
from pathlib import Path

import numpy as np

from onnxslim.builders import mlp
from onnxslim.errors import RecipeError
from onnxslim.ir.onnx_io import read
from onnxslim.recipe import describe, parse_recipe
from onnxslim.run import compress

folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
label = np.arange(64) % 4
image = rng.integers(0, 60, (64, 8, 8, 1)).astype(np.uint8)
for row, of in zip(image, label):
    row[2 * of : 2 * of + 2] += 180  # the bright rows tell the class
student = mlp(image=(1, 8, 8), hidden=(16,), classes=4)
before = {value.name: value.array.copy() for value in student.initializers()}

def recipe(**options):
    train = {"epochs": 6, "batch": 16, "take": "last", "layout": "plain", "schedule": {"name": "constant"}}
    return {
        "model": student,
        "data": {"train": {"image": image, "label": label}},
        "run": {"folder": str(folder), "name": "lion", "workers": 1},
        "evaluate": {"latency_repeats": 0},
        "stages": [{"train": {**train, "optimizer": {"name": "lion", **options}}}, {"export": {"ort": False}}],
    }

try:
    parse_recipe(recipe(momentum=0.5))
except RecipeError as error:
    refused = str(error)
compress(recipe(learning_rate=0.01, weight_decay=0.0))
after = {value.name: value.array for value in read(folder / "lion" / "stages" / "0.onnx").initializers()}
steps = np.concatenate([((after[name] - array) / 0.01).ravel() for name, array in before.items() if name in after])
losses = [json.loads(line).get("loss") for line in (folder / "lion" / "log.jsonl").read_text().splitlines()]
print(json.dumps({
    "refused": refused,
    "named": next(key.type for key in describe() if key.path.endswith("optimizer.name")),
    "most": float(np.abs(steps).max()),
    "off": float(np.abs(steps - np.round(steps)).max()),
    "losses": [loss for loss in losses if loss is not None],
}))
"""


def test_an_optimizer(extend: Callable[[str], Extension], tmp_path: Path) -> None:
    engine = extend("optimizer")
    assert (engine.new_files, engine.new_lines) == (1, 1)
    (tmp_path / "program.py").write_text(PROGRAM)
    found = json.loads(engine.run(tmp_path / "program.py", str(tmp_path)).splitlines()[-1])
    assert found["named"] == "sgd | adamw | lion"
    takes = "lion takes betas, weight_decay, clip_norm, learning_rate"
    assert found["refused"] == f"the recipe: stages.0.train.optimizer.momentum: an option of sgd; {takes}"
    assert found["most"] == pytest.approx(24, abs=1e-3)  # 6 epochs of 4 steps, each of the learning rate's size
    assert found["off"] < 1e-2  # of a step: 24 roundings of float32 are some 1e-5 of it
    assert found["losses"][-1] < 0.5 * found["losses"][0]
