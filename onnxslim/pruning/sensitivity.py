"""How much a model's metric falls when part of one channel group goes: measured group by group, kept in a store."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxslim.brief import Brief
from onnxslim.data import ProgressCallback
from onnxslim.errors import DataError
from onnxslim.evaluation import Point, Result, Store, Variant, evaluate_many
from onnxslim.files import held
from onnxslim.ir.graph import Graph

__all__ = ["Sensitivities", "measure_sensitivities"]

_CONTEXT = "sensitivities"
_PLAN = "plan"
"""Of the store: the key of what is not a point. A group's points have keys of their own."""


@dataclass(frozen=True, repr=False)
class Sensitivities(Brief):
    """The metric of a model with a ratio of one group's units gone.

    context: what the points depend on (digests of model and data, criterion …). metrics: by group, by ratio.
    units: of each group. pinned: groups that cannot be cut, and why; they are listed so that none is missing.
    """

    context: Mapping[str, Any]
    baseline: float
    metrics: Mapping[str, Mapping[float, float]]
    units: Mapping[str, int] = field(default_factory=dict)
    pinned: Mapping[str, str] = field(default_factory=dict)

    @property
    def losses(self) -> dict[str, dict[float, float]]:
        """By group and ratio, the part of the metric that is lost: (baseline − metric) / baseline."""
        return {
            group: {ratio: (self.baseline - metric) / self.baseline for ratio, metric in points.items()}
            for group, points in self.metrics.items()
        }

    @classmethod
    def load(cls, path: Path) -> Sensitivities:
        """Raises DataError where the file is missing, has none or is of another kind."""
        found = cls._stored(Store(path, _CONTEXT), path)
        if found is None:
            raise DataError(f"Sensitivities not found: {path} has none; `onnxslim sensitivity` measures them")
        return found

    @classmethod
    def _stored(cls, store: Store, path: Path | None) -> Sensitivities | None:
        """What a store has, if anything."""
        if not store.entries:
            return None
        try:
            plan: Any = store.entries[_PLAN].result
            units = {name: int(count) for name, count in plan["units"].items()}
            metrics: dict[str, dict[float, float]] = {name: {} for name in units}
            for key, entry in store.entries.items():
                if key != _PLAN:
                    point: Any = entry.result
                    metrics[point["group"]][_ratio(point["ratio"])] = _finite(point["metric"])
            return cls(dict(plan["context"]), _finite(plan["baseline"]), metrics, units, dict(plan["pinned"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path} is not a file of sensitivities ({error}): move it away to measure anew") from error

    def _plan(self) -> Result:
        """What is stored beside the points."""
        plan = {"context": self.context, "baseline": self.baseline, "units": self.units, "pinned": self.pinned}
        stored: Result = json.loads(json.dumps(plan))
        return stored

    def check_context(self, context: Mapping[str, Any], path: Path | None) -> None:
        """Raises DataError naming the first thing in which the file was measured otherwise."""
        for key, expected in context.items():
            got = self.context.get(key)
            if got != expected:
                raise DataError(
                    f"{path} was measured with another {key}: expected {_short(expected)}, got {_short(got)}. "
                    "Name another file, or move this one away to measure anew"
                )


def measure_sensitivities(
    variant: Callable[[str, float], Graph],
    metric: Callable[[Graph], float],
    baseline: Callable[[], float],
    plan: Sensitivities,
    ratios: Sequence[float],
    *,
    path: Path | None = None,
    workers: int = 1,
    progress: ProgressCallback | None = None,
) -> Sensitivities:
    """Evaluates every group at every ratio, `workers` models at a time; what the file has is not measured again.

    variant: the model with a ratio of a group gone. metric: larger is better; runs on one core each. baseline: the
    whole model's. plan: groups (`units`), pinned ones and the context, no points yet. path: a `Store`, to which every
    point adds a line; a file of another context is refused.

    Raises DataError where the baseline is not above 0, which no loss can be relative to.
    """
    found = _begun(plan, Store(path, _CONTEXT), path, baseline)
    if not found.baseline > 0:
        raise DataError(f"The model's metric is {found.baseline:g}; losses are relative to it, so it must be above 0")
    busy = f"{path} is being measured into by another process: wait for it, or name another file"
    with nullcontext() if path is None else held(path, busy):
        whole, store = found.baseline, Store(path, _CONTEXT)  # with what others have added meanwhile
        found = _begun(plan, store, path, lambda: whole)
        metrics = {name: dict(found.metrics.get(name, {})) for name in found.units}  # those out of scope stay too
        found = replace(found, metrics=metrics)
        known = store.entries.get(_PLAN)
        if known is None or known.result != found._plan():
            store.add(_PLAN, found._plan())

        def keep(key: tuple[str, float], point: Point) -> None:
            (group, ratio), metric = key, point.result
            assert isinstance(metric, float)
            metrics[group][ratio] = metric
            store.add(json.dumps(key), {"group": group, "ratio": ratio, "metric": metric}, point.seconds)

        open_points = [(name, ratio) for name in plan.units for ratio in ratios if ratio not in metrics[name]]
        variants: dict[tuple[str, float], Variant] = {key: _made(variant, *key) for key in open_points}
        evaluate_many(variants, metric, workers=workers, progress=progress, finished=keep)
    return found


def _begun(plan: Sensitivities, store: Store, path: Path | None, baseline: Callable[[], float]) -> Sensitivities:
    """What the store has of this plan; where it has nothing, the plan with its baseline."""
    found = Sensitivities._stored(store, path)
    if found is None:
        return replace(plan, baseline=baseline())
    found.check_context(plan.context, path)
    return replace(found, units={**found.units, **plan.units}, pinned=plan.pinned)


def _ratio(number: Any) -> float:
    if not 0 < number < 1:
        raise ValueError(f"a ratio is between 0 and 1, got {number}")
    return float(number)


def _finite(number: Any) -> float:
    if not math.isfinite(number):
        raise ValueError(f"a metric is finite, got {number}")
    return float(number)


def _made(variant: Callable[[str, float], Graph], name: str, ratio: float) -> Callable[[], Graph]:
    return lambda: variant(name, ratio)


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
