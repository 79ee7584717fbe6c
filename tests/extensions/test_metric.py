"""A metric: a module and a line in the table; recipe, command line and Python name it, and sensitivities are its."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.extensions.conftest import Extension

PROGRAM = """
import json, sys
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

import onnxslim
from onnxslim.builders import small_cnn
from onnxslim.cli import app
from onnxslim.ir.onnx_io import write
from onnxslim.recipe import parse_recipe
from onnxslim.runtime.session import Session

folder = Path(sys.argv[1])
graph = small_cnn((8, 16), classes=4, batchnorm=False, seed=5)  # one that tells half black images from others
image = np.random.default_rng(0).integers(0, 256, (64, 1, 1, 1), np.uint8) * np.ones((1, 8, 8, 1), np.uint8)
image[::2, :4] = 0
feeds = {graph.inputs[0].name: image.astype(np.float32).transpose(0, 3, 1, 2)}
(scores,) = Session(graph).run(feeds).values()
label = scores.argmax(axis=1)
second, first = np.argsort(np.bincount(label, minlength=4))[-2:]
label[np.flatnonzero(label == first)[:4]] = second  # four of the most common class are mislabelled
data = {"train": {"image": image, "label": label}, "val": {"image": image, "label": label}}
options = {"ratios": [0.5], "scope": ["conv1"], "restore_batchnorm": False}

def baseline(**metric):
    return onnxslim.sensitivity(graph, data, workers=1, **options, **metric).baseline

def recall(of):
    return float((scores.argmax(axis=1) == label)[label == of].mean())

write(graph, folder / "m.onnx")
np.savez(folder / "d.npz", image=image, label=label)
command = ["sensitivity", str(folder / "m.onnx"), "--data", str(folder / "d.npz"), "--split", "[:64]",
           "--ratios", "0.5", "--scope", "conv1", "--no-restore-batchnorm", "--metric", "balanced_accuracy,worst=true",
           "-o", str(folder / "s.json")]
said = CliRunner().invoke(app, command)
stage = {"prune": {"macs": 0.5, "metric": {"name": "balanced_accuracy", "worst": True}}}
recipe = parse_recipe({"model": graph, "data": {}, "stages": [stage]})
recalls = [recall(of) for of in np.unique(label)]
print(json.dumps({
    "expected": [float(np.mean(recalls)), min(recalls), float((scores.argmax(axis=1) == label).mean())],
    "found": [baseline(metric="balanced_accuracy"), baseline(metric={"name": "balanced_accuracy", "worst": True}),
              baseline()],
    "said": said.output.splitlines()[-1],
    "recipe": str(recipe.stages[0].stage.metric),
}))
"""


def test_a_metric(extend: Callable[[str], Extension], tmp_path: Path) -> None:
    engine = extend("metric")
    assert (engine.new_files, engine.new_lines) == (1, 1)
    (tmp_path / "program.py").write_text(PROGRAM)
    found = json.loads(engine.run(tmp_path / "program.py", str(tmp_path)).splitlines()[-1])
    assert found["found"] == found["expected"]
    assert len(set(found["found"])) == 3
    assert found["said"].endswith(f"1 points, baseline {found['expected'][1]:.6g}")
    assert found["recipe"] == "balanced_accuracy worst=True"
