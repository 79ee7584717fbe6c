"""A target profile with 16-bit activations: a YAML file, and no line of code."""

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
from onnxslim.analysis.cost import cost
from onnxslim.analysis.precision import precision_of
from onnxslim.builders import small_cnn
from onnxslim.cli import app
from onnxslim.data import open_dataset
from onnxslim.evaluation import evaluate, open_session
from onnxslim.evaluation.foreign import foreign_target, open_runner
from onnxslim.ir.onnx_io import read, write
from onnxslim.ir.quant_math import fake_quant, weight_scale
from onnxslim.stages.export import target_of

folder, rng = Path(sys.argv[1]), np.random.default_rng(0)
graph = small_cnn((8, 16), classes=6, batchnorm=False)
for node in graph.nodes():  # weights that int8 holds exactly: what differs is the activations
    weight = graph.input(node, 1)
    if node.op in ("Conv", "Gemm") and weight is not None:
        axis = 0 if node.op == "Conv" or node.attr("transB") else 1
        graph.set_array(weight, fake_quant(weight.array, weight_scale(weight.array, axis), narrow=True, axis=axis))
write(graph, folder / "float.onnx")
image = rng.standard_normal((96, 8, 8, 1), np.float32)
feeds = {graph.inputs[0].name: image.transpose(0, 3, 1, 2)}
(exact,) = open_session(graph).run(feeds).values()
np.savez(folder / "data.npz", image=image, label=exact.argmax(axis=1))

def snr(rounded):
    return float(10 * np.log10(np.square(exact).sum() / np.square(rounded - exact).sum()))

found = {}
for target in ("x64", "npu"):
    out = folder / f"{target}.onnx"
    quantize = ["quantize", str(folder / "float.onnx"), "-o", str(out), "--data", str(folder / "data.npz")]
    done = CliRunner().invoke(app, [*quantize, "--target", target])
    assert done.exit_code == 0, done.output
    made = read(out)
    precision = precision_of(made)
    found[target] = {
        "types": [t.name for t in precision.activations],
        "target": precision.target,
        "foreign": foreign_target(made),
        "macs": cost(made).macs,
        "of unknown cost": cost(made).unknown,
        "runtime": snr(*open_session(out).run(feeds).values()),
        "integer": snr(*open_runner(made).run(feeds).values()),
    }
fewer = onnxslim.quantize(graph, str(folder / "data.npz"), target="npu", activation_bits=8).graph
found["fewer"] = [precision_of(fewer).target, [t.name for t in precision_of(fewer).activations]]
found["macs"] = cost(graph).macs
recipe = {
    "model": graph, "data": {"train": str(folder / "data.npz")}, "run": {"folder": str(folder), "workers": 1},
    "stages": [{"quantize": {"target": "htp"}}, {"train": {"epochs": 1, "batch": 32}}, {"export": {"ort": False}}],
}
run = Path(onnxslim.compress(recipe).folder)
shipped = read(run / "model.onnx")
found["trained"] = {
    "types": [t.name for t in precision_of(shipped).activations],
    "top1": evaluate(run / "model.onnx", open_dataset(folder / "data.npz")).top1,
}
stage = read(run / "stages" / "1.onnx")
found["trained"]["target"] = target_of(stage)
export = ["export", str(run / "stages" / "1.onnx"), "--target", "x64", "-o", str(folder / "x")]
done = CliRunner().invoke(app, export)
found["for x64"] = [done.exit_code, done.output]
print(json.dumps(found))
"""


def test_16_bit_activations_are_data_alone(extend: Callable[[str], Extension], tmp_path: Path) -> None:
    """Of a network whose weights int8 holds exactly, 8 bits more make the error 256 times smaller (48 dB), but for what
    biases and float32 add."""
    engine = extend("target_of_16_bits")
    assert (engine.new_files, engine.new_lines) == (1, 0)
    (tmp_path / "program.py").write_text(PROGRAM)
    found = json.loads(engine.run(tmp_path / "program.py", str(tmp_path)))
    narrow, wide = found["x64"], found["npu"]
    assert (narrow["types"], narrow["target"]) == (["UINT8"], "x64")
    assert narrow["macs"] == wide["macs"] == found["macs"]
    assert wide["of unknown cost"] == []
    assert found["fewer"] == ["npu", ["UINT8"]]  # which it takes, too
    assert (wide["types"], wide["target"], wide["foreign"]) == (["UINT16"], "npu", "npu")
    for how in ("runtime", "integer"):  # ONNX Runtime, and the integer evaluator
        assert wide[how] > narrow[how] + 40  # dB
    assert (found["trained"]["types"], found["trained"]["target"]) == (["UINT16"], "npu")
    assert found["trained"]["top1"] > 0.8
    code, told = found["for x64"]
    assert code == 2
    assert "16 bits, but target 'x64' takes activations of 8: quantise the float model for it" in " ".join(told.split())
