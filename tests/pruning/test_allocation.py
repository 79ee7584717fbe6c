"""How many units go: targets are met, barely; limits, multiples and curves are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.analysis.channels import Group, find_groups
from onnxslim.builders import small_cnn
from onnxslim.errors import OptionError, UnsupportedError
from onnxslim.ir.graph import Graph
from onnxslim.pruning.allocation import (
    LatencyTarget,
    Limit,
    SizeTarget,
    allocate,
    by_loss,
    by_threshold,
    limits_of,
    uniform,
)
from onnxslim.pruning.footprint import Footprint
from onnxslim.stages.base import prepared

SetUp: TypeAlias = tuple[tuple[Group, ...], Footprint, dict[str, Limit]]


def set_up(graph: Graph, multiple: int = 1, ratio: float = 0.9) -> SetUp:
    groups = find_groups(graph).free
    limits = limits_of(groups, {g.name: ratio for g in groups}, multiple)
    return groups, Footprint(graph, {g.name: g for g in groups}), limits


@given(
    st.floats(0.15, 1.0),
    st.sampled_from([1, 2, 4]),
    st.lists(st.integers(4, 24), min_size=2, max_size=4),
    st.booleans(),
)
def test_the_target_holds_and_one_step_more_would_break_it(
    part: float, multiple: int, channels: list[int], depthwise: bool
) -> None:
    groups, footprint, limits = set_up(prepared(small_cnn(channels, classes=3, depthwise=depthwise)), multiple)
    bound = part * footprint.size.macs
    deepest = footprint.with_left({name: limit.left(limit.units) for name, limit in limits.items()}).macs
    footprint.with_left({g.name: g.units for g in groups})
    if deepest > bound:
        with pytest.raises(UnsupportedError, match="cannot be reached"):
            allocate(footprint, uniform(groups), limits, [SizeTarget("macs", bound)])
        return
    found = allocate(footprint, uniform(groups), limits, [SizeTarget("macs", bound)])
    assert found.size.macs <= bound
    for name, left in found.left.items():
        limit = limits[name]
        assert limit.least <= left <= limit.units
        assert left % limit.step == 0 or left == limit.units
        if left < limit.units:
            footprint.with_left(found.left)
            footprint.set(name, min(left + limit.step, limit.units))
            assert footprint.size.macs > bound


def test_several_targets_hold_at_once(network: Callable[..., Graph]) -> None:
    groups, footprint, limits = set_up(network((16, 32, 64)))
    whole = footprint.size
    parts = {"macs": 0.6, "bytes": 0.3, "params": 0.5}
    targets = [SizeTarget(quantity, part * getattr(whole, quantity)) for quantity, part in parts.items()]
    found = allocate(footprint, uniform(groups), limits, targets)
    assert found.size.macs <= 0.6 * whole.macs
    assert 0.27 * whole.bytes <= found.size.bytes <= 0.3 * whole.bytes


def test_a_latency_is_met_and_measured_rarely(network: Callable[..., Graph]) -> None:
    groups, footprint, limits = set_up(network((16, 32, 64)))
    measured = []

    def ratio_of(left: Mapping[str, int]) -> float:
        measured.append(left)
        return left["conv2"] / 32

    found = allocate(footprint, uniform(groups), limits, [], LatencyTarget(20 / 32, ratio_of))
    assert 18 <= found.left["conv2"] <= 20
    assert found.latency == found.left["conv2"] / 32
    assert len(measured) == len({tuple(left.values()) for left in measured}) <= 11
    with pytest.raises(UnsupportedError, match=r"latency: at most 0.1 of the whole .* let go, 0.12 was measured"):
        allocate(footprint, uniform(groups), limits, [], LatencyTarget(0.1, ratio_of))


def test_what_rounding_took_too_much_of_is_given_back_in_few_measurements() -> None:
    groups, footprint, limits = set_up(prepared(small_cnn([16] * 12, classes=3)), multiple=8)
    measured = []

    def ratio_of(left: Mapping[str, int]) -> float:
        measured.append(left)
        return sum(left.values()) / sum(g.units for g in groups)

    found = allocate(footprint, uniform(groups), limits, [], LatencyTarget(0.8, ratio_of))
    assert found.latency is not None
    assert 0.8 - 8 / 192 < found.latency <= 0.8
    assert sum(found.repaired.values()) == 8 * sum(left == 16 for left in found.left.values())
    assert len(measured) <= 8


def test_out_of_reach_says_the_range(network: Callable[..., Graph]) -> None:
    groups, footprint, limits = set_up(network((16, 32)), ratio=0.5)
    whole = footprint.size.macs
    least = footprint.with_left({"conv1": 8, "conv2": 16}).macs
    with pytest.raises(UnsupportedError) as error:
        allocate(footprint, uniform(groups), limits, [SizeTarget("macs", 0.01 * whole)])
    assert f"between {least:,} ({100 * least / whole:.1f} %) and {whole:,}" in str(error.value)


@pytest.mark.parametrize(
    ("limit", "lost", "left"),
    [
        (Limit(32, 0.9, 8), 0, 32),
        (Limit(32, 0.9, 8), 11, 24),
        (Limit(32, 0.9, 8), 13, 16),
        (Limit(32, 0.9, 8), 32, 8),
        (Limit(13, 0.9, 8), 1, 13),
        (Limit(13, 0.9, 8), 6, 8),
        (Limit(10, 0.3, 1), 10, 7),
        (Limit(3, 0.99, 1), 3, 1),
        (Limit(4, 0.9, 8), 4, 4),
    ],
)
def test_limits(limit: Limit, lost: float, left: int) -> None:
    assert limit.left(lost) == left


def test_a_unit_of_several_channels_counts_as_many(network: Callable[..., Graph]) -> None:
    groups = find_groups(network()).free
    wide = Group("wide", 16, tuple(m for m in groups[0].members), groups[0].makers)
    assert limits_of([wide], {"wide": 0.9}, 8)["wide"].step == 8 // np.gcd(8, wide.width)


def test_one_threshold_takes_the_lowest_scores_wherever_they_are() -> None:
    ideal = by_threshold({"a": np.array([0.1, 0.2, 3.0, 4.0]), "b": np.array([5.0, 6.0, 0.3, 7.0])})
    assert ideal(0.0) == {"a": 0, "b": 0}
    assert ideal(3 / 8) == {"a": 2, "b": 1}
    assert ideal(1.0) == {"a": 4, "b": 4}


def test_equal_loss_cuts_what_is_not_sensitive(network: Callable[..., Graph]) -> None:
    groups = find_groups(network((10, 10))).free
    curves = {"conv1": {0.5: 0.1, 0.9: 0.2}, "conv2": {0.5: 0.01, 0.9: 0.005}}
    ideal = by_loss(groups, curves)
    # conv2 falls by 1 % at a half; the better point after it does not undo that.
    highest = 0.2 + (0.2 - 0.1) / 0.4 * 0.1
    found = ideal(0.01 / highest)
    assert found["conv1"] == pytest.approx(10 * 0.05, rel=0.02)
    assert found["conv2"] == pytest.approx(5, rel=0.1)  # the whole of it, at 0.01 and what its units count
    assert ideal(0.0112 / highest)["conv2"] == pytest.approx(10)
    assert ideal(0.0) == {"conv1": 0, "conv2": 0}
    assert all(ideal(1.0)[name] == pytest.approx(10) for name in curves)
    with pytest.raises(OptionError, match="nothing of channel group 'conv2'"):
        by_loss(groups, {"conv1": {0.5: 0.1}})


def test_flat_curves_are_cut_little_by_little_and_what_saves_most_first(network: Callable[..., Graph]) -> None:
    groups, footprint, limits = set_up(network((40, 40)))
    flat = {g.name: {0.5: 0.0, 0.9: 0.0} for g in groups}
    ideal = by_loss(groups, flat, {"conv1": 4000.0, "conv2": 1000.0})
    assert ideal(0.0) == {"conv1": 0, "conv2": 0}
    assert ideal(0.1) == {"conv1": pytest.approx(16), "conv2": pytest.approx(4)}
    assert ideal(0.25) == {"conv1": pytest.approx(40), "conv2": pytest.approx(10)}
    whole = footprint.size.macs
    found = allocate(footprint, ideal, limits, [SizeTarget("macs", 0.97 * whole)])
    assert 0.95 * whole < found.size.macs <= 0.97 * whole
    with pytest.raises(UnsupportedError, match=f"and {whole:,} are left"):
        allocate(footprint, ideal, limits, [SizeTarget("macs", 1)])


def test_a_plateau_is_crossed_little_by_little(network: Callable[..., Graph]) -> None:
    groups = find_groups(network((10, 10))).free
    curves = {"conv1": {0.1: 0.02, 0.8: 0.02, 0.9: 0.5}, "conv2": {0.5: 0.5}}
    ideal = by_loss(groups, curves)
    lost = [ideal(level)["conv1"] for level in np.linspace(0, 1, 20_001)]
    assert max(np.diff(lost)) < 1


def test_the_step_that_was_taken_last_is_given_back_first() -> None:
    groups, footprint, limits = set_up(prepared(small_cnn([16, 16, 16], classes=3)), multiple=8)
    curves = {groups[0].name: {0.5: 0.2}, groups[1].name: {0.5: 0.01}, groups[2].name: {0.5: 0.1}}
    sizes = {name: footprint.with_left({g.name: 8 if g.name == name else 16 for g in groups}).macs for name in curves}
    # all but the most sensitive group are enough, and so is the least sensitive one alone
    found = allocate(footprint, by_loss(groups, curves), limits, [SizeTarget("macs", sizes[groups[1].name])])
    assert found.left == {groups[0].name: 16, groups[1].name: 8, groups[2].name: 16}


def test_nothing_goes_at_level_0_whatever_the_multiple() -> None:
    assert Limit(19, 0.9, 8).left(0) == 19
