"""A stage that evaluates variants on an executor of processes: a module and a line in the table of stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.extensions.conftest import Extension

PROGRAM = """
import json, sys
from functools import partial
from pathlib import Path

import numpy as np

from onnxslim.builders import small_cnn
from onnxslim.evaluation import Store, evaluate_many
from onnxslim.recipe import parse_recipe
from onnxslim.runtime.session import Session
from onnxslim.stages import Data, RunContext
from onnxslim.stages.pick import top1

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    graph = small_cnn((8, 16), classes=6, batchnorm=False)
    image = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
    feeds = {graph.inputs[0].name: image.astype(np.float32).transpose(0, 3, 1, 2)}
    (scores,) = Session(graph).run(feeds).values()
    images = str(folder / "images.npz")
    np.savez(images, image=image, label=scores.argmax(axis=1))  # the whole model is always right
    options = {"images": images, "macs": [0.5, 1.0, 0.25], "top1": 1.0}
    stage = parse_recipe({"model": graph, "data": {}, "stages": [{"pick": options}]}).stages[0].stage
    context = RunContext(folder, Data({}), "0-pick", workers=2)
    result = stage.run(graph, context)
    cuts = {macs: stage._cut(macs, graph, context) for macs in (0.25, 0.5, 1.0)}
    here = evaluate_many(cuts, partial(top1, images=images))
    print(json.dumps({
        "picked": result.summary["picked"],
        "processes": list(result.summary["top1"].items()),
        "threads": [[macs, point.result] for macs, point in here.items()],
        "stored": sorted(Store(folder / "0-pick-points.jsonl").entries) == sorted(p.digest for p in here.values()),
    }))
"""


def test_a_stage_on_processes(extend: Callable[[str], Extension], tmp_path: Path) -> None:
    engine = extend("evaluating_stage")
    assert (engine.new_files, engine.new_lines) == (1, 1)
    (tmp_path / "program.py").write_text(PROGRAM)
    found = json.loads(engine.run(tmp_path / "program.py", str(tmp_path)))
    assert found["processes"] == found["threads"]
    assert found["processes"][-1] == [1.0, 1.0]
    assert all(accuracy < 1.0 for _, accuracy in found["processes"][:-1])
    assert found["picked"] == 1.0
    assert found["stored"]
