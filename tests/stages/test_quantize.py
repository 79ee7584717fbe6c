"""The quantize stage: fake-quant nodes whose scales come from the data, and nothing else changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.data import Preprocess
from onnxslim.data.dataset import ArrayDataset
from onnxslim.errors import DataError, RecipeError
from onnxslim.evaluation import open_session
from onnxslim.graph import Graph
from onnxslim.onnx_io import to_bytes
from onnxslim.runtime.capabilities import capabilities
from onnxslim.stages import Data, Quantize, RunContext
from onnxslim.stages.export import target_of
from onnxslim.stages.quantize import calibration_batches

PREPROCESS = Preprocess((100.0,), (50.0,))


@pytest.fixture
def dataset(rng: np.random.Generator) -> ArrayDataset:
    return ArrayDataset({"image": rng.integers(0, 255, (40, 8, 8, 1)).astype(np.uint8)})


def context(dataset: ArrayDataset) -> RunContext:
    return RunContext(Path(), Data({"train": lambda: dataset}, PREPROCESS))


def scores(graph: Graph, dataset: ArrayDataset) -> np.ndarray:
    images = PREPROCESS(dataset.read(np.arange(len(dataset)))["image"])
    session = open_session(graph)
    return session.run({session.inputs[0].name: images})[session.outputs[0].name]


@pytest.mark.parametrize("batchnorm", [False, True])
@pytest.mark.parametrize("target", ["x64", "arm"])
def test_the_graph_computes_nearly_the_same_on_a_grid(dataset: ArrayDataset, target: str, batchnorm: bool) -> None:
    graph = small_cnn((4, 8), classes=6, batchnorm=batchnorm)
    before = to_bytes(graph)
    result = Quantize(target=target, samples=40).run(graph, context(dataset))
    assert to_bytes(graph) == before
    assert target_of(result.graph) == target
    nodes = [n for n in result.graph.nodes() if n.op == "FakeQuant"]
    assert result.summary["fake_quant_nodes"] == len(nodes) > 0
    exact, rounded = scores(graph, dataset), scores(result.graph, dataset)
    assert not np.array_equal(exact, rounded)
    assert np.abs(exact - rounded).max() <= 0.05 * np.abs(exact).max()


def test_bits_and_skip_reach_the_nodes(dataset: ArrayDataset) -> None:
    graph = small_cnn((4, 8), classes=6, batchnorm=False)
    stage = Quantize(weight_bits=4, activation_bits=6, skip=["head"], samples=8)
    result = stage.run(graph, context(dataset))
    nodes = [n for n in result.graph.nodes() if n.op == "FakeQuant"]
    assert {(n.attr("kind"), n.attr("bits")) for n in nodes} == {("weight", 4), ("activation", 6)}
    head = result.graph.node_named("head")
    assert all(v is None or not v.name.endswith(".quantized") for v in result.graph.node_inputs(head))


def test_wrong_data_and_wrong_skips_are_found_by_the_check(dataset: ArrayDataset) -> None:
    with pytest.raises(DataError, match="do not fit model input"):
        Quantize().check(small_cnn((4,), image=(3, 8, 8)), context(dataset))
    with pytest.raises(RecipeError, match="'haed' matches no node .*near names: head"):
        Quantize(skip=["haed"]).check(small_cnn((4,)), context(dataset))
    Quantize(skip=["head"]).check(small_cnn((4,)), context(dataset))


def test_calibration_samples_are_drawn_by_the_seed(dataset: ArrayDataset) -> None:
    def drawn(samples: int, seed: int) -> np.ndarray:
        batches = calibration_batches(dataset, "x", PREPROCESS, samples, 4, seed)
        return np.concatenate([feeds["x"] for feeds in batches])

    assert np.array_equal(drawn(10, 1), drawn(10, 1))
    assert not np.array_equal(drawn(10, 1), drawn(10, 2))
    assert drawn(10, 1).shape == (10, 1, 8, 8)
    assert len(drawn(1000, 0)) == 40


@pytest.mark.parametrize(
    ("vnni", "bits", "told"),
    [(False, None, True), (False, 8, True), (False, 7, False), (True, None, False), (None, 8, False)],
)
def test_kernels_that_saturate_are_told_of(
    monkeypatch: pytest.MonkeyPatch, vnni: bool | None, bits: int | None, told: bool
) -> None:
    here = replace(capabilities(), vnni=vnni)
    monkeypatch.setattr("onnxslim.stages.quantize.capabilities", lambda: here)
    note = Quantize(weight_bits=bits).note
    assert (note is not None and "weight_bits: 7" in note) == told
