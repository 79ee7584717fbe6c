"""ONNX Runtime's Trilu, of which the engine knows nothing: a module with its gradient, and a line a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.extensions.conftest import Extension

PROGRAM = """
import json, sys
from pathlib import Path

import numpy as np

from onnxslim import compress
from onnxslim.analysis.cost import cost
from onnxslim.builders import Network
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.onnx_io import read
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.session import Session
from passes.gradient import differentiate

folder, rng, found = Path(sys.argv[1]), np.random.default_rng(0), {}

# The gradient of Σ c · Trilu(x)².
small = Graph("small", ir_version=9)
small.opsets.update({"": 18, "com.microsoft": 1})
x, c = (small.add_input(name, DType.FLOAT, (2, 3, 4)) for name in "xc")
kept = small.op("Trilu", x, small.add_constant("k", np.array(1)), name="kept", domain="com.microsoft", upper=0)
loss = small.op("ReduceSum", small.op("Mul", c, small.op("Mul", kept, kept)), keepdims=0)
infer_shapes(small)
found["shape"] = kept.shape
small.add_output(differentiate(small, loss, [x])["x"])
feeds = {name: rng.standard_normal((2, 3, 4)).astype(np.float32) for name in "xc"}
(slope,) = Session(small).run(feeds).values()
found["error"] = float(np.abs(slope - np.tril(2 * feeds["c"] * feeds["x"], 1)).max())

# conv 1 → 16, the upper triangle of each channel's pixels, conv 16 → 8, mean, 2 classes
net = Network("net", (1, 8, 8), batchnorm=False)
x = net.conv(net.image, 16, name="first")
net.graph.opsets["com.microsoft"] = 1
kept = net.graph.op("Trilu", x, name="kept", domain="com.microsoft", upper=1)
infer_shapes(net.graph)
graph = net.finish(net.linear(net.global_pool(net.conv(kept, 8, name="second")), 2, name="head"))

# The sign of a spot decides.
label = rng.integers(0, 2, 512)
image = rng.standard_normal((512, 8, 8, 1)).astype(np.float32) * 0.1
image[np.arange(512), rng.integers(0, 3, 512), rng.integers(5, 8, 512), 0] += 4.0 * label - 2
data = {"path": str(folder / "data.npz")}
np.savez(data["path"], image=image, label=label)
compress({
    "model": graph,
    "data": {"train": {**data, "split": "[:384]"}, "val": {**data, "split": "[384:]"}},
    "run": {"name": "run", "folder": str(folder), "workers": 1},
    "stages": [
        {"train": {"epochs": 3, "batch": 32, "optimizer": {"name": "adamw", "learning_rate": 0.02}}},
        {"prune": {"macs": 0.6}},
        {"quantize": {}},
        {"export": {"targets": ["x64"], "ort": False}},
    ],
})
int8 = read(folder / "run" / "model.onnx")
feeds = {int8.inputs[0].name: image[384:].transpose(0, 3, 1, 2)}
for key, model in (("before", graph), ("after", int8)):
    (scores,) = Session(model).run(feeds).values()
    found[key] = float((scores.argmax(axis=1) == label[384:]).mean())
found["macs"] = [cost(graph).macs, cost(read(folder / "run" / "stages" / "1.onnx")).macs]
(node,) = (node for node in int8.nodes() if node.op == "Trilu")
(use,) = int8.uses(int8.result(node))
pairs = [int8.producer(int8.operand(node, 0)), use.node]
found["around"] = [pair.op for pair in pairs]
found["grids"] = [[int8.constant_of(int8.operand(pair, slot)).item() for slot in (1, 2)] for pair in pairs]
print(json.dumps(found))
"""


def test_trilu_is_trained_pruned_and_quantised_through(extend: Callable[[str], Extension], tmp_path: Path) -> None:
    engine = extend("op_with_facts")
    assert (engine.new_files, engine.new_lines) == (1, 6)  # facts, channels, two targets; the gradient and its import
    (tmp_path / "program.py").write_text(PROGRAM)
    found = json.loads(engine.run(tmp_path / "program.py", str(tmp_path)))
    assert found["shape"] == [2, 3, 4]
    assert found["error"] <= 1e-6  # two products in float32
    assert found["before"] < 0.7 < 0.95 < found["after"]  # of 128 images; the spot is all that there is to learn
    before, after = found["macs"]
    assert after <= 0.6 * before
    assert found["around"] == ["DequantizeLinear", "QuantizeLinear"]
    assert found["grids"][0] == found["grids"][1]  # values pass in float, to the same integers
