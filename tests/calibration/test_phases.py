"""collect: what passes ask for, phase by phase, each phase in one run over the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest

from onnxslim.calibration import (
    Calibrator,
    ChannelMoments,
    Extremes,
    Range,
    collect,
    gather,
    invented,
)
from onnxslim.errors import DataError
from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.rewrite import Context, Outcome, Pass, Pipeline
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.statistics import Statistic, Statistics
from passes.quantize import InsertFakeQuant
from passes.simplify import RestoreBatchnorm


@dataclass(frozen=True)
class Average:
    total: float
    count: float

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.total))


@dataclass(frozen=True)
class AverageOutside(Statistic[Average]):
    """The mean of |x| over the elements that lie further out than a fraction of the range."""

    within: Extremes
    fraction: float
    what: ClassVar[str] = "average outside"

    @property
    def limit(self) -> float:
        return self.fraction * max(-self.within.low, self.within.high)

    def reduce(self, graph: Graph, value: Value, base: str) -> list[Value]:
        size = graph.op("Abs", value, name=f"{base}/size")
        far = graph.op("Greater", size, graph.add_constant("limit", np.float32(self.limit)), name=f"{base}/far")
        far = graph.op("Cast", far, name=f"{base}/ones", to=int(DType.FLOAT))
        return [graph.op("ReduceSum", v, keepdims=0) for v in (graph.op("Mul", size, far), far)]

    def of(self, batch: Sequence[Array]) -> Average:
        return Average(float(batch[0]), float(batch[1]))

    def add(self, one: Average, other: Average) -> Average:
        return Average(one.total + other.total, one.count + other.count)

    def invented(self, graph: Graph) -> Average:
        return Average(self.limit, 1)


@dataclass(frozen=True)
class Outer(Calibrator):
    """Symmetric, up to the average of what lies in the outer part: a third phase looks further out than the second."""

    def _second(self, value: str, known: Statistics) -> AverageOutside:
        return AverageOutside(value, known[Range(value)], 0.25)

    def _third(self, value: str, known: Statistics) -> AverageOutside:
        found = known[self._second(value, known)]
        edge = found.total / max(found.count, 1)
        return AverageOutside(value, Extremes(-edge, edge), 1.0)

    def requests(self, value: str, known: Statistics) -> Sequence[Statistic[Any]]:
        asked: list[Statistic[Any]] = [Range(value)]
        for further in (self._second, self._third):
            if asked[-1] in known:
                asked.append(further(value, known))
        return asked

    def range(self, value: str, bits: int, known: Statistics) -> Extremes:
        found = known[self._third(value, known)]
        return Extremes(-found.total / found.count, found.total / found.count)


def network() -> Graph:
    """x [N, 3, 6, 6] → conv → relu → mean → y."""
    graph, rng = Graph("net"), np.random.default_rng(0)
    x = graph.add_input("x", DType.FLOAT, ["N", 3, 6, 6])
    w = graph.add_constant("w", rng.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32))
    conv = graph.op("Conv", x, w, graph.add_constant("b", np.ones(4, np.float32)), name="conv")
    y = graph.op("GlobalAveragePool", graph.op("Relu", conv, name="relu"), name="y")
    graph.set_type(y, DType.FLOAT)
    graph.add_output(y)
    infer_shapes(graph)
    return graph


IMAGES = np.random.default_rng(1).standard_normal((40, 3, 6, 6)).astype(np.float32)


class Measuring:
    """Gathers, and notes what was asked for in each run."""

    def __init__(self, graph: Graph, images: Array = IMAGES) -> None:
        self.graph, self.images, self.runs = graph, images, list[list[Statistic[Any]]]()

    def __call__(self, asked: Sequence[Statistic[Any]]) -> Statistics:
        self.runs.append(list(asked))
        return gather(self.graph, asked, [{"x": part} for part in np.split(self.images, 5)], threads=1)


def test_a_calibrator_of_three_phases_takes_three_runs_for_all_values() -> None:
    graph = network()
    insert, measure = InsertFakeQuant(calibrator=Outer()), Measuring(graph)
    context = collect(insert, graph, Context(), measure)
    assert [[s.what for s in run] for run in measure.runs] == [["range"] * 2, *[["average outside"] * 2] * 2]
    insert(graph, context)
    size = np.abs(IMAGES.astype(np.float64))
    edge = size[size > 0.25 * size.max()].mean()
    wanted = size[size > edge].mean()
    node = next(n for n in graph.nodes() if n.name == "x.fake_quant")
    low, high = graph.constant_of(graph.operand(node, 3))  # type: ignore[misc]
    assert (low, high) == pytest.approx((-wanted, wanted), rel=1e-5)  # sums of 4,320 numbers in float32
    scale = graph.constant_of(graph.operand(node, 1))
    assert scale == pytest.approx(2 * wanted / 255, rel=1e-5)


def test_all_who_ask_in_a_phase_are_served_by_one_run() -> None:
    """A value that two passes ask the same of is asked once; who needs one phase does not wait, nor ask again."""
    graph = network()
    measure = Measuring(graph)
    steps = Pipeline((RestoreBatchnorm(), InsertFakeQuant(), InsertFakeQuant(calibrator=Outer())))
    context = collect(steps, graph, Context(), measure)
    values = ["x", "relu"]
    assert measure.runs[0] == [ChannelMoments("conv"), *map(Range, values)]
    assert [s.value for s in measure.runs[1]] == [s.value for s in measure.runs[2]] == values
    assert len(measure.runs) == 3
    assert len(context.statistics) == 3 + 2 + 2


def test_what_is_known_is_not_measured_again() -> None:
    graph = network()
    measure = Measuring(graph)
    context = collect(InsertFakeQuant(), graph, Context(), measure)
    assert collect(InsertFakeQuant(), graph, context, measure) is context
    assert len(measure.runs) == 1
    collect(InsertFakeQuant(calibrator=Outer()), graph, context, measure)
    assert len(measure.runs) == 3  # the ranges were there


def test_invented_statistics_go_through_all_phases() -> None:
    graph = network()
    steps = Pipeline((RestoreBatchnorm(), InsertFakeQuant(calibrator=Outer())))
    context = collect(steps, graph, Context(), partial(invented, graph))
    outcome = steps(graph, context)
    assert outcome.by_pass == {"restore_batchnorm": 1, "insert_fake_quant": 3}
    found = context.statistics[ChannelMoments("conv")]
    assert (found.mean.tolist(), found.variance.tolist()) == ([0] * 4, [1] * 4)


def test_moments_of_a_value_without_a_shape_are_invented_from_what_makes_it() -> None:
    graph = network()
    graph.clear_shape(graph.value("conv"))
    assert ChannelMoments("conv").invented(graph).mean.shape == (4,)
    assert graph.value("conv").shape is None


def test_a_value_that_is_not_finite_is_named_before_the_next_phase() -> None:
    graph, images = network(), IMAGES.copy()
    images[7, 2, 3, 3] = 3e38  # finite, and too large for these weights
    w = graph.value("w")
    graph.set_array(w, np.float32(20) * graph.constant_of(w))
    measure = Measuring(graph, images)
    with pytest.raises(DataError, match=r"The range of 'relu' on these data: \[0, inf\], though the data are finite"):
        collect(InsertFakeQuant(calibrator=Outer()), graph, Context(), measure)
    assert len(measure.runs) == 1
    with pytest.raises(DataError, match="The moments of 'conv' .* 4 of 4 channels with NaN or infinity"):
        collect(RestoreBatchnorm(), graph, Context(), measure)


@dataclass(frozen=True)
class Endless(Pass):
    name: ClassVar[str] = "endless"

    def run(self, graph: Graph, context: Context) -> Outcome:
        return Outcome()

    def requests(self, graph: Graph, context: Context) -> Sequence[Statistic[Any]]:
        return [AverageOutside("x", Extremes(0, 1), len(context.statistics))]


def test_a_pass_that_never_has_enough_is_stopped() -> None:
    with pytest.raises(RuntimeError, match="'endless' still asks for statistics after 16 runs"):
        collect(Endless(), network(), Context(), partial(invented, network()))
