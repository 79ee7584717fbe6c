"""Many variants: each content once, stored after each point, resumable."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxslim.errors import DataError, OutputError
from onnxslim.evaluation import Store, evaluate_many
from onnxslim.ir.graph import Graph

Make = Callable[..., Graph]


class Count:
    """An evaluation that counts its calls: the sum of the weights."""

    def __init__(self, fail_at: float | None = None) -> None:
        self.calls, self.fail_at, self._lock = 0, fail_at, threading.Lock()

    def __call__(self, graph: Graph) -> float:
        array = graph.value("w").array
        assert array is not None
        total = float(array.sum())
        with self._lock:
            self.calls += 1
        time.sleep(0.002 * (5 - total % 5))  # later ones finish first
        if total == self.fail_at:
            raise DataError(f"variant {total} failed")
        return total


@pytest.mark.parametrize("workers", [1, 3])
def test_results_in_the_order_of_the_variants(make_model: Make, workers: int) -> None:
    variants = {f"v{i}": make_model(np.full((8, 8), i / 64)) for i in (3, 1, 2, 0, 4)}
    seen: list[tuple[str, int, int]] = []
    found = evaluate_many(variants, Count(), workers=workers, progress=lambda *a: seen.append(a))
    assert [(key, point.result) for key, point in found.items()] == [(f"v{i}", float(i)) for i in (3, 1, 2, 0, 4)]
    assert not any(point.cached for point in found.values())
    assert seen[-1] == ("evaluating variants", 5, 5)


def test_equal_variants_are_evaluated_once(make_model: Make) -> None:
    count = Count()
    weights = np.full((8, 8), 1 / 64)
    found = evaluate_many({i: (lambda: make_model(weights)) for i in range(4)}, count, workers=2)
    assert count.calls == 1
    assert {point.result for point in found.values()} == {1.0}
    assert sum(point.cached for point in found.values()) == 3


def test_store_is_resumed(make_model: Make, tmp_path: Path) -> None:
    store = tmp_path / "points.json"
    variants = {i: make_model(np.full((8, 8), i / 64)) for i in range(5)}
    with pytest.raises(DataError, match="variant 3.0 failed"):
        evaluate_many(variants, Count(fail_at=3.0), store=store)
    assert len(Store(store).entries) == 3
    count = Count()
    found = evaluate_many(variants, count, store=store)
    assert count.calls == 2
    assert [point.result for point in found.values()] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [point.cached for point in found.values()] == [True, True, True, False, False]
    again = Count()
    assert evaluate_many(variants, again, store=store, workers=3).keys() == found.keys()
    assert again.calls == 0


def test_contexts_are_kept_apart(make_model: Make, tmp_path: Path) -> None:
    store = tmp_path / "points.json"
    variants = {"a": make_model(np.eye(8))}
    for context, calls in (("val", 1), ("test", 1), ("val", 0)):
        count = Count()
        evaluate_many(variants, count, store=store, context=context)
        assert count.calls == calls


def test_interrupted_evaluation_keeps_its_points(make_model: Make, tmp_path: Path) -> None:
    def interrupted(graph: Graph) -> float:
        if Count()(graph) == 2.0:
            raise KeyboardInterrupt
        return 1.0

    variants = {i: make_model(np.full((8, 8), i / 64)) for i in range(4)}
    with pytest.raises(KeyboardInterrupt):
        evaluate_many(variants, interrupted, store=tmp_path / "p.json")
    assert len(Store(tmp_path / "p.json").entries) == 2


def test_what_runs_at_ctrl_c_is_not_lost(make_model: Make) -> None:
    slow_runs, interrupted = threading.Event(), threading.Event()
    seen: dict[int, object] = {}

    def evaluate(graph: Graph) -> float:
        array = graph.value("w").array
        assert array is not None
        which = float(array.sum())
        if which == 0.0:
            assert slow_runs.wait(10)
        else:  # these end well after the interruption
            slow_runs.set()
            assert interrupted.wait(10)
            time.sleep(0.1)
        return which

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    variants = {i: make_model(np.full((8, 8), i / 64)) for i in range(9)}
    with pytest.raises(KeyboardInterrupt):
        evaluate_many(
            variants, evaluate, workers=2, progress=interrupt, finished=lambda key, p: seen.update({key: p.result})
        )
    assert seen[0] == 0.0
    assert seen[1] == 1.0
    assert len(seen) < 9


def test_structured_results(make_model: Make, tmp_path: Path) -> None:
    result = {"top1": 0.5, "layers": [1, 2], "note": None}
    for _ in range(2):
        found = evaluate_many({"a": make_model(np.eye(8))}, lambda graph: result, store=tmp_path / "p.json")
        assert found["a"].result == result


def test_errors(make_model: Make, tmp_path: Path) -> None:
    variants = {"a": make_model(np.eye(8))}
    store = tmp_path / "p.json"
    store.write_text("{}")
    with pytest.raises(DataError, match=r"p.json is not a file of evaluation results"):
        evaluate_many(variants, Count(), store=store)
    assert store.read_text() == "{}"
    with pytest.raises(DataError, match="what JSON holds, got ndarray"):
        evaluate_many(variants, lambda graph: np.zeros(2))  # type: ignore[arg-type, return-value]
    with pytest.raises(DataError, match="at least 1"):
        evaluate_many(variants, Count(), workers=0)
    with pytest.raises(OutputError, match="Cannot write"):
        evaluate_many(variants, Count(), store=tmp_path / "nowhere" / "p.json")
