"""Latency of several models in one run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxslim.errors import DataError, ModelError
from onnxslim.evaluation import ModelSource, measure_latency
from onnxslim.evaluation.latency import _summary
from onnxslim.ir.graph import DType, Graph

Make = Callable[..., Graph]


def test_slower_models_are_slower(make_model: Make) -> None:
    large = make_model(np.zeros((8, 100_000)))
    small = make_model(np.eye(8))
    seen: list[tuple[str, int, int]] = []
    found = measure_latency({"small": small, "large": large}, repeats=12, progress=lambda *a: seen.append(a))
    assert list(found) == ["small", "large"]
    assert found["small"].ratio == 1.0
    assert found["large"].ratio > 1.5
    for latency in found.values():
        assert 0 < latency.median_ms <= latency.p95_ms
        assert (latency.batch, latency.threads, latency.repeats) == (1, 1, 15)
    assert seen[-1] == ("measuring latency", 3, 3)


def test_batch_and_sample(make_model: Make) -> None:
    found = measure_latency({"m": make_model(np.eye(8), name="x")}, batch=3, sample=np.ones((2, 2, 2, 2)), repeats=2)
    assert found["m"].batch == 3
    assert found["m"].repeats == 2


def test_a_batch_that_is_written_into_a_model_is_used() -> None:
    models: dict[str, ModelSource] = {}
    for name, batch in (("free", "N"), ("four", 4)):
        graph = Graph(name)
        y = graph.op("Relu", graph.add_input("x", DType.FLOAT, (batch, 8)), name="y")
        graph.set_type(y, DType.FLOAT, (batch, 8))
        graph.add_output(y)
        models[name] = graph
    for sample in (None, np.ones((3, 8), np.float32)):
        found = measure_latency(models, sample=sample, repeats=2)
        assert (found["free"].batch, found["four"].batch) == (1, 4)
    with pytest.raises(DataError, match=r"Input 'x' of graph 'free': expected shape \(N, 8\), got \(1, 5\)"):
        measure_latency(models, sample=np.zeros((1, 5), np.float32))


def test_ratios_are_of_the_times_a_sample() -> None:
    eight, two = np.full((1, 5), 8.0), np.full((1, 5), 2.0)
    assert _summary(eight, two, 4, 1).ratio == 1.0
    assert _summary(eight, two, 4, 1).median_ms == 8.0


def test_errors(make_model: Make) -> None:
    with pytest.raises(DataError, match="from 1 to"):
        measure_latency({"m": make_model(np.eye(8))}, repeats=0)
    free = Graph("free")
    free.add_output(free.op("Relu", free.add_input("x", DType.FLOAT, ("N", 3, "H", "W")), name="y"))
    free.set_type(free.outputs[0], DType.FLOAT, ("N", 3, "H", "W"))
    with pytest.raises(ModelError, match=r"cannot make up input 'x' of shape .*give a sample"):
        measure_latency({"free": free})
    assert measure_latency({"free": free}, sample=np.zeros((1, 3, 5, 5)), repeats=1)["free"].median_ms > 0
