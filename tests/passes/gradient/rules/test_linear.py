from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.errors import GradientError
from passes.gradient.rules import linear

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
FEW = settings(max_examples=10)


def test_every_rule_has_a_case() -> None:
    assert sorted(linear.RULES) == ["Einsum", "Gemm", "MatMul"]


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


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("bij,bjk->bki", [(2, 2, 3), (2, 3, 4)]),
        ("ij,ij,i->j", [(2, 3), (2, 3), (2,)]),
        ("ij->j", [(2, 3)]),
        ("ijk,lk", [(2, 3, 4), (5, 4)]),
        ("...ij,jk->...ik", [(2, 2, 3), (3, 4)]),
        ("i,j->ij", [(2,), (3,)]),
        ("ij,k->k", [(2, 3), (4,)]),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]], check: Callable, spaced: Callable) -> None:
    inputs = [spaced(shape, i) for i, shape in enumerate(shapes)]
    check("Einsum", inputs, list(range(len(inputs))), forward=lambda *x: np.einsum(equation, *x).reshape(-1),
          equation=equation)  # fmt: skip


def test_a_diagonal_is_refused(check: Callable, spaced: Callable) -> None:
    with pytest.raises(GradientError, match="stands twice"):
        check("Einsum", [spaced((3, 3), 1)], equation="ii->i")
