from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.gradient.rules import linear

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
FEW = settings(max_examples=10)


def test_every_rule_has_a_case() -> None:
    assert sorted(linear.RULES) == ["Gemm", "MatMul"]


@FEW
@given(
    sizes=SIZES,
    flips=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    factors=st.sampled_from([{}, {"alpha": 0.5, "beta": 2.0}]),
    bias=st.sampled_from([None, "none", "row", "column", "full", "scalar", "one"]),
)
def test_gemm(
    sizes: tuple[int, int, int],
    flips: tuple[int, int],
    factors: dict[str, float],
    bias: str | None,
    check: Callable,
    spaced: Callable,
) -> None:
    m, k, n = sizes
    a = spaced((k, m) if flips[0] else (m, k), 1)
    b = spaced((n, k) if flips[1] else (k, n), 2)
    shapes = {"row": (n,), "column": (m, 1), "full": (m, n), "scalar": (), "one": (1, 1)}
    inputs, wrt = [a, b], [0, 1]
    if bias in shapes:
        inputs.append(spaced(shapes[bias], 3))
        wrt.append(2)
    check("Gemm", inputs, wrt, transA=flips[0], transB=flips[1], **factors)


@pytest.mark.parametrize(
    "a, b",
    [
        ((2, 3), (3, 4)),
        ((3,), (3,)),
        ((3,), (3, 2)),
        ((2, 3), (3,)),
        ((5, 2, 3), (3,)),
        ((3,), (5, 3, 2)),
        ((4, 2, 3), (4, 3, 2)),
        ((4, 2, 3), (3, 2)),
        ((2, 3), (4, 3, 2)),
        ((2, 1, 2, 3), (1, 3, 3, 2)),
        ((3, 2, 3), (2, 1, 3, 2)),
        ((1, 2, 3), (1, 3, 1)),
    ],
)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...], check: Callable, spaced: Callable) -> None:
    check("MatMul", [spaced(a, 1), spaced(b, 2)], [0, 1])
    check("MatMul", [spaced(a, 1), spaced(b, 2)], [1])
