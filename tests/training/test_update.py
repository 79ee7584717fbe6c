"""The update graph against the formulas of the papers, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.ir.graph import Array
from onnxslim.ir.quant_math import affine_from_range, weight_scale
from onnxslim.runtime.session import Session
from onnxslim.training.optimizers import AdamW, Sgd
from onnxslim.training.ports import Kind, Port
from onnxslim.training.rules import FollowBatchnorm, FollowMaximum, FollowRange, Optimise
from onnxslim.training.update import Rule, UpdateGraph, UpdatePlan, build_update

SHAPE = (3, 2, 2, 1)


RATE, STEP = Port(Kind.RATE), Port(Kind.STEP)
W, A, B = (Port(Kind.PARAMETER, name) for name in "wab")
MEAN, VAR, RANGE = (Port(Kind.STATISTIC, name) for name in ("mean", "var", "range"))
SCALE, ZERO = Port(Kind.SCALE, "scale"), Port(Kind.SCALE, "zero")


def plan(optimizer: Any, *rules: Rule, shares: tuple[float, ...] = (1.0,)) -> UpdatePlan:
    return UpdatePlan(rules, shares, optimizer)


def numbers(seed: int, size: int = 12) -> Array:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def run(update: UpdateGraph, feeds: dict[Port, Any]) -> dict[Port, Array]:
    """What comes out by what it is, of what the graph takes of the feeds."""
    session = Session(update.graph)
    fed = {port: name for port, name in update.ports.items() if update.graph.is_input(update.graph.value(name))}
    found = session.run({name: np.asarray(feeds[port], np.float32) for port, name in fed.items()})
    return {port: found[name] for port, name in update.ports.items() if name in found}


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("decays", [True, False])
def test_sgd(nesterov: bool, decays: bool) -> None:
    update = build_update(plan(Sgd(0.9, nesterov, 0.01), Optimise(W, SHAPE, decays)))
    w, m = numbers(0), np.zeros(12, np.float32)
    w64, m64 = w.astype(np.float64), np.zeros(12)
    for step in range(1, 6):
        g = numbers(step)
        found = run(update, {W: w, W.moment("momentum"): m, W.gradient.by(0): g, RATE: 0.1, STEP: step})
        w, m = found[W.next], found[W.moment("momentum").next]
        g64 = g + (0.01 * w64 if decays else 0)
        m64 = 0.9 * m64 + g64
        w64 = w64 - 0.1 * (g64 + 0.9 * m64 if nesterov else m64)
        np.testing.assert_allclose(w, w64, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decays", [True, False])
def test_adamw(decays: bool) -> None:
    update = build_update(plan(AdamW((0.9, 0.99), 1e-8, 0.1), Optimise(W, SHAPE, decays)))
    state = {W: numbers(0), W.moment("exp_avg"): np.zeros(12), W.moment("exp_avg_sq"): np.zeros(12)}
    w, m, v = numbers(0).astype(np.float64), np.zeros(12), np.zeros(12)
    for step in range(1, 6):
        g = numbers(step)
        found = run(update, {**state, W.gradient.by(0): g, RATE: 0.05, STEP: step})
        state = {port: found[port.next] for port in state}
        w = w * (1 - 0.05 * 0.1) if decays else w
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g.astype(np.float64) ** 2
        w = w - 0.05 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
        np.testing.assert_allclose(state[W], w, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("bound", [0.5, 1e3])
def test_clipping_bounds_the_norm_over_all_gradients(bound: float) -> None:
    update = build_update(plan(Sgd(0.0, False, 0.0, clip_norm=bound), *(Optimise(p, (12,), False) for p in (A, B))))
    feeds = {port: np.zeros(12) for p in (A, B) for port in (p, p.moment("momentum"))}
    grads = {A: numbers(1), B: numbers(2)}
    found = run(update, {**feeds, **{p.gradient.by(0): g for p, g in grads.items()}, RATE: 1, STEP: 1})
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
    assert found[Port(Kind.NORM)] == pytest.approx(norm, rel=1e-5)
    for port, g in grads.items():
        np.testing.assert_allclose(found[port.next], -g * min(1, bound / norm), rtol=1e-4)


@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    offset=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_batch_norm_statistics_are_those_of_the_whole_batch(sizes: list[int], offset: float, seed: int) -> None:
    """Workers of unequal shares, merged, give the mean and biased variance of all samples together."""
    rng, total = np.random.default_rng(seed), sum(sizes)
    parts = [rng.normal(offset, 1, size=(n, 2, 5)) for n in sizes]
    update = build_update(plan(Sgd(), FollowBatchnorm(MEAN, VAR, 2), shares=tuple(n / total for n in sizes)))
    feeds: dict[Port, Any] = {MEAN: [1, 2], VAR: [3, 4]}
    for i, part in enumerate(parts):
        feeds |= {MEAN.batch.by(i): part.mean((0, 2)), VAR.batch.by(i): part.var((0, 2))}
    found = run(update, feeds)
    whole = np.concatenate(parts)
    np.testing.assert_allclose(found[MEAN.next], 0.9 * np.array([1, 2]) + 0.1 * whole.mean((0, 2)), rtol=1e-4)
    np.testing.assert_allclose(found[VAR.next], 0.9 * np.array([3, 4]) + 0.1 * whole.var((0, 2)), rtol=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 1.0])
def test_running_statistics_move_by_their_own_momentum(momentum: float) -> None:
    """ONNX's: running = old·momentum + batch·(1 − momentum). What has arrived stays, to the last bit."""
    update = build_update(plan(Sgd(), FollowBatchnorm(MEAN, VAR, 3, momentum)))
    old, batch = numbers(0, 3), numbers(1, 3)
    found = run(update, {MEAN: old, VAR: old, MEAN.batch.by(0): batch, VAR.batch.by(0): old})
    np.testing.assert_allclose(found[MEAN.next], old * momentum + batch * (1 - momentum), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found[VAR.next], old)
    if momentum == 1:
        np.testing.assert_array_equal(found[MEAN.next], old)


@given(
    low=st.floats(-5, 5, width=32),
    width=st.floats(0, 8, width=32),
    signed=st.booleans(),
    workers=st.integers(1, 3),
)
def test_observed_grids_are_those_of_quant_math(low: float, width: float, signed: bool, workers: int) -> None:
    rule = FollowRange(RANGE, SCALE, ZERO, 8, signed)
    update = build_update(plan(Sgd(), rule, shares=(1 / workers,) * workers))
    ends = [np.float32([low - i, low + width + i]) for i in range(workers)]
    feeds: dict[Port, Any] = {RANGE.batch.by(i): end for i, end in enumerate(ends)}
    found = run(update, {**feeds, RANGE: np.float32([-1, 2])})
    batch = np.float32([min(e[0] for e in ends), max(e[1] for e in ends)])
    old = np.float32([-1, 2])
    moved = old + (batch - old) * np.float32(0.1)
    np.testing.assert_array_equal(found[RANGE.next], moved)
    scale, zero_point = affine_from_range(found[RANGE.next][0], found[RANGE.next][1], 8, signed)
    np.testing.assert_array_equal(found[SCALE.next], scale)
    np.testing.assert_array_equal(found[ZERO.next], np.float32(zero_point))


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("bits", [4, 8])
def test_weight_scales_follow_the_weight_just_updated(axis: int | None, bits: int) -> None:
    update = build_update(
        plan(Sgd(0.0, False, 0.0), Optimise(W, SHAPE, False), FollowMaximum(W, SHAPE, SCALE, axis, bits))
    )
    feeds = {W: numbers(0), W.moment("momentum"): np.zeros(12), W.gradient.by(0): numbers(1), RATE: 1}
    found = run(update, feeds)
    expected = weight_scale(found[W.next].reshape(SHAPE), axis, bits)
    np.testing.assert_array_equal(found[SCALE.next], expected)


def test_gradients_of_unequal_shares_are_weighted() -> None:
    update = build_update(plan(Sgd(0.0, False, 0.0), Optimise(W, (12,), False), shares=(0.75, 0.25)))
    gradients = {W.gradient.by(0): numbers(1), W.gradient.by(1): numbers(2)}
    found = run(update, {W: np.zeros(12), W.moment("momentum"): np.zeros(12), **gradients, RATE: 1})
    np.testing.assert_allclose(found[W.next], -(0.75 * numbers(1) + 0.25 * numbers(2)), rtol=1e-5, atol=1e-7)
