"""Step sizes of weights and activations that are learnt (LSQ): a module and a line in the table of scales."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.extensions.conftest import Extension

PROGRAM = """
import json, sys
from pathlib import Path

import numpy as np

from onnxslim import compress
from onnxslim.builders import small_cnn
from onnxslim.ir.dialect import is_fake_quant
from onnxslim.ir.graph import DType, Graph, Role
from onnxslim.ir.onnx_io import read, write
from onnxslim.runtime.session import Session
from onnxslim.training.learned import Learned
from onnxslim.training.optimizers import Sgd
from onnxslim.training.parameters import mark_parameters
from onnxslim.training.ports import Kind, Port
from onnxslim.training.state import State
from onnxslim.training.step import StepOptions, build_step
from passes.distill import MeanSquare

folder, rng = Path(sys.argv[1]), np.random.default_rng(0)


def gradients():
    # y = x · FakeQuant(w): by the step's graph, and by the paper's formula
    graph = Graph("one")
    x, w = rng.normal(size=(8, 5)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    s, target = np.float32([0.3, 0.5, 0.2, 1.0]), rng.normal(size=(8, 4)).astype(np.float32)
    constants = [graph.add_constant(name, a, role=role) for name, a, role in
                 (("w", w, Role.CONSTANT), ("s", s, Role.SCALE), ("z", np.zeros(4, np.float32), Role.SCALE))]
    grid = {"bits": 3, "signed": 1, "narrow": 1, "axis": 1, "kind": "weight"}
    rounded = graph.op("FakeQuant", *constants, name="rounded", domain="onnxslim", **grid)
    graph.set_type(rounded, DType.FLOAT, (5, 4))
    y = graph.op("MatMul", graph.add_input("x", DType.FLOAT, ("n", 5)), rounded, name="y")
    graph.set_type(y, DType.FLOAT, ("n", 4))
    graph.add_output(y)
    mark_parameters(graph)
    options = StepOptions((MeanSquare(),), teacher_as_input=True, labelled=False, scales=Learned())
    step = build_step(graph, 8, options, graph)
    feeds = {Port(Kind.DATA, "x"): x, Port(Kind.TEACHER, "teacher"): target}
    found = step.found(Session(step.graph, fuse_qdq=False).run(step.fed(feeds, State.of(graph, Sgd(), step).arrays)))
    u = w.astype(np.float64) / s
    q = np.clip(np.round(u), -3, 3)
    to_rounded = x.T @ (2 * (x @ (q * s) - target) / target.size)
    inside = np.abs(u) < 3.5
    return {"found": [found[Port(kind, n).gradient].reshape(-1).tolist() for kind, n in
                      ((Kind.SCALE, "s"), (Kind.PARAMETER, "w"))],
            "formula": [(to_rounded * np.where(inside, q - u, q)).sum(0).tolist(),
                        (to_rounded * inside).ravel().tolist()],
            "clipped": int((~inside).sum())}


labels = np.arange(96) % 6
images = rng.integers(0, 100, (96, 8, 8, 1)).astype(np.uint8)
images[np.arange(96), labels] += 150
data = {"train": {"image": images, "label": labels}, "normalize": {"mean": [100], "std": [50]}}
write(small_cnn((4, 8), classes=6), folder / "student.onnx")


def trained(name, **options):
    train = {"epochs": 8, "batch": 32, "optimizer": {"learning_rate": 0.3}, "layout": "plain", **options}
    quantize = {"samples": 96, "weight_bits": 4, "activation_bits": 4}
    report = compress({
        "model": str(folder / "student.onnx"), "data": data, "run": {"name": name, "folder": str(folder), "workers": 2},
        "stages": [{"quantize": quantize}, {"train": train}], "evaluate": {"latency_repeats": 0},
    })
    scales = [{n.name: graph.operand(n, 1).array.reshape(-1).tolist() for n in graph.nodes() if is_fake_quant(n)}
              for graph in (read(folder / name / "stages" / f"{number}.onnx") for number in (0, 1))]
    return [record["loss"] for record in report.stages[1].summary["history"]], scales


losses, scales = trained("learned", scales={"name": "learned"})
shipped = read(folder / "learned" / "model.onnx")
stored = [shipped.operand(n, 1).array.reshape(-1).tolist() for n in shipped.nodes() if n.op == "DequantizeLinear"]
print(json.dumps({"gradients": gradients(), "losses": losses, "scales": scales, "stored": stored,
                  "followed": trained("followed")[0]}))
"""


def test_learned_step_sizes(extend: Callable[[str], Extension], tmp_path: Path) -> None:
    engine = extend("learned_steps")
    assert (engine.new_files, engine.new_lines) == (1, 1)
    (tmp_path / "program.py").write_text(PROGRAM)
    found = json.loads(engine.run(tmp_path / "program.py", str(tmp_path)))
    gradients = found["gradients"]
    assert gradients["clipped"] > 0
    for got, expected in zip(gradients["found"], gradients["formula"], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert found["losses"][-1] < 0.8 * found["losses"][0]
    assert found["losses"] != found["followed"]
    before, after = found["scales"]
    assert {name.endswith("weight.fake_quant") for name in after} == {True, False}  # weights and activations
    for name, scales in after.items():
        assert min(scales) > 0
        assert np.abs(np.subtract(scales, before[name])).max() > 1e-4 * max(scales), name
    shipped = {name for name, scales in after.items() if any(np.array_equal(scales, one) for one in found["stored"])}
    folded = {f"conv{number}.weight.fake_quant" for number in (1, 2)}  # which the batch norm behind is multiplied into
    assert shipped == set(after) - folded
