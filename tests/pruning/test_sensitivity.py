"""Sensitivities: stored point by point, never measured twice, refused where they are another model's."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxslim.builders import small_cnn
from onnxslim.errors import DataError, OutputError
from onnxslim.evaluation import Store
from onnxslim.files import held
from onnxslim.ir.graph import Graph
from onnxslim.pruning.sensitivity import Sensitivities, measure_sensitivities
from onnxslim.records import write_record

PLAN = Sensitivities({"model": "m", "data": "d"}, 0.0, {}, {"a": 4, "b": 8}, {"head": "an output"})
RATIOS = (0.25, 0.5)


class Bench:
    """Models that carry their own metric, and a count of what was asked for."""

    def __init__(self, stop_after: int = 1000) -> None:
        self.asked: list[tuple[str, float]] = []
        self.stop_after = stop_after
        self._lock = threading.Lock()

    def variant(self, name: str, ratio: float) -> Graph:
        with self._lock:
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append((name, ratio))
        graph = small_cnn((2,))
        graph.metadata["metric"] = str(0.8 - ratio * (0.1 if name == "a" else 0.4))
        return graph

    def measure(self, path: Path | None, workers: int = 1, plan: Sensitivities = PLAN) -> Sensitivities:
        return measure_sensitivities(
            self.variant,
            lambda graph: float(graph.metadata["metric"]),
            lambda: 0.8,
            plan,
            RATIOS,
            path=path,
            workers=workers,
        )


@pytest.mark.parametrize("workers", [1, 2])
def test_losses_are_relative_to_the_baseline(tmp_path: Path, workers: int) -> None:
    found = Bench().measure(tmp_path / "s.json", workers)
    assert found.baseline == 0.8
    assert found.losses["a"] == pytest.approx({0.25: 0.025 / 0.8, 0.5: 0.05 / 0.8})
    assert found.losses["b"] == pytest.approx({0.25: 0.1 / 0.8, 0.5: 0.2 / 0.8})


def test_the_file_reads_back_and_lists_every_group(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    found = Bench().measure(path)
    assert Sensitivities.load(path) == found
    assert list(found.metrics) == ["a", "b"]
    plan, *points = map(json.loads, path.read_text().splitlines())
    assert plan["result"]["pinned"] == {"head": "an output"}
    assert [point["result"] for point in points][:2] == [
        {"group": "a", "ratio": 0.25, "metric": 0.8 - 0.25 * 0.1},
        {"group": "a", "ratio": 0.5, "metric": 0.8 - 0.5 * 0.1},
    ]


@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_nothing_that_is_stored_is_measured_again(tmp_path: Path, stop_after: int) -> None:
    path = tmp_path / "s.json"
    first = Bench(stop_after)
    with pytest.raises(KeyboardInterrupt):
        first.measure(path)
    assert len(first.asked) == stop_after
    second = Bench()
    found = second.measure(path)
    assert not set(first.asked) & set(second.asked)
    assert len(first.asked) + len(second.asked) == 4
    assert found == Bench().measure(None)


def test_a_narrower_scope_keeps_what_is_stored_of_others(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    whole = Bench().measure(path)
    narrow = Bench()
    narrow.measure(path, plan=replace(PLAN, units={"a": 4}))
    assert narrow.asked == []
    assert Sensitivities.load(path) == whole


def test_another_model_is_refused_and_the_file_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    Bench().measure(path)
    before = path.read_bytes()
    other = Sensitivities({"model": "other", "data": "d"}, 0.0, {}, PLAN.units)
    with pytest.raises(DataError, match=r"s.json was measured with another model: expected other, got m"):
        Bench().measure(path, plan=other)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["{}", "[]", "text", '{"version": 1, "context": {}, "baseline": 0.8, "groups": {}}'])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"s.json"):
        Bench().measure(path)
    assert path.read_text() == text


def test_a_zero_baseline_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be above 0"):
        measure_sensitivities(Bench().variant, lambda graph: 0.0, lambda: 0.0, PLAN, RATIOS, path=tmp_path / "s.json")
    assert not list(tmp_path.iterdir())


def test_ratios_of_many_digits_are_stored_as_they_are(tmp_path: Path) -> None:
    path, ratio = tmp_path / "s.json", 1 / 3
    for expected in (2, 0):
        bench = Bench()
        measure_sensitivities(
            bench.variant, lambda graph: float(graph.metadata["metric"]), lambda: 0.8, PLAN, [ratio], path=path
        )
        assert len(bench.asked) == expected
    assert set(Sensitivities.load(path).metrics["a"]) == {ratio}


def test_a_file_that_another_process_measures_into_is_left(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    with held(path, "busy"), pytest.raises(OutputError, match=r"s\.json is being measured into by another process"):
        Bench().measure(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("plan", "x"),
        ("plan", {"context": "x", "baseline": 0.8, "units": {}, "pinned": {}}),
        ("plan", {"context": {}, "baseline": None, "units": {}, "pinned": {}}),
        ("c", {"group": "c", "ratio": 0.5, "metric": 0.5}),
        ("a", {"group": "a", "ratio": 0.5, "metric": float("nan")}),
        ("a", {"group": "a", "ratio": 1.5, "metric": 0.5}),
    ],
)
def test_a_file_with_other_contents_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "s.json"
    Bench().measure(path)
    Store(path, "sensitivities").add(key, value)
    with pytest.raises(DataError, match="is not a file of sensitivities"):
        Bench().measure(path)


def test_a_digit_changed_since_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    Bench().measure(path)
    path.write_text(path.read_text().replace('"baseline": 0.8', '"baseline": 0.9'))
    with pytest.raises(DataError, match=r"s\.json is not a file .*line 1 does not match its own digest"):
        Sensitivities.load(path)


def test_a_file_of_an_earlier_version_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write_record(path, {"version": 1, "context": {}, "baseline": 0.8, "groups": {}, "pinned": {}})
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"s\.json .*as earlier versions of onnxslim wrote it.* move it away"):
        Bench().measure(path)
    assert path.read_bytes() == before


def test_what_a_kill_leaves_is_measured_again_alone(tmp_path: Path) -> None:
    """Cut anywhere in its last line: the other points stay, and the file is sound again afterwards."""
    path = tmp_path / "s.json"
    expected = Bench().measure(path)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in (start + 1, (start + len(whole)) // 2, len(whole) - 2):
        path.write_bytes(whole[:cut])
        again = Bench()
        with pytest.warns(UserWarning, match=r"s\.json: line 5 was left unfinished, and is left out"):
            assert again.measure(path) == expected
        assert again.asked == [("b", 0.5)]
        with pytest.warns(UserWarning, match="line 5"):
            assert Sensitivities.load(path) == expected


def test_an_empty_file_has_none_yet(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    for make in (lambda: None, path.touch):
        make()
        with pytest.raises(DataError, match=r"Sensitivities not found: .*s\.json has none; `onnxslim sensitivity`"):
            Sensitivities.load(path)
    assert Bench().measure(path) == Sensitivities.load(path)
