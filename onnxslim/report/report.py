"""`Report`: what a run found, in numbers that JSON holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxslim.brief import Brief
from onnxslim.errors import CheckpointError, DataError
from onnxslim.evaluation import Evaluation, Interval, Row
from onnxslim.files import read_json, write_atomic

__all__ = [
    "Accuracy",
    "ModelRow",
    "Report",
    "StageRow",
    "accuracy_from",
    "accuracy_of",
    "model_rows",
    "short_names",
    "stage_from",
]

_VERSION = 1


@dataclass(frozen=True)
class Accuracy:
    """Fractions of 1 over n samples, with Wilson's 95 % intervals; top5 from six classes on."""

    n: int
    top1: float
    interval: Interval
    top5: float | None = None
    interval_top5: Interval | None = None


@dataclass(frozen=True)
class ModelRow:
    """One model beside others. Ratios and McNemar's test are against the first row.

    mcnemar: {"b": only the first right, "c": only this one right, "p": two-sided exact}. ort_bytes: of the
    same model in the ORT format, where that was written. foreign: the target of an int8 model that is not this machine.
    """

    name: str
    bytes: int
    bytes_ratio: float
    accuracy: Accuracy | None = None
    mcnemar: Mapping[str, float] | None = None
    latency: Mapping[str, float] | None = None
    ort_bytes: int | None = None
    foreign: str | None = None


@dataclass(frozen=True)
class StageRow:
    """One stage: what it did, its accuracy on val after it, where passes did not fire, and what it has to say."""

    kind: str
    seconds: float
    summary: Mapping[str, Any] = field(default_factory=dict)
    val: Accuracy | None = None
    refused: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Report(Brief):
    """A finished run. `split`: the data that `rows` are measured on; None where none are labelled.
    `notes`: what a user should know and did not ask for, a sentence each."""

    name: str
    folder: str
    split: str | None
    rows: tuple[ModelRow, ...]
    stages: tuple[StageRow, ...]
    baseline_val: Accuracy | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def row(self, name: str) -> ModelRow:
        """The row of that name; KeyError otherwise."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_json(self) -> str:
        return json.dumps({"version": _VERSION, **dataclasses.asdict(self)}, indent=1)

    def write(self, path: str | Path) -> None:
        write_atomic(path, (self.to_json() + "\n").encode())

    @classmethod
    def read(cls, path: str | Path) -> Report:
        """The report in a report.json; CheckpointError where it is none."""
        try:
            content = read_json(Path(path))
            if content.pop("version") != _VERSION:
                raise CheckpointError(f"{path} is a report of another version of onnxslim; expected {_VERSION}")
            rows = tuple(_row(row) for row in content.pop("rows"))
            stages = tuple(stage_from(stage) for stage in content.pop("stages"))
            baseline = accuracy_from(content.pop("baseline_val"))
            notes = tuple(content.pop("notes", ()))
            return cls(rows=rows, stages=stages, baseline_val=baseline, notes=notes, **content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is not a readable report ({error}): move it away") from error

    def __str__(self) -> str:
        from onnxslim.report.tables import render, report_view

        return render(report_view(self))


def accuracy_of(evaluation: Evaluation | None) -> Accuracy | None:
    """The proportions of an evaluation, without its samples."""
    if evaluation is None:
        return None
    return Accuracy(evaluation.n, evaluation.top1, evaluation.interval, evaluation.top5, evaluation.interval_top5)


def model_rows(rows: Sequence[Row]) -> tuple[ModelRow, ...]:
    """Rows of `compare`, as numbers."""
    return tuple(
        ModelRow(
            row.name,
            row.bytes,
            row.bytes_ratio,
            accuracy_of(row.evaluation),
            None if row.mcnemar is None else dataclasses.asdict(row.mcnemar),
            None if row.latency is None else dataclasses.asdict(row.latency),
            foreign=row.foreign,
        )
        for row in rows
    )


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart; DataError where one is given twice."""
    for path in paths:
        if paths.count(path) > 1:
            raise DataError(f"{path} is given twice")
    names = [str(path) for path in paths]
    for parts in range(max(len(path.parts) for path in paths), 0, -1):
        shorter = ["/".join(path.parts[-parts:]) for path in paths]
        if len(dict.fromkeys(shorter)) == len(shorter):
            names = shorter
    return names


def accuracy_from(content: Mapping[str, Any] | None) -> Accuracy | None:
    """An accuracy as JSON gave it back."""
    if content is None:
        return None
    pairs = {key: None if content[key] is None else tuple(content[key]) for key in ("interval", "interval_top5")}
    return Accuracy(**{**content, **pairs})


def _row(content: Mapping[str, Any]) -> ModelRow:
    return ModelRow(**{**content, "accuracy": accuracy_from(content["accuracy"])})


def stage_from(content: Mapping[str, Any]) -> StageRow:
    """A stage's row as JSON gave it back."""
    refused = tuple((where, why) for where, why in content["refused"])
    pairs = {"val": accuracy_from(content["val"]), "refused": refused, "notes": tuple(content.get("notes", ()))}
    return StageRow(**{**content, **pairs})
