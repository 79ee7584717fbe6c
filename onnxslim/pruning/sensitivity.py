"""How much a model's metric falls when part of one channel group goes: measured group by group, kept in a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxslim.brief import Brief
from onnxslim.data import ProgressCallback
from onnxslim.errors import CheckpointError, DataError
from onnxslim.evaluation import Point, Variant, evaluate_many
from onnxslim.files import held, read_json
from onnxslim.ir.graph import Graph
from onnxslim.records import read_record, write_record

__all__ = ["Sensitivities", "measure_sensitivities"]

_VERSION = 1


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

    def save(self, path: Path) -> None:
        """Written atomically, as JSON with a digest of its own; a file without one is read too."""
        groups = {
            name: {"units": self.units[name], "metric": {str(r): m for r, m in sorted(points.items())}}
            for name, points in self.metrics.items()
        }
        content = {
            "version": _VERSION,
            "context": dict(self.context),
            "baseline": self.baseline,
            "groups": groups,
            "pinned": dict(self.pinned),
        }
        write_record(path, content)

    @classmethod
    def load(cls, path: Path) -> Sensitivities:
        """Raises DataError where the file is missing or is none of this kind."""
        try:
            content = read_json(path)
            if "digest" in content:
                content = read_record(path)
            if content["version"] != _VERSION:
                raise DataError(f"{path}: sensitivities of version {content['version']}, expected {_VERSION}")
            groups = content["groups"]
            found = cls(
                dict(content["context"]),
                float(content["baseline"]),
                {name: {float(r): float(m) for r, m in g["metric"].items()} for name, g in groups.items()},
                {name: int(g["units"]) for name, g in groups.items()},
                dict(content["pinned"]),
            )
            for name, points in found.metrics.items():
                for ratio, metric in points.items():
                    if not (0 < ratio < 1 and math.isfinite(metric)):
                        raise ValueError(f"group '{name}' has the metric {metric} at the ratio {ratio}")
            return found
        except FileNotFoundError:
            raise DataError(f"Sensitivities not found: {path}; `onnxslim sensitivity` measures them") from None
        except (CheckpointError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path} is not a file of sensitivities ({error}): move it away to measure anew") from error

    def check_context(self, context: Mapping[str, Any], path: Path) -> None:
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
    whole model's. plan: groups (`units`), pinned ones and the context, no points yet. path: the file, written after
    every point; a file of another context is refused.

    Raises DataError where the baseline is not above 0, which no loss can be relative to.
    """
    found = _begun(plan, path, baseline)
    if not found.baseline > 0:
        raise DataError(f"The model's metric is {found.baseline:g}; losses are relative to it, so it must be above 0")
    busy = f"{path} is being measured into by another process: wait for it, or name another file"
    with nullcontext() if path is None else held(path, busy):
        whole = found.baseline
        found = _begun(plan, path, lambda: whole)  # with what others have added meanwhile
        metrics = {name: dict(found.metrics.get(name, {})) for name in found.units}  # those out of scope stay too
        found = replace(found, metrics=metrics)
        if path is not None:
            found.save(path)

        def store(key: tuple[str, float], point: Point) -> None:
            assert isinstance(point.result, float)
            metrics[key[0]][key[1]] = point.result
            if path is not None:
                found.save(path)

        open_points = [(name, ratio) for name in plan.units for ratio in ratios if ratio not in metrics[name]]
        variants: dict[tuple[str, float], Variant] = {key: _made(variant, *key) for key in open_points}
        evaluate_many(variants, metric, workers=workers, progress=progress, finished=store)
    return found


def _begun(plan: Sensitivities, path: Path | None, baseline: Callable[[], float]) -> Sensitivities:
    """What the file has of this plan; without a file, the plan with its baseline."""
    if path is None or not path.exists():
        return replace(plan, baseline=baseline())
    found = Sensitivities.load(path)
    found.check_context(plan.context, path)
    return replace(found, units={**found.units, **plan.units}, pinned=plan.pinned)


def _made(variant: Callable[[str, float], Graph], name: str, ratio: float) -> Callable[[], Graph]:
    return lambda: variant(name, ratio)


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
