"""A calibrator of two phases, a range and then a histogram inside of it: a module and a line in the table."""

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
from typer.testing import CliRunner

from onnxslim.builders import small_cnn
from onnxslim.calibration import Range, gather
from onnxslim.cli import app
from onnxslim.data import ArrayDataset
from onnxslim.evaluation import open_session
from onnxslim.ir.onnx_io import read, write
from onnxslim.recipe import parse_recipe
from onnxslim.stages import Data, RunContext
from onnxslim.stages.export import lower

rng = np.random.default_rng(0)
graph = small_cnn((8, 16), classes=6, batchnorm=False)
name = graph.inputs[0].name
clean = rng.standard_normal((64, 8, 8, 1), np.float32)
seen = clean.copy()
seen[5, 3, 4, 0], seen[40, 1, 1, 0] = 300, -200  # two of 4,096 numbers
feeds = {name: clean.transpose(0, 3, 1, 2)}
(exact,) = open_session(graph).run(feeds).values()
found = {}
for calibrator in ({"name": "min_max"}, {"name": "percentile", "percent": 99.9}):
    stages = [{"quantize": {"calibrator": calibrator, "samples": 64, "batch": 16}}]
    stage = parse_recipe({"model": graph, "data": {}, "stages": stages}).stages[0].stage
    steps = []
    data = Data({"train": lambda: ArrayDataset({"image": seen})})
    context = RunContext(Path(), data, progress=lambda *at: steps.append(at))
    stage.check(graph, context)
    stage.foresee(graph, context)
    quantized = stage.run(graph, context).graph
    node = quantized.producer(quantized.value(f"{name}.quantized"))
    low, high = quantized.constant_of(quantized.operand(node, 3)).tolist()
    errors = []
    for model in (quantized, lower(quantized, "x64")[0]):
        (rounded,) = open_session(model).run(feeds).values()
        errors.append(float(10 * np.log10(np.square(exact).sum() / np.square(rounded - exact).sum())))
    found[calibrator["name"]] = {"range": [low, high], "snr": errors, "batches": len(steps)}
folder = Path(sys.argv[1])
write(graph, folder / "float.onnx")
np.savez(folder / "seen.npz", image=seen)
command = ["quantize", str(folder / "float.onnx"), "-o", str(folder / "int8.onnx"), "--data", str(folder / "seen.npz")]
done = CliRunner().invoke(app, [*command, "--calibrator", "percentile"])
assert done.exit_code == 0, done.output
shipped = read(folder / "int8.onnx")
first = next(node for node in shipped.nodes() if node.op == "QuantizeLinear")
found["scale"] = float(shipped.constant_of(shipped.operand(first, 1)))
found["wanted"] = np.quantile(seen, [0.0005, 0.9995]).tolist()
print(json.dumps(found))
"""


def test_outliers_are_clipped(extend: Callable[[str], Extension], tmp_path: Path) -> None:
    engine = extend("histogram_calibrator")
    assert (engine.new_files, engine.new_lines) == (1, 1)
    (tmp_path / "program.py").write_text(PROGRAM)
    found = json.loads(engine.run(tmp_path / "program.py", str(tmp_path)))
    whole, most = found["min_max"], found["percentile"]
    assert whole["range"] == [-200, 300]
    assert most["range"] == pytest.approx(found["wanted"], abs=2 * 500 / 4096)  # two bins
    assert (whole["batches"], most["batches"]) == (4, 8)  # one run over the data a phase
    assert found["scale"] < 0.1 * 500 / 255  # the command: of what min_max gives
    for before, after in zip(whole["snr"], most["snr"]):  # of the fake-quant graph, and of the int8 model
        assert after > before + 6  # dB: half the error at least
