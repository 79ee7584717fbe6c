from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.errors import OptionError
from onnxslim.training.optimizers import Optimizer
from onnxslim.training.schedules import Constant, Cosine, OneCycle, Schedule, Step
from onnxslim.training.tables import OPTIMIZERS, SCHEDULES


def test_constant() -> None:
    assert [Constant().rate(0.1, s, 10, 2) for s in (0, 7, 19)] == [0.1] * 3


def test_step_falls_at_its_milestones() -> None:
    schedule = Step(milestones=(1, 2.5), factor=0.1)
    rates = [schedule.rate(1.0, s, 10, 4) for s in (0, 8, 10, 24, 25, 39)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_is_half_a_cosine_down_to_its_end() -> None:
    schedule = Cosine(final=0.1)
    for step in range(40):
        expected = 0.02 + 0.18 * (1 + math.cos(math.pi * (step + 0.5) / 40)) / 2
        assert schedule.rate(0.2, step, 10, 4) == pytest.approx(expected)


def test_one_cycle_rises_to_its_peak_and_falls() -> None:
    rates = [OneCycle(peak=0.3).rate(1.0, s, 100, 10) for s in range(1000)]
    top = rates.index(max(rates))
    assert top == pytest.approx(300, abs=1)
    assert rates[0] == pytest.approx(1 / 25, rel=1e-3)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 1e-4


def test_warm_up_is_a_line_through_the_course() -> None:
    plain, warm = Cosine(), Cosine(warmup_epochs=2)
    for step in range(40):
        factor = min((step + 1) / 20, 1)
        assert warm.rate(1.0, step, 10, 4) == pytest.approx(plain.rate(1.0, step, 10, 4) * factor)


@given(
    cls=st.sampled_from(SCHEDULES),
    epochs=st.integers(1, 9),
    per=st.integers(1, 9),
    warmup=st.floats(0, 3),
    final=st.floats(0, 1),
)
def test_no_rate_exceeds_the_base(cls: type[Schedule], epochs: int, per: int, warmup: float, final: float) -> None:
    options = {"milestones": (1,), "factor": 0.5} if cls is Step else {"final": final} if cls is not Constant else {}
    schedule = cls(warmup_epochs=warmup, **options)
    assert all(0 <= schedule.rate(0.3, step, per, epochs) <= 0.3 + 1e-12 for step in range(epochs * per))


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_a_rate_that_is_not_above_zero_is_refused(cls: type[Optimizer]) -> None:
    with pytest.raises(OptionError, match=r"learning_rate: expected more than 0\.0, got 0"):
        cls(learning_rate=0)
