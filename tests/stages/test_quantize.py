"""The quantize stage: fake-quant nodes whose scales come from the data, and nothing else changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxslim.analysis.cost import cost
from onnxslim.analysis.precision import TARGET_KEY
from onnxslim.builders import small_cnn
from onnxslim.data import Preprocess, Samples
from onnxslim.data.dataset import ArrayDataset
from onnxslim.errors import DataError, ModelError, OptionError
from onnxslim.evaluation import open_session
from onnxslim.ir.graph import Dim, Graph
from onnxslim.ir.onnx_io import to_bytes
from onnxslim.ir.rewrite import Context
from onnxslim.runtime.capabilities import capabilities
from onnxslim.stages import Data, Export, Quantize, RunContext
from onnxslim.stages.export import target_of
from onnxslim.targets import load_target
from passes.quantize import InsertFakeQuant
from tests.fixed_range import FixedRange

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


def test_the_target_is_noted_and_read_off_the_grids_where_it_is_not(dataset: ArrayDataset) -> None:
    for target, bits in (("x64", None), ("arm", 5)):
        graph = (
            Quantize(target=target, activation_bits=bits, samples=8)
            .run(small_cnn((4,), classes=6), context(dataset))
            .graph
        )
        assert graph.metadata[TARGET_KEY] == target_of(graph) == target
        graph.metadata[TARGET_KEY] = "x64" if target == "arm" else "arm"  # which takes no such activations
        assert target_of(graph) == target
        del graph.metadata[TARGET_KEY]  # a file of before
        assert target_of(graph) == target
    assert target_of(small_cnn((4,))) == "x64"


def test_wrong_data_and_wrong_skips_are_found_by_the_check(dataset: ArrayDataset) -> None:
    with pytest.raises(DataError, match="do not fit model input"):
        Quantize().check(small_cnn((4,), image=(3, 8, 8)), context(dataset))
    with pytest.raises(OptionError, match="'haed' matches no node .*near names: head"):
        Quantize(skip=["haed"]).check(small_cnn((4,)), context(dataset))
    Quantize(skip=["head"]).check(small_cnn((4,)), context(dataset))


def test_calibration_samples_are_drawn_by_the_seed(dataset: ArrayDataset) -> None:
    def drawn(samples: int, seed: int) -> np.ndarray:
        batches = Samples.of(small_cnn((4,)), dataset, PREPROCESS).drawn(samples, 4, seed)
        return np.concatenate([feeds["image"] for feeds in batches])

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
    monkeypatch.setattr("onnxslim.stages.quantize.host_target", lambda: "x64")
    assert Quantize(weight_bits=bits, target="arm").note is None  # measured by the integer evaluator, not here
    note = Quantize(weight_bits=bits).note
    assert (note is not None and "`weight_bits=7`" in note) == told


@pytest.mark.parametrize("size", [(1, 8, 8), (1, "h", "w"), (None, None, None)])
def test_the_share_of_the_macs_is_known_for_sizes_that_the_data_give(
    dataset: ArrayDataset, size: tuple[Dim, ...]
) -> None:
    graph = small_cnn((4, 8), classes=6)
    graph.set_type(graph.inputs[0], graph.inputs[0].dtype, ("N", *size))
    summary = Quantize(skip=["head"], samples=1000).run(graph, context(dataset)).summary
    assert (summary["int8_layers"], summary["layers"], summary["samples"]) == (2, 3, 40)
    by_node = {row.op + str(row.macs): row.macs for row in cost(small_cnn((4, 8), classes=6)).by_node if row.macs}
    total = sum(by_node.values())
    assert summary["int8_macs"] == pytest.approx((total - by_node["Gemm48"]) / total)


def test_infinite_weights_and_data_are_named(dataset: ArrayDataset) -> None:
    graph = small_cnn((4, 8), classes=6, batchnorm=False)
    bias = graph.operand(graph.node_named("head"), 2)
    assert bias.array is not None
    array = bias.array.copy()
    array[1] = np.nan
    graph.set_array(bias, array)
    with pytest.raises(ModelError, match=rf"node 'head' \(Gemm\): '{bias.name}' holds NaN in 1 of 6 elements"):
        Quantize().check(graph, context(dataset))
    Quantize(skip=["head"]).check(graph, context(dataset))
    images = np.zeros((40, 8, 8, 1), np.float32)
    images[7, 1] = np.inf
    with pytest.raises(DataError, match="The data hold NaN or infinity: sample 7 for input"):
        Quantize().run(small_cnn((4, 8), classes=6), context(ArrayDataset({"image": images})))


def test_bits_that_are_asked_for_stay_on_a_target_of_reduced_range() -> None:
    reduced = Context(target=replace(load_target("x64"), reduce_range=True))
    for asked, given in ((None, 7), (8, 8), (5, 5)):
        graph = small_cnn((4,), classes=6, batchnorm=False)
        InsertFakeQuant(asked, calibrator=FixedRange(-1.0, 1.0))(graph, reduced)
        bits = {n.attr("bits") for n in graph.nodes() if n.op == "FakeQuant" and n.attr("kind") == "weight"}
        assert bits == {given}


@pytest.mark.parametrize("name", ["android", "ios", "arm"])
def test_phones_name_the_arm_target(name: str) -> None:
    assert Quantize(target=name).target == "arm"
    assert Export(targets=[name, "x64"]).targets == ["arm", "x64"]
