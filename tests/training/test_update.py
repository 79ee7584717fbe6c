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
from onnxslim.training.update import (
    BatchNormSpec,
    ObserverSpec,
    ParameterSpec,
    UpdatePlan,
    WeightScaleSpec,
    build_update,
)

SHAPE = (3, 2, 2, 1)


def plan(optimizer: Any, **parts: Any) -> UpdatePlan:
    fields = {"parameters": (), "batchnorms": (), "observers": (), "weights": (), "shares": (1.0,), **parts}
    return UpdatePlan(optimizer=optimizer, **fields)


def numbers(seed: int, size: int = 12) -> Array:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def run(update: Any, feeds: dict[str, Any]) -> dict[str, Array]:
    session = Session(update)
    arrays = {name: np.asarray(array, np.float32) for name, array in feeds.items()}
    return session.run({port.name: arrays[port.name] for port in session.inputs})


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("decays", [True, False])
def test_sgd(nesterov: bool, decays: bool) -> None:
    update = build_update(plan(Sgd(0.9, nesterov, 0.01), parameters=(ParameterSpec("w", SHAPE, decays),)))
    w, m = numbers(0), np.zeros(12, np.float32)
    w64, m64 = w.astype(np.float64), np.zeros(12)
    for step in range(1, 6):
        g = numbers(step)
        found = run(update, {"w": w, "w.momentum": m, "w0/grad.w": g, "lr": 0.1, "step": step})
        w, m = found["w.next"], found["w.momentum.next"]
        g64 = g + (0.01 * w64 if decays else 0)
        m64 = 0.9 * m64 + g64
        w64 = w64 - 0.1 * (g64 + 0.9 * m64 if nesterov else m64)
        np.testing.assert_allclose(w, w64, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decays", [True, False])
def test_adamw(decays: bool) -> None:
    update = build_update(plan(AdamW((0.9, 0.99), 1e-8, 0.1), parameters=(ParameterSpec("w", SHAPE, decays),)))
    state = {"w": numbers(0), "w.exp_avg": np.zeros(12), "w.exp_avg_sq": np.zeros(12)}
    w, m, v = numbers(0).astype(np.float64), np.zeros(12), np.zeros(12)
    for step in range(1, 6):
        g = numbers(step)
        found = run(update, {**state, "w0/grad.w": g, "lr": 0.05, "step": step})
        state = {name: found[f"{name}.next"] for name in state}
        w = w * (1 - 0.05 * 0.1) if decays else w
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g.astype(np.float64) ** 2
        w = w - 0.05 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
        np.testing.assert_allclose(state["w"], w, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("bound", [0.5, 1e3])
def test_clipping_bounds_the_norm_over_all_gradients(bound: float) -> None:
    specs = (ParameterSpec("a", (12,), False), ParameterSpec("b", (12,), False))
    update = build_update(plan(Sgd(0.0, False, 0.0, clip_norm=bound), parameters=specs))
    feeds = {n: np.zeros(12) for n in ("a", "b", "a.momentum", "b.momentum")}
    grads = {"a": numbers(1), "b": numbers(2)}
    found = run(update, {**feeds, **{f"w0/grad.{n}": g for n, g in grads.items()}, "lr": 1, "step": 1})
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
    assert found["grad_norm"] == pytest.approx(norm, rel=1e-5)
    for name, g in grads.items():
        np.testing.assert_allclose(found[f"{name}.next"], -g * min(1, bound / norm), rtol=1e-4)


@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    offset=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_batch_norm_statistics_are_those_of_the_whole_batch(sizes: list[int], offset: float, seed: int) -> None:
    """Workers of unequal shares, merged, give the mean and biased variance of all samples together."""
    rng, total = np.random.default_rng(seed), sum(sizes)
    parts = [rng.normal(offset, 1, size=(n, 2, 5)) for n in sizes]
    spec = BatchNormSpec("mean", "var", 2)
    update = build_update(plan(Sgd(), batchnorms=(spec,), shares=tuple(n / total for n in sizes)))
    feeds: dict[str, Any] = {"mean": [1, 2], "var": [3, 4], "lr": 0, "step": 1}
    for i, part in enumerate(parts):
        feeds |= {f"w{i}/batch_mean.mean": part.mean((0, 2)), f"w{i}/batch_var.mean": part.var((0, 2))}
    found = run(update, feeds)
    whole = np.concatenate(parts)
    np.testing.assert_allclose(found["mean.next"], 0.9 * np.array([1, 2]) + 0.1 * whole.mean((0, 2)), rtol=1e-4)
    np.testing.assert_allclose(found["var.next"], 0.9 * np.array([3, 4]) + 0.1 * whole.var((0, 2)), rtol=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 1.0])
def test_running_statistics_move_by_their_own_momentum(momentum: float) -> None:
    """ONNX's: running = old·momentum + batch·(1 − momentum). What has arrived stays, to the last bit."""
    update = build_update(plan(Sgd(), batchnorms=(BatchNormSpec("mean", "var", 3, momentum),)))
    old, batch = numbers(0, 3), numbers(1, 3)
    feeds = {"mean": old, "var": old, "w0/batch_mean.mean": batch, "w0/batch_var.mean": old, "lr": 0, "step": 1}
    found = run(update, feeds)
    np.testing.assert_allclose(found["mean.next"], old * momentum + batch * (1 - momentum), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found["var.next"], old)
    if momentum == 1:
        np.testing.assert_array_equal(found["mean.next"], old)


@given(
    low=st.floats(-5, 5, width=32),
    width=st.floats(0, 8, width=32),
    signed=st.booleans(),
    workers=st.integers(1, 3),
)
def test_observed_grids_are_those_of_quant_math(low: float, width: float, signed: bool, workers: int) -> None:
    spec = ObserverSpec("range", "scale", "zero", 8, signed)
    update = build_update(plan(Sgd(), observers=(spec,), shares=(1 / workers,) * workers))
    ends = [np.float32([low - i, low + width + i]) for i in range(workers)]
    feeds: dict[str, Any] = {f"w{i}/observed.range": end for i, end in enumerate(ends)}
    found = run(update, {**feeds, "range": np.float32([-1, 2]), "lr": 0, "step": 1})
    batch = np.float32([min(e[0] for e in ends), max(e[1] for e in ends)])
    old = np.float32([-1, 2])
    moved = old + (batch - old) * np.float32(0.1)
    np.testing.assert_array_equal(found["range.next"], moved)
    scale, zero_point = affine_from_range(found["range.next"][0], found["range.next"][1], 8, signed)
    np.testing.assert_array_equal(found["scale.next"], scale)
    np.testing.assert_array_equal(found["zero.next"], np.float32(zero_point))


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("bits", [4, 8])
def test_weight_scales_follow_the_weight_just_updated(axis: int | None, bits: int) -> None:
    specs = {"parameters": (ParameterSpec("w", SHAPE, False),), "weights": (WeightScaleSpec("w", "s", axis, bits),)}
    update = build_update(plan(Sgd(0.0, False, 0.0), **specs))
    zeros = np.zeros(12)
    found = run(update, {"w": numbers(0), "w.momentum": zeros, "w0/grad.w": numbers(1), "lr": 1, "step": 1})
    expected = weight_scale(found["w.next"].reshape(SHAPE), axis, bits)
    np.testing.assert_array_equal(found["s.next"], expected)


def test_gradients_of_unequal_shares_are_weighted() -> None:
    specs = (ParameterSpec("w", (12,), False),)
    update = build_update(plan(Sgd(0.0, False, 0.0), parameters=specs, shares=(0.75, 0.25)))
    feeds = {"w": np.zeros(12), "w.momentum": np.zeros(12), "w0/grad.w": numbers(1), "w1/grad.w": numbers(2)}
    found = run(update, {**feeds, "lr": 1, "step": 1})
    np.testing.assert_allclose(found["w.next"], -(0.75 * numbers(1) + 0.25 * numbers(2)), rtol=1e-5, atol=1e-7)
