"""How many units each group loses: a level sets all of them at once, and the least that meets every target is found.

A strategy turns a level between 0 (nothing goes) and 1 (as much as the limits allow) into an ideal number for
each group. These are rounded, the level is bisected, and what rounding took too much of is given back step by step:
first the step that the strategy would have taken last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import numpy as np

from onnxslim.analysis.channels import Group
from onnxslim.errors import OptionError, UnsupportedError
from onnxslim.ir.graph import Array
from onnxslim.pruning.footprint import Footprint, Size

__all__ = [
    "Allocation",
    "Ideal",
    "LatencyTarget",
    "Limit",
    "SizeTarget",
    "allocate",
    "by_loss",
    "by_threshold",
    "limits_of",
    "require_reachable",
    "uniform",
]

Ideal: TypeAlias = Callable[[float], Mapping[str, float]]
"""Units that each group is to lose at a level, before rounding; none at level 0, and never less at a higher level."""

T = TypeVar("T")

_TILT, _STEEPEST = 0.001, 0.01  # relative losses

_HALVINGS, _MEASURED = 40, 7  # bisections where cost is counted, and where it is measured


@dataclass(frozen=True)
class SizeTarget:
    """At most `bound` of a quantity: of macs, params or bytes."""

    quantity: str
    bound: float

    def holds(self, size: Size) -> bool:
        return float(getattr(size, self.quantity)) <= self.bound


@dataclass(frozen=True)
class LatencyTarget(Generic[T]):
    """At most `bound` of the whole model's latency, which `ratio_of` measures of a cut."""

    bound: float
    ratio_of: Callable[[T], float]


@dataclass(frozen=True)
class Limit:
    """Of one group: at most `ratio` of its units go; what is left is a multiple of `step` units, or all of them."""

    units: int
    ratio: float
    step: int

    @property
    def least(self) -> int:
        """The fewest units that may be left."""
        fewest = max(1, math.ceil(self.units * (1 - self.ratio) - 1e-9))
        return min(self.units, -(-fewest // self.step) * self.step)

    def left(self, lost: float) -> int:
        """Units left, rounded to the nearest multiple, within the limits; all where nothing is to go."""
        if lost <= 0:
            return self.units
        kept = math.floor((self.units - lost) / self.step + 0.5) * self.step
        return min(self.units, max(self.least, kept))


@dataclass(frozen=True)
class Allocation:
    """left: units left by group. size: of the model then. level: of the strategy. repaired: units that were given
    back after rounding, by group. latency: of the whole model's, where it was measured."""

    left: Mapping[str, int]
    size: Size
    level: float
    repaired: Mapping[str, int]
    latency: float | None = None


def limits_of(groups: Sequence[Group], ratios: Mapping[str, float], multiple: int) -> dict[str, Limit]:
    """Each group's limit; `multiple` is of channels, and a unit may stand for several."""
    return {g.name: Limit(g.units, ratios[g.name], multiple // math.gcd(multiple, g.width)) for g in groups}


def allocate(
    footprint: Footprint,
    ideal: Ideal,
    limits: Mapping[str, Limit],
    targets: Sequence[SizeTarget],
    latency: LatencyTarget[Mapping[str, int]] | None = None,
) -> Allocation:
    """The least level at which all targets hold, rounded; then steps are given back, the one first that the
    strategy would have taken last, as long as the targets hold.

    latency: of units left by group; it is measured as rarely as can be.
    Raises UnsupportedError with the reachable range where even the highest level does not meet a target.
    """

    def left_at(level: float) -> dict[str, int]:
        lost = ideal(level)
        return {name: limit.left(lost.get(name, 0.0)) for name, limit in limits.items()}

    measured: dict[tuple[int, ...], float] = {}

    def in_time(left: Mapping[str, int]) -> bool:
        if latency is None:
            return True
        cut = tuple(left.values())
        if cut not in measured:
            measured[cut] = latency.ratio_of(left)
        return measured[cut] <= latency.bound

    def holds(left: Mapping[str, int]) -> bool:
        size = footprint.with_left(left)
        return all(target.holds(size) for target in targets) and in_time(left)

    whole, deepest = footprint.with_left(left_at(0.0)), left_at(1.0)
    require_reachable(targets, footprint.with_left(deepest), whole)
    if latency is not None and not in_time(deepest):
        raise UnsupportedError(
            f"latency: at most {latency.bound:.3g} of the whole model's cannot be reached: with all that these limits "
            f"let go, {measured[tuple(deepest.values())]:.2g} was measured. Widen the scope or the limits, lower the "
            "multiple, or ask for less"
        )
    low, high = 0.0, 0.0 if holds(left_at(0.0)) else 1.0
    best = left_at(high)
    for _ in range(_HALVINGS if latency is None else _MEASURED):
        middle = (low + high) / 2
        left = left_at(middle)
        if left == best or holds(left):
            high, best = middle, left
        else:
            low = middle
    merit = _Merit(ideal, limits)
    if latency is None:
        repaired = _repair(footprint, merit, best, limits, targets)
    else:
        repaired = _repair_measured(merit, high, best, limits, holds)
    best = {name: units + repaired.get(name, 0) for name, units in best.items()}
    return Allocation(best, footprint.with_left(best), high, repaired, measured.get(tuple(best.values())))


def require_reachable(targets: Sequence[SizeTarget], smallest: Size, whole: Size) -> None:
    """Raises UnsupportedError with the range that can be reached, where a target is below it."""
    for target in targets:
        if not target.holds(smallest):
            least, most = getattr(smallest, target.quantity), getattr(whole, target.quantity)
            raise UnsupportedError(
                f"{target.quantity}: at most {target.bound:,.0f} cannot be reached: within these limits between "
                f"{least:,} ({100 * least / most:.1f} %) and {most:,} are left. Widen the scope or the limits, lower "
                "the multiple, or ask for less"
            )


class _Merit:
    """At which level a strategy comes to take so much of a group: what it takes last matters most."""

    _LEVELS = np.concatenate([[0.0], np.geomspace(1e-7, 1.0, 4096)])

    def __init__(self, ideal: Ideal, limits: Mapping[str, Limit]) -> None:
        lost = [ideal(float(level)) for level in self._LEVELS]
        self._lost = {name: np.array([found.get(name, 0.0) for found in lost]) for name in limits}
        self._units = {name: limit.units for name, limit in limits.items()}

    def level(self, name: str, left: int) -> float:
        """The least at which no more units than so many are left of a group; above 1 where none leaves so few."""
        place = int(np.searchsorted(self._lost[name], self._units[name] - left - 1e-9))
        return float(self._LEVELS[place]) if place < len(self._LEVELS) else 2.0


def _repair(
    footprint: Footprint,
    merit: _Merit,
    left: Mapping[str, int],
    limits: Mapping[str, Limit],
    targets: Sequence[SizeTarget],
) -> dict[str, int]:
    """Steps that can be given back, by group."""
    left, given = dict(left), dict[str, int]()
    footprint.with_left(left)
    levels = {name: merit.level(name, units) for name, units in left.items() if units < limits[name].units}
    while levels:
        name = max(levels, key=levels.__getitem__)
        step = min(limits[name].step, limits[name].units - left[name])
        footprint.set(name, left[name] + step)
        if all(target.holds(footprint.size) for target in targets):
            left[name] += step
            given[name] = given.get(name, 0) + step
            levels[name] = merit.level(name, left[name])
            if left[name] == limits[name].units:
                del levels[name]
        else:
            footprint.set(name, left[name])
            del levels[name]
    return given


def _repair_measured(
    merit: _Merit,
    reached: float,
    left: Mapping[str, int],
    limits: Mapping[str, Limit],
    holds: Callable[[Mapping[str, int]], bool],
) -> dict[str, int]:
    """The same, in few measurements: one step for each group that was cut deeper than at the level `reached`, as many
    groups as will do."""
    levels = {name: merit.level(name, units) for name, units in left.items() if units < limits[name].units}
    deep = sorted((name for name, level in levels.items() if level > reached), key=lambda name: -levels[name])
    steps = [(name, min(limits[name].step, limits[name].units - left[name])) for name in deep]
    low, high = 0, len(steps) + 1  # so many can be given back; so many cannot
    while high - low > 1:
        middle = (low + high) // 2
        given = dict(steps[:middle])
        if holds({name: units + given.get(name, 0) for name, units in left.items()}):
            low = middle
        else:
            high = middle
    return dict(steps[:low])


def uniform(groups: Sequence[Group]) -> Ideal:
    """The same ratio of every group."""
    return lambda level: {group.name: level * group.units for group in groups}


def by_threshold(scores: Mapping[str, Array]) -> Ideal:
    """What scores lowest, wherever it is: one threshold for all groups."""
    every = np.sort(np.concatenate(list(scores.values()))) if scores else np.zeros(0)

    def ideal(level: float) -> dict[str, float]:
        if level <= 0:
            return dict.fromkeys(scores, 0.0)
        threshold = every[min(int(level * len(every)), len(every) - 1)]
        return {
            name: float((values < threshold).sum() if level < 1 else len(values)) for name, values in scores.items()
        }

    return ideal


def by_loss(
    groups: Sequence[Group], curves: Mapping[str, Mapping[float, float]], savings: Mapping[str, float] | None = None
) -> Ideal:
    """What costs each group the same measured loss: the sensitivity curves, made monotone, cut by one line.

    curves: by group, the relative loss by ratio of units gone. Beyond the last ratio a curve goes on as steeply as it
    last rose, up to where all is gone. savings: by group, what its units save altogether, in any unit (MACs); default:
    all the same.

    Where curves are flat, what saves most goes first: losing all of the group that saves most counts as a loss of
    0.001 beside the measured one, of a group that saves a part p of that as 0.001 / p, but never as more than 0.01.
    """
    most = max((savings or {}).values(), default=0.0)
    lines = {}
    for group in groups:
        points = curves.get(group.name)
        if not points:
            raise OptionError("sensitivities", f"they say nothing of channel group '{group.name}': analyse this model")
        ratios = [0.0, *sorted(points)]
        losses = np.maximum.accumulate([0.0, *(max(points[r], 0.0) for r in sorted(points))])
        if ratios[-1] < 1:
            slope = (losses[-1] - losses[-2]) / (ratios[-1] - ratios[-2])
            ratios.append(1.0)
            losses = np.append(losses, losses[-1] + slope * (1 - ratios[-2]))
        saving = (savings or {}).get(group.name, 0.0)
        tilt = min(_TILT * most / saving, _STEEPEST) if saving > 0 else (_STEEPEST if most else _TILT)
        lines[group.name] = (group.units, np.array(ratios), losses + tilt * np.array(ratios))
    highest = max((losses[-1] for _, _, losses in lines.values()), default=0.0)

    def ideal(level: float) -> dict[str, float]:
        return {
            name: units * float(np.interp(level * highest, losses, ratios))
            for name, (units, ratios, losses) in lines.items()
        }

    return ideal
