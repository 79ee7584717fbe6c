"""The export stage: the files it writes, what they compute, and what they note."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxslim.builders import small_cnn
from onnxslim.data import Preprocess
from onnxslim.data.dataset import ArrayDataset
from onnxslim.evaluation import evaluate, open_session
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import read
from onnxslim.runtime.capabilities import capabilities
from onnxslim.stages import Data, Export, Quantize, RunContext
from onnxslim.stages.export import export_model
from onnxslim.stages.preprocessing import noted_preprocess

PREPROCESS = Preprocess((100.0,), (50.0,))


@pytest.fixture(scope="module")
def dataset() -> ArrayDataset:
    rng = np.random.default_rng(5)
    labels = np.arange(60) % 6
    return ArrayDataset({"image": rng.integers(0, 255, (60, 8, 8, 1)).astype(np.uint8), "label": labels})


@pytest.fixture(scope="module")
def quantized(dataset: ArrayDataset) -> Graph:
    graph = small_cnn((8, 16), classes=6)
    return Quantize(samples=60, weight_bits=capabilities().exact_weight_bits).apply(graph, dataset, PREPROCESS).graph


def context(folder: Path, dataset: ArrayDataset) -> RunContext:
    return RunContext(folder, Data({"train": lambda: dataset}, PREPROCESS))


def test_both_targets_are_written_and_predict_what_the_fake_quant_graph_does(
    tmp_path: Path, dataset: ArrayDataset, quantized: Graph
) -> None:
    result = Export(targets=["x64", "arm"]).run(quantized, context(tmp_path, dataset))
    assert result.graph is quantized
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    files = ["model.onnx", "model.ort", "required_operators.config"]
    assert names == sorted(files + [f"arm/{name}" for name in files])
    fake = evaluate(quantized, dataset, PREPROCESS)
    for file, kind in (("model.onnx", onnx.TensorProto.UINT8), ("arm/model.onnx", onnx.TensorProto.INT8)):
        path = tmp_path / file
        model = onnx.load(path)
        assert not model.graph.value_info
        constants = {t.name: t.data_type for t in model.graph.initializer}
        pairs = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
        assert {constants[n.input[2]] for n in pairs} == {kind}
        assert noted_preprocess(path) == PREPROCESS
        assert evaluate(path, dataset, PREPROCESS).agreement(fake) >= 0.95
        assert evaluate(path.with_suffix(".ort"), dataset, PREPROCESS).agreement(fake) >= 0.95


def test_the_record_names_files_and_sizes(tmp_path: Path, dataset: ArrayDataset, quantized: Graph) -> None:
    result = Export(ort=False).run(quantized, context(tmp_path, dataset))
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    size = (tmp_path / "model.onnx").stat().st_size
    assert result.summary["files"] == [{"target": "x64", "precision": "int8", "onnx": "model.onnx", "onnx_bytes": size}]


def test_a_float_model_is_exported_in_float(tmp_path: Path, dataset: ArrayDataset) -> None:
    graph = small_cnn((4,), classes=6)
    exported = export_model(graph, "arm", tmp_path, PREPROCESS, name="mine")
    assert exported.precision == "float"
    images = PREPROCESS(dataset.read(np.arange(7))["image"])
    for model in (tmp_path / "mine.onnx", tmp_path / "mine.ort"):
        session = open_session(model)
        (out,) = session.run({session.inputs[0].name: images}).values()
        (expected,) = open_session(graph).run({session.inputs[0].name: images}).values()
        assert np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()


def test_preprocessing_already_noted_stays(tmp_path: Path, quantized: Graph, dataset: ArrayDataset) -> None:
    export_model(quantized, "x64", tmp_path, PREPROCESS, ort=False)
    export_model(read(tmp_path / "model.onnx"), "x64", tmp_path / "again", None, ort=False)
    assert noted_preprocess(tmp_path / "again" / "model.onnx") == PREPROCESS
