"""Counter-based random numbers: each is a pure function of its integer coordinates.

There is no stream and no state, so that any image of any epoch can be augmented alone, in any
order, on any thread. The mixer is SplitMix64's finaliser (Steele, Lea, Flood: "Fast splittable
pseudorandom number generators", 2014), whose outputs for different counters pass as independent.
"""

from __future__ import annotations

import numpy as np

from onnxslim.ir.graph import Array

__all__ = ["below", "bits", "permutation"]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(state: Array) -> Array:
    """SplitMix64's finaliser; uint64 arrays in and out, wrapping."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    out: Array = state ^ (state >> np.uint64(31))
    return out


def bits(count: int, *coordinates: int | Array) -> Array:
    """Random bits uint64 [n, count] for integer coordinates, each a number or an int array [n].

    Coordinates are mixed in one after the other, so (1, 2) and (2, 1) are different counters.
    """
    state = np.zeros(1, np.uint64)
    for coordinate in coordinates:
        if isinstance(coordinate, int):
            word = np.array([coordinate & _MASK], np.uint64)
        else:
            word = np.atleast_1d(coordinate).astype(np.int64).view(np.uint64)
        state = _mix((state + np.uint64(_GOLDEN)) ^ _mix(word + np.uint64(_GOLDEN)))
    steps = np.array([(k * _GOLDEN) & _MASK for k in range(1, count + 1)], np.uint64)
    return _mix(state[:, None] + steps)


def below(random: Array, bound: int) -> Array:
    """Uniform integers int64 in [0, bound) from random uint64; bound ≤ 2³² (bias below bound/2³²)."""
    return (((random >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def permutation(size: int, *coordinates: int) -> Array:
    """A permutation of range(size), int64, as a pure function of the coordinates."""
    keys = bits(1, *coordinates, np.arange(size, dtype=np.int64))[:, 0]
    return np.argsort(keys, kind="stable").astype(np.int64)
