"""Classification metrics, their confidence, and the paired test between two models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from onnxslim.errors import DataError
from onnxslim.ir.graph import Array

__all__ = ["Interval", "McNemar", "mcnemar", "top_k", "wilson_interval"]

Interval = tuple[float, float]


def top_k(scores: Array, labels: Array, k: int) -> Array:
    """Whether each label is among the k highest scores: bool [n] for scores [n, classes], labels int [n].

    Ties go to the lower class, as argmax does. A label whose score is not a number counts as wrong.
    """
    rows = np.arange(len(labels))
    mine = scores[rows, labels][:, None]
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    ahead = (scores > mine) | ((scores == mine) & earlier) | np.isnan(scores)
    right: Array = (ahead.sum(axis=1) < k) & ~np.isnan(mine[:, 0])
    return right


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson, 1927), as fractions; (0, 1) for n = 0."""
    if not 0 <= successes <= n:
        raise DataError(f"An interval needs 0 ≤ successes ≤ n: got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class McNemar:
    """b: samples that only the first got right; c: only the second; p: two-sided, exact."""

    b: int
    c: int
    p: float


def mcnemar(first: Array, second: Array) -> McNemar:
    """McNemar's exact test for two models on the same samples (bool [n] each, whether right).

    p is the binomial probability, under equal accuracy, of a split of the b + c disagreements at
    least as uneven as this one; 1 where they never disagree. Raises DataError on unequal lengths.
    """
    if first.shape != second.shape:
        raise DataError(f"A paired test needs the same samples: got {len(first)} and {len(second)}")
    b = int(np.count_nonzero(first & ~second))
    c = int(np.count_nonzero(~first & second))
    return McNemar(b, c, _binomial_two_sided(min(b, c), b + c))


def _binomial_two_sided(low: int, n: int) -> float:
    """2·P(X ≤ low) for X ~ Binomial(n, ½), at most 1; summed in logarithms, so any n will do."""
    if 2 * low >= n:
        return 1.0
    half = n * math.log(2)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - half for k in range(low + 1)]
    top = max(logs)
    return min(1.0, 2 * math.exp(top) * math.fsum(math.exp(v - top) for v in logs))
