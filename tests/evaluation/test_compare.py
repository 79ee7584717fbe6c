"""Several models side by side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxslim.data import ArrayDataset
from onnxslim.errors import DataError
from onnxslim.evaluation import compare, size_of
from onnxslim.ir.graph import Graph

Make = Callable[..., Graph]


def test_rows_against_the_first(make_model: Make, data: ArrayDataset) -> None:
    good, bad = make_model(np.eye(8)), make_model(np.roll(np.eye(8), 1, axis=1))
    rows = compare({"good": good, "bad": bad}, data, latency_repeats=3)
    assert [row.name for row in rows] == ["good", "bad"]
    first, second = rows
    assert first.mcnemar is None
    assert first.bytes == size_of(good)
    assert (first.bytes_ratio, second.bytes_ratio) == (1.0, size_of(bad) / size_of(good))
    assert first.evaluation is not None
    assert second.evaluation is not None
    assert (first.evaluation.correct.sum(), second.evaluation.correct.sum()) == (80, 21)
    assert second.mcnemar is not None
    assert (second.mcnemar.b, second.mcnemar.c) == (80, 21)
    assert second.mcnemar.p < 1e-6
    assert first.latency is not None
    assert first.latency.ratio == 1.0


def test_unlabelled_data_and_no_latency(make_model: Make, data: ArrayDataset) -> None:
    unlabelled = ArrayDataset({"image": data.read(np.arange(5))["image"]}, layout="NHWC")
    (row,) = compare({"a": make_model(np.eye(8))}, unlabelled, latency_repeats=0)
    assert row.evaluation is None
    assert row.latency is None
    assert row.bytes > 0


def test_nothing_to_compare(data: ArrayDataset) -> None:
    with pytest.raises(DataError, match="at least one model"):
        compare({}, data)
