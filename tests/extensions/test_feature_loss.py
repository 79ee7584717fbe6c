"""A loss on values inside of student and teacher, with a projection of its own: a module and a line in the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.extensions.conftest import Extension

PROGRAM = """
import json, sys
from pathlib import Path

import numpy as np
import safetensors

from onnxslim import compress
from onnxslim.builders import small_cnn
from onnxslim.ir.onnx_io import read, write

folder = Path(sys.argv[1])
write(small_cnn((4, 8), classes=6), folder / "student.onnx")
write(small_cnn((8, 16), classes=6, seed=1), folder / "teacher.onnx")
images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
data = {"train": {"image": images, "label": np.arange(64) % 6}, "normalize": {"mean": [100], "std": [60]}}


def trained(name, **options):
    train = {
        "epochs": 4, "batch": 32, "task_loss": {"weight": 0.5}, "optimizer": {"clip_norm": 1.0, "learning_rate": 0.02},
        "distill": {"feature": {"student": "conv2.relu", "teacher": "conv2.relu"}}, **options,
    }
    run = {"name": name, "folder": str(folder), "workers": 2}
    models = {"model": str(folder / "student.onnx"), "teacher": str(folder / "teacher.onnx")}
    report = compress({**models, "data": data, "run": run, "stages": [{"train": train}]})
    return [record["loss.feature"] for record in report.stages[0].summary["history"]]


merged, cached = trained("merged"), trained("cached", views=2)
with safetensors.safe_open(folder / "merged/checkpoints/0-train-0004/state.safetensors", "numpy") as file:
    shapes = {key: file.get_slice(key).get_shape() for key in file.keys() if key.endswith(":feature")}
shipped = sum(v.array.size for v in read(folder / "merged" / "model.onnx").initializers() if v.dtype.is_float)
print(json.dumps({"merged": merged, "cached": cached, "own": shapes, "shipped": shipped}))
"""


def test_a_feature_loss_with_a_projection(extend: Callable[[str], Extension], tmp_path: Path) -> None:
    engine = extend("feature_loss")
    assert (engine.new_files, engine.new_lines) == (1, 1)
    (tmp_path / "program.py").write_text(PROGRAM)
    found = json.loads(engine.run(tmp_path / "program.py", str(tmp_path)))
    assert found["merged"][-1] < 0.95 * found["merged"][0]
    assert found["cached"] == found["merged"]  # without augmentation, all views are alike
    assert list(found["own"].values()) == [[16, 8, 1, 1]] * 2  # the projection and its moment, of 8 and 16 channels
    # Two convolutions with the batch norms folded into them and the head: nothing of the loss, nothing of the teacher.
    assert found["shipped"] == (4 * 9 + 4) + (8 * 4 * 9 + 8) + (8 * 6 + 6)
