"""Top-k, Wilson's interval and McNemar's test against definitions and published values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.errors import DataError
from onnxslim.evaluation import McNemar, mcnemar, top_k, wilson_interval


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 6), st.booleans())
def test_top_k_is_a_stable_sort(seed: int, k: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (20, 7)).astype(np.float32) if ties else rng.standard_normal((20, 7))
    labels = rng.integers(0, 7, 20)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert np.array_equal(top_k(scores, labels, k), (best == labels[:, None]).any(axis=1))
    assert np.array_equal(top_k(scores, labels, 1), scores.argmax(axis=1) == labels)


def test_scores_that_are_no_numbers_are_wrong() -> None:
    scores = np.array([[np.nan, 1.0, 0.0], [np.nan, 1.0, 0.0], [np.nan] * 3])
    assert top_k(scores, np.array([0, 1, 0]), 1).tolist() == [False, False, False]
    assert top_k(scores, np.array([0, 1, 0]), 2).tolist() == [False, True, False]


def test_wilson_interval_of_published_examples() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I.
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_interval_solves_its_equation(successes: int, n: int) -> None:
    successes = min(successes, n)
    low, high = wilson_interval(successes, n)
    p = successes / n
    assert 0 <= low <= p <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            assert abs(p - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n), abs=1e-6)


def test_wilson_interval_at_the_edges() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(10, 10)[1] == 1.0
    with pytest.raises(DataError, match="successes ≤ n: got 3 of 2"):
        wilson_interval(3, 2)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial(b: int, c: int) -> None:
    first = np.array([True] * b + [False] * c + [True, False])
    second = np.array([False] * b + [True] * c + [True, False])
    n, low = b + c, min(b, c)
    exact = min(1.0, 2 * sum(math.comb(n, k) for k in range(low + 1)) / 2**n)
    found = mcnemar(first, second)
    assert (found.b, found.c) == (b, c)
    assert found.p == pytest.approx(exact, rel=1e-9)


def test_mcnemar_of_many_samples() -> None:
    first = np.arange(100_000) % 2 == 0
    assert mcnemar(first, first) == McNemar(0, 0, 1.0)
    assert mcnemar(first, ~first).p == 1.0
    assert mcnemar(first, np.ones(100_000, bool)).p == 0.0  # 2^-49999 is below the smallest float64
    with pytest.raises(DataError, match="same samples: got 2 and 3"):
        mcnemar(np.ones(2, bool), np.ones(3, bool))
