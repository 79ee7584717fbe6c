"""A tiny job: a model of a few hundred weights, and images whose class is the bright row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.ir.onnx_io import write

RECIPE = """\
model: student.onnx
data:
  train: data.npz
  val: data.npz
  normalize: {mean: [100], std: [50]}
run: {name: mine, workers: 1}
stages:
  - quantize: {samples: 32}
  - export:
evaluate: {latency_repeats: 2}
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with student.onnx, teacher.onnx, data.npz and r.yaml, which is the current directory."""
    write(small_cnn((4, 8), classes=6), tmp_path / "student.onnx")
    write(small_cnn((8, 8), classes=6, seed=1), tmp_path / "teacher.onnx")
    rng = np.random.default_rng(3)
    labels = np.arange(120) % 6
    images = rng.integers(0, 100, (120, 8, 8, 1)).astype(np.uint8)
    images[np.arange(120), labels] += 150
    arrays = {}
    for split, part in (("train", slice(0, 80)), ("val", slice(80, 100)), ("test", slice(100, 120))):
        arrays[f"{split}_image"], arrays[f"{split}_label"] = images[part], labels[part]
    np.savez(tmp_path / "data.npz", **arrays)
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path
