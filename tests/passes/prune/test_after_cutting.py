"""A cut model is a model like others: written, read, quantised, trained and exported with no special case."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxslim.analysis.channels import find_groups
from onnxslim.analysis.cost import cost
from onnxslim.builders import small_cnn
from onnxslim.data import ArrayDataset, Preprocess
from onnxslim.evaluation import evaluate
from onnxslim.ir.onnx_io import read, write
from onnxslim.ir.text import to_text
from onnxslim.ir.verify import verify
from onnxslim.stages import Data, Export, Quantize, RunContext, Train
from passes.prune import CutChannels
from tests.passes.prune.conftest import some_units

PREPROCESS = Preprocess((100.0,), (50.0,))


def test_from_the_cut_to_the_int8_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    labels = np.arange(60) % 6
    images = rng.integers(0, 100, (60, 8, 8, 1)).astype(np.uint8)
    images[np.arange(60), labels] += 150
    dataset = ArrayDataset({"image": images, "label": labels})
    context = RunContext(tmp_path, Data({"train": lambda: dataset}, PREPROCESS))

    whole = small_cnn((8, 16), classes=6, depthwise=True)
    graph = whole.copy()
    CutChannels(some_units(find_groups(graph), rng))(graph)
    verify(graph)
    assert cost(graph).macs < 0.6 * cost(whole).macs
    write(graph, tmp_path / "cut.onnx")
    again = read(tmp_path / "cut.onnx")
    verify(again)
    assert to_text(again).count(" = Conv(") == to_text(graph).count(" = Conv(") == 3
    assert evaluate(again, dataset, PREPROCESS).agreement(evaluate(graph, dataset, PREPROCESS)) == 1

    quantised = Quantize(samples=60).run(again, context).graph
    train = Train(epochs=2, batch=20, layout="plain")
    train.check(quantised, context)
    trained = train.run(quantised, context).graph
    verify(trained)
    Export(ort=False).run(trained, context)
    fake = evaluate(trained, dataset, PREPROCESS)
    assert evaluate(tmp_path / "model.onnx", dataset, PREPROCESS).agreement(fake) >= 0.95
    assert len(find_groups(trained).free) == 2  # what fake-quant was put on can be cut as before
