"""gather: exact statistics, in one streamed run, whatever the batches."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.calibration import ChannelMoments, Extremes, Range, gather, gathering
from onnxslim.errors import DataError
from onnxslim.ir.graph import Array, DType, Graph
from onnxslim.ir.onnx_io import read, to_bytes
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.statistics import Statistic
from onnxslim.runtime.session import Session


def network() -> Graph:
    """x [N, 3, H, W] → conv → relu → pool → y."""
    graph = Graph("net")
    x = graph.add_input("x", DType.FLOAT, ["N", 3, 5, 5])
    w = graph.add_constant("w", np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32))
    conv = graph.op("Conv", x, w, name="conv")
    y = graph.op("Flatten", graph.op("Relu", conv, name="relu"), name="y")
    graph.set_type(y, DType.FLOAT)
    graph.add_output(y)
    infer_shapes(graph)
    return graph


def values(graph: Graph, x: Array, names: list[str]) -> dict[str, Array]:
    tapped = graph.copy()
    for name in names:
        if name != "x":
            tapped.add_output(tapped.value(name))
    return {**Session(tapped, optimize=False).run({"x": x}), "x": x}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(-100, 100), st.integers(0, 99))
def test_equal_to_numpy_over_everything(sizes: list[int], offset: float, seed: int) -> None:
    graph = network()
    x = (np.random.default_rng(seed).normal(size=(sum(sizes), 3, 5, 5)) + offset).astype(np.float32)
    names = ["x", "conv", "relu"]
    requests = [kind(name) for name in names for kind in (Range, ChannelMoments)]
    batches = [{"x": part} for part in np.split(x, np.cumsum(sizes)[:-1])]
    found = gather(graph, requests, batches, threads=1)
    assert list(found) == requests
    for name, array in values(graph, x, names).items():
        if name not in names:
            continue
        exact = array.astype(np.float64)
        extremes, moments = found[Range(name)], found[ChannelMoments(name)]
        assert moments.count == array.size // array.shape[1]
        assert moments.mean.dtype == moments.variance.dtype == np.float32
        np.testing.assert_allclose([extremes.low, extremes.high], [array.min(), array.max()], rtol=1e-5, atol=1e-4)
        scale = np.abs(exact).max() + 1e-6
        np.testing.assert_allclose(moments.mean, exact.mean((0, 2, 3)), atol=1e-5 * scale)
        np.testing.assert_allclose(moments.variance, exact.var((0, 2, 3)), rtol=1e-3, atol=1e-5 * scale)


def test_variance_beside_a_large_mean_is_not_lost() -> None:
    graph = network()
    x = (np.random.default_rng(0).normal(0, 0.1, (64, 3, 5, 5)) + 1000).astype(np.float32)
    request = ChannelMoments("x")
    moments = gather(graph, [request], [{"x": part} for part in np.split(x, 8)])[request]
    np.testing.assert_allclose(moments.variance, x.astype(np.float64).var((0, 2, 3)), rtol=1e-2)


def test_one_run_for_all_requests_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Counting(Session):
        def __init__(self, *args: object, **options: object) -> None:
            opened.append("session")
            super().__init__(*args, **options)

    monkeypatch.setattr(gathering, "Session", Counting)
    alive: list[int] = []

    def batches() -> Iterator[dict[str, Array]]:
        for number in range(5):
            alive.append(number)
            yield {"x": np.full((2, 3, 5, 5), number, np.float32)}

    seen: list[tuple[str, int, int]] = []
    requests = [Range(n) for n in ("x", "conv", "relu")] * 2
    found = gather(network(), requests, batches(), lambda *now: seen.append(now), total=5)
    assert len(found) == 3
    assert opened == ["session"]
    assert alive == [0, 1, 2, 3, 4]
    assert seen == [("calibrating", n, 5) for n in range(1, 6)]
    assert found[Range("x")] == Extremes(0, 4)


def test_memory_does_not_grow_with_the_data() -> None:
    graph = network()
    requests = [Range("conv"), ChannelMoments("conv")]

    def peak(count: int) -> int:
        tracemalloc.start()
        gather(graph, requests, ({"x": np.zeros((3000, 3, 5, 5), np.float32)} for _ in range(count)), threads=1)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(40) <= peak(4) + 500_000  # a batch has 900,000 bytes


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 2, 4, 4), (3, 1, 2, 2)])
@pytest.mark.parametrize("kind", [Range, ChannelMoments])
def test_a_nan_anywhere_is_not_hidden(kind: type[Range | ChannelMoments], place: tuple[int, ...]) -> None:
    x = np.ones((4, 3, 5, 5), np.float32)
    x[place] = np.nan
    request = kind("x")
    batches = [{"x": np.ones((2, 3, 5, 5), np.float32)}, {"x": x}, {"x": np.ones((2, 3, 5, 5), np.float32)}]
    assert not gather(network(), [request], batches)[request].finite


def test_infinity_is_a_range() -> None:
    x = np.ones((1, 3, 5, 5), np.float32)
    x[0, 0, 0, 0] = np.inf
    request = Range("x")
    assert gather(network(), [request], [{"x": x}])[request] == Extremes(1, np.inf)


def test_the_graph_is_not_changed(mobilenet: Path) -> None:
    graph = read(mobilenet)
    infer_shapes(graph)
    before = to_bytes(graph)
    requests = [Range(graph.outputs[0].name)]
    requests += [ChannelMoments(graph.result(n).name) for n in graph.nodes() if n.op == "Conv"]
    found = gather(graph, requests, [{"image": np.ones((2, 3, 32, 32), np.float32)}])
    assert list(found) == requests
    assert to_bytes(graph) == before


def test_nothing_asked_nothing_read() -> None:
    assert not gather(network(), [], iter(()))


@pytest.mark.parametrize(
    "request_, message",
    [
        (Range("nowhere"), "'nowhere' was asked for, but graph 'net' has no such value"),
        (ChannelMoments("vector"), "'vector' has the shape .*need a channel axis"),
        (Range("indices"), "'indices' was asked for, but it is INT64"),
    ],
)
def test_requests_that_cannot_be_met(request_: Statistic[Any], message: str) -> None:
    graph = network()
    graph.add_input("vector", DType.FLOAT, ["N"])
    graph.add_input("indices", DType.INT64, ["N", 2])
    with pytest.raises(DataError, match=message):
        gather(graph, [request_], [])


def test_no_data() -> None:
    with pytest.raises(DataError, match="at least one batch"):
        gather(network(), [Range("x")], [])
