"""Models into which a batch size is written go through every command as they are, and keep it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxslim
from onnxslim.analysis.memory import activation_bytes, samples_within
from onnxslim.calibration import Range, gather
from onnxslim.data import open_dataset
from onnxslim.errors import OptionError
from onnxslim.ir.graph import Array, DType, Graph
from onnxslim.runtime.batches import in_batches_of


def classifier(batch: int | str, *, head: bool = True) -> Graph:
    """A convolution, a mean, a linear layer; with `head`, the batch is written into a Reshape's constant, too."""
    rng = np.random.default_rng(0)
    graph = Graph("net")
    value = graph.add_input("x", DType.FLOAT, [batch, 3, 8, 8])
    w = graph.add_constant("w", rng.standard_normal((16, 3, 3, 3)).astype(np.float32))
    value = graph.op("Conv", value, w, graph.add_constant("b", np.zeros(16, np.float32)), name="conv", pads=[1] * 4)
    value = graph.op("GlobalAveragePool", graph.op("Relu", value, name="relu"), name="mean")
    if head and isinstance(batch, int):
        value = graph.op("Reshape", value, graph.add_constant("target", np.array([batch, 16])), name="flat")
    else:
        value = graph.op("Flatten", value, name="flat")
    value = graph.op("Gemm", value, graph.add_constant("v", rng.standard_normal((16, 4)).astype(np.float32)), name="y")
    graph.set_type(value, DType.FLOAT, [batch, 4])
    graph.add_output(value)
    return graph


def data(count: int = 40) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    return {"x": rng.standard_normal((count, 3, 8, 8)).astype(np.float32), "label": rng.integers(0, 4, count)}


@pytest.mark.parametrize("batch", [1, 3])
def test_evaluating(batch: int) -> None:
    dataset = open_dataset(data())
    free = onnxslim.evaluate(classifier("N"), dataset)
    fixed = onnxslim.evaluate(classifier(batch), dataset)
    np.testing.assert_array_equal(fixed.predictions, free.predictions)
    rows = onnxslim.compare({"a": classifier(batch), "b": classifier("N")}, dataset, latency_repeats=1)
    assert [row.latency.batch for row in rows if row.latency] == [batch, 1]


@pytest.mark.parametrize("batch", [1, 3])
def test_quantizing_gives_the_same_scales(batch: int) -> None:
    made = [onnxslim.quantize(classifier(size, head=False), data()).graph for size in (batch, "N")]
    assert made[0].inputs[0].shape == (batch, 3, 8, 8)
    scales = [{v.name: v.array for v in g.initializers() if v.array is not None} for g in made]
    assert scales[0].keys() == scales[1].keys()
    for name, array in scales[0].items():
        np.testing.assert_array_equal(array, scales[1][name], err_msg=name)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_whole_run(tmp_path: Path, batch: int) -> None:
    recipe: Mapping[str, Any] = {
        "model": classifier(batch),
        "teacher": classifier(batch),
        "data": {"train": data(), "val": data(20)},
        "run": {"name": "fixed", "folder": str(tmp_path), "workers": 1},
        "stages": [
            {"prune": {"macs": 0.6, "multiple": 1, "samples": 16}},
            {"quantize": {"samples": 16}},
            {"train": {"epochs": 1, "batch": 8, "layout": "plain", "distill": {}, "views": 1}},
            {"export": {"ort": False}},
        ],
        "evaluate": {"latency_repeats": 1},
    }
    report = onnxslim.compress(recipe)
    assert all(row.accuracy is not None for row in report.rows)
    assert onnxslim.read(tmp_path / "fixed" / "model.onnx").inputs[0].shape == (batch, 3, 8, 8)


def test_criteria_by_gradients_and_statistics() -> None:
    given = {"train": data()}
    cut = [
        onnxslim.prune(classifier(size, head=False), given, macs=0.6, multiple=1, criterion="taylor", samples=16)
        for size in (3, "N")
    ]
    assert cut[0].plan.cuts == cut[1].plan.cuts
    weights = [found.graph.value("w").array for found in cut]
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-5, atol=1e-6)  # a batch norm went through them


def test_batches_are_regrouped_in_order() -> None:
    x = np.arange(11, dtype=np.float32)[:, None]
    fives = [{"x": x[i : i + 5]} for i in range(0, 11, 5)]
    graph = Graph("net")
    graph.add_input("x", DType.FLOAT, [4, 1])
    made = [feeds["x"][:, 0].tolist() for feeds in in_batches_of(graph, fives)]
    assert made == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 8]]  # the last one is filled up
    graph.set_type(graph.value("x"), shape=("N", 1))
    assert [feeds["x"].shape[0] for feeds in in_batches_of(graph, fives)] == [5, 5, 1]


def test_statistics_do_not_depend_on_the_batch() -> None:
    request = Range("conv")
    batches = [{"x": data()["x"][i : i + 7]} for i in range(0, 40, 7)]
    found = [gather(classifier(size), [request], batches)[request] for size in (1, 3, "N")]
    for other in found[:2]:
        assert other == found[2]


def test_the_batch_follows_from_a_budget_of_activations() -> None:
    """conv and relu make 16·8·8 floats, the mean and its reshape 16, the head 4."""
    one = 4 * (2 * 16 * 64 + 2 * 16 + 4)
    assert activation_bytes(classifier("N")) == one
    assert activation_bytes(classifier(3)) == one
    assert samples_within(classifier("N"), 64) == 64
    assert samples_within(classifier("N"), 64, budget=10 * one) == 10
    assert samples_within(classifier("N"), 64, budget=10 * one, runs=2) == 5
    assert samples_within(classifier("N"), 64, budget=1) == 1


def test_large_images_are_calibrated_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def seen(graph: Graph, requests: Any, batches: Any, *args: Any, **options: Any) -> Any:
        kept = list(batches)
        sizes.extend(len(feeds["x"]) for feeds in kept)
        return gather(graph, requests, kept, *args, **options)

    graph, given = classifier("N"), data(6)
    budget = 2 * activation_bytes(graph) + 1
    monkeypatch.setattr("onnxslim.stages.quantize.gather", seen)
    monkeypatch.setattr("onnxslim.stages.quantize.samples_within", partial(samples_within, budget=budget))
    onnxslim.quantize(graph, given)
    assert sizes == [2, 2, 2]
    sizes.clear()
    onnxslim.quantize(graph, given, batch=4)
    assert sizes == [4, 2]
    with pytest.raises(OptionError, match="batch: expected .*at least 1, got 0|batch.*greater than or equal to 1"):
        onnxslim.quantize(graph, given, batch=0)
