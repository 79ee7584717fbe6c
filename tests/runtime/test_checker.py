"""RunChecker: names the pass that changed the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from onnxslim.errors import DataError, VerifyError
from onnxslim.ir.graph import Array, DType, Graph
from onnxslim.ir.rewrite import Context, Outcome, Pass, Pipeline, Refusal
from onnxslim.runtime.checker import RunChecker, random_feeds, relative_error


def network() -> Graph:
    graph = Graph("net")
    x = graph.add_input("x", DType.FLOAT, ["N", 3])
    y = graph.op("Mul", x, graph.add_constant("k", np.array(2, np.float32)), name="y")
    graph.set_type(y, DType.FLOAT, ["N", 3])
    graph.add_output(y)
    return graph


@dataclass(frozen=True)
class Scale(Pass):
    """k → k · factor."""

    factor: float = 1.0
    name: ClassVar[str] = "scale"

    def run(self, graph: Graph, context: Context) -> Outcome:
        value = graph.value("k")
        graph.set_array(value, np.asarray(value.array * np.float32(self.factor)))
        return Outcome(1)


@dataclass(frozen=True)
class Harmless(Pass):
    name: ClassVar[str] = "harmless"

    def run(self, graph: Graph, context: Context) -> Outcome:
        return Outcome(1)


def checking(graph: Graph, tolerance: float = 1e-5) -> Context:
    return Context(checker=RunChecker(random_feeds(graph), tolerance))


def test_the_culprit_of_a_pipeline_is_named() -> None:
    graph = network()
    steps = Pipeline((Harmless(), Scale(1.0), Scale(1.01), Harmless()))
    with pytest.raises(
        VerifyError, match="After pass 'scale': 'scale' changed output 'y' by 0.01 of its largest value"
    ):
        steps(graph, checking(graph))


def test_small_differences_pass() -> None:
    graph = network()
    assert Pipeline((Harmless(), Scale(1 + 2e-6)))(graph, checking(graph)).rewrites == 2
    with pytest.raises(VerifyError, match="expected at most 1e-07"):
        Scale(1 + 2e-6)(graph, checking(graph, 1e-7))


@pytest.mark.parametrize("change", ["name", "shape", "dtype"])
def test_another_interface_is_named(change: str) -> None:
    before, after = network(), network()
    y = after.value("y")
    if change == "name":
        after.rename(y, "z")
    else:
        options = {"shape": ("Flatten", {"axis": 0}), "dtype": ("Cast", {"to": 11})}[change]
        new = after.op(options[0], y, name="new", **options[1])
        after.remove_output(y)
        after.rename(y, "old")
        after.rename(new, "y")
        after.set_type(new, DType.DOUBLE if change == "dtype" else DType.FLOAT)
        after.add_output(new)
    with pytest.raises(VerifyError, match="'step' changed"):
        RunChecker(random_feeds(before)).check(before, after, "step")


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([np.nan, 1.0], [1.0, 1.0], np.inf),
        ([1.0], [np.nan], np.inf),
        ([], [], 0.0),
    ],
)
def test_relative_error(a: list[float], b: list[float], expected: float) -> None:
    assert relative_error(np.array(a, np.float32), np.array(b, np.float32)) == pytest.approx(expected)


def test_integers_must_be_equal() -> None:
    assert relative_error(np.array([1, 2]), np.array([1, 2])) == 0
    assert relative_error(np.array([1, 2]), np.array([1, 3])) == np.inf


def test_random_feeds_fit_and_repeat() -> None:
    graph = network()
    graph.add_input("i", DType.INT64, ["N"])
    graph.add_input("h", DType.FLOAT16, [4])
    feeds = random_feeds(graph, seed=1, batch=5)
    assert {k: (v.shape, v.dtype.name) for k, v in feeds.items()} == {
        "x": ((5, 3), "float32"),
        "i": ((5,), "int64"),
        "h": ((4,), "float16"),
    }
    again = random_feeds(graph, seed=1, batch=5)
    assert all(np.array_equal(feeds[k], again[k]) for k in feeds)
    graph.add_input("s", DType.STRING, ["N"])
    with pytest.raises(DataError, match="Input 's' needs data of its own"):
        random_feeds(graph)


@dataclass(frozen=True)
class Twice(Pass):
    """Rewrites and refuses until it has run `times` times."""

    ran: list[str]
    times: int
    name: ClassVar[str] = "twice"

    def run(self, graph: Graph, context: Context) -> Outcome:
        self.ran.append("twice")
        busy = self.ran.count("twice") <= self.times
        return Outcome(int(busy), (Refusal("here", f"run {self.ran.count('twice')}"),))


@dataclass(frozen=True)
class Idle(Pass):
    ran: list[str]
    name: ClassVar[str] = "idle"

    def run(self, graph: Graph, context: Context) -> Outcome:
        self.ran.append("idle")
        return Outcome(0, (Refusal("there", "never"),))


def test_a_pipeline_stops_when_every_pass_has_been_idle_since_the_last_rewrite() -> None:
    ran: list[str] = []
    outcome = Pipeline((Idle(ran), Twice(ran, 2), Idle(ran)), to_fixed_point=True)(network())
    assert ran == ["idle", "twice", "idle"] * 2 + ["idle", "twice"]
    assert outcome.rewrites == 2
    assert set(outcome.refused) == {Refusal("here", "run 3"), Refusal("there", "never")}
    ran.clear()
    Pipeline((Idle(ran), Twice(ran, 1)))(network())
    assert ran == ["idle", "twice"]


def test_a_pipeline_to_its_fixed_point_says_how_far_it_is() -> None:
    said: list[tuple[str, int, int]] = []
    context = Context(progress=lambda what, done, total: said.append((what, done, total)))
    Pipeline((Twice([], 2), Twice([], 3)), to_fixed_point=True)(network(), context)
    assert {what for what, _, _ in said} == {"rewriting"}
    assert said[0][1] == 0
    assert all(done < total for _, done, total in said[:-1])
    assert said[-1][1] == said[-1][2]


def test_passes_that_undo_each_other_are_named() -> None:
    ran: list[str] = []
    with pytest.raises(VerifyError, match=r"after 50 rounds, graph '.*' is still rewritten by twice\."):
        Pipeline((Idle([]), Twice(ran, 1 << 30)), to_fixed_point=True)(network())
    settled = Pipeline((Idle([]), Twice([], 48)), to_fixed_point=True)(network())
    assert settled.notes == ()


@pytest.mark.parametrize(("noise", "passes"), [(0.0, False), (1e-4, False), (5e-3, True), (np.nan, False)])
def test_a_model_that_amplifies_rounding_is_measured_by_its_own_noise(
    noise: float, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that moves y by 1e-3, where the original, run as written, moves by `noise`."""
    graph = network()
    feeds = random_feeds(graph)
    real = RunChecker._run

    def run(self: RunChecker, graph: Graph, *, optimize: bool = True) -> list[dict[str, Array]]:
        found = real(self, graph, optimize=optimize)
        return found if optimize else [{"y": found[0]["y"] * np.float32(1 + noise)}]

    monkeypatch.setattr(RunChecker, "_run", run)
    context = Context(checker=RunChecker(feeds))
    if passes:
        Scale(1.001)(graph, context)
    else:
        bound = "0.0004" if noise == 1e-4 else "1e-05"  # four times the noise
        with pytest.raises(VerifyError, match=f"by 0.001 of its largest value; expected at most {bound}"):
            Scale(1.001)(graph, context)
