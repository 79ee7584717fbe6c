"""`run_demo`: the whole way at small scale, on data that need no download.

scikit-learn's handwritten digits (1,797 images, 8×8) are split into train, val and test; a teacher and
a student are built as ONNX graphs and trained; the student is then quantised in three ways, each a run
of its own, and all are compared on the test images, which nothing before has looked at.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from onnxslim.builders import small_cnn
from onnxslim.data import Preprocess, ProgressCallback, Say, open_dataset
from onnxslim.errors import InstallationError, OutputError
from onnxslim.evaluation import compare
from onnxslim.files import make_folder, write_atomic
from onnxslim.ir.graph import Array, Graph
from onnxslim.report import ModelRow, model_rows
from onnxslim.report.tables import int8_path, rows_table
from onnxslim.run import RunFolder, compress
from onnxslim.runtime.capabilities import capabilities, host_target

__all__ = ["DemoResult", "load_digits_arrays", "run_demo", "train_models"]

TEACHER_CHANNELS = (24, 48, 96)
STUDENT_CHANNELS = (4, 16, 32)
MEAN, STD = (73.3,), (90.2,)  # of the pixels, scaled to 0–240
TRAIN, VAL, TEST = 1000, 297, 500


@dataclass(frozen=True)
class DemoResult:
    """The exported models by title, and how they compare on the test images, in the same order."""

    models: Mapping[str, Path]
    rows: tuple[ModelRow, ...]
    seconds: float

    def row(self, title: str) -> ModelRow:
        """The row of that title; KeyError otherwise."""
        return {row.name: row for row in self.rows}[title]


def run_demo(
    folder: str | Path, *, seed: int = 0, progress: ProgressCallback | None = None, say: Say | None = None
) -> RenderableType:
    """Runs the demo into `folder` and gives what to print. An earlier demo there is replaced.

    Raises InstallationError where scikit-learn is missing or ONNX Runtime cannot train, OutputError
    where the folder cannot be written or holds something else.
    """
    result = train_models(Path(folder), seed=seed, progress=progress, say=say)
    found = capabilities()
    title = f"Handwritten digits ({TRAIN} train, {VAL} val), measured on {TEST} test images"
    parts: list[RenderableType] = [
        rows_table(result.rows, title),
        Text(),
        Text(_conclusion(result)),
        Text(f"Measured on: {found.cpu}; {int8_path(found.vnni)}; {found.distribution} {found.version}"),
        Text(f"Made in {result.seconds:.0f} s. Files, an .onnx and an .ort a run: {folder}"),
    ]
    return Group(*parts)


def train_models(
    folder: Path,
    *,
    seed: int = 0,
    epochs: int = 12,
    progress: ProgressCallback | None = None,
    say: Say | None = None,
) -> DemoResult:
    """Every model of the demo, trained, exported and compared.

    epochs: of each of the student's trainings; the teacher gets twice as many.
    """
    started = time.perf_counter()
    arrays: dict[str, Any] = {**load_digits_arrays(seed)}
    make_folder(folder)
    data = folder / "digits.npz"
    if data.exists() and not RunFolder(folder / "teacher").exists:
        raise OutputError(f"'{data}' is of no earlier demo, and would be written over: name another folder (--folder)")
    write_atomic(data, lambda file: np.savez(file, **arrays))

    jobs = _jobs(folder, seed, epochs)
    models: dict[str, Path] = {}
    for place, (title, name, recipe) in enumerate(jobs):
        if progress is not None:
            progress("Demo", place, len(jobs))
        if say is not None:
            say(f"{place + 1} of {len(jobs)}: {title}")
        run = {"name": name, "folder": str(folder), "seed": seed}
        roles = {**dict.fromkeys(("train", "val"), str(data)), "normalize": {"mean": [*MEAN], "std": [*STD]}}
        compress(
            {**recipe, "data": roles, "run": run, "evaluate": {"latency_repeats": 0}}, force=True, progress=progress
        )
        models[title] = folder / name / "model.onnx"
    if progress is not None:
        progress("Demo", len(jobs), len(jobs))

    shown = {title: models[title] for title in (*list(models)[1:], next(iter(models)))}  # the teacher last
    rows = compare(shown, open_dataset(data, "test"), Preprocess(MEAN, STD), latency_repeats=200, progress=progress)
    return DemoResult(shown, model_rows(rows), time.perf_counter() - started)


def load_digits_arrays(seed: int = 0) -> dict[str, Array]:
    """scikit-learn's digits: {train,val,test}_image uint8 [n, 8, 8, 1] and _label int64 [n], shuffled by the seed.

    Raises InstallationError where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InstallationError(
            "The demo's handwritten digits come with scikit-learn, which is not installed: install the extra `demo` "
            "(pip install -e '.[demo]' in a clone of this project) or `pip install scikit-learn`"
        ) from error
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images = (digits.images[order] * 15).astype(np.uint8)[..., None]  # 0–16 → 0–240
    labels = digits.target[order].astype(np.int64)
    cuts = {"train": slice(0, TRAIN), "val": slice(TRAIN, TRAIN + VAL), "test": slice(TRAIN + VAL, None)}
    arrays: dict[str, Array] = {}
    for split, part in cuts.items():
        arrays[f"{split}_image"], arrays[f"{split}_label"] = images[part], labels[part]
    return arrays


def _jobs(folder: Path, seed: int, epochs: int) -> list[tuple[str, str, dict[str, Any]]]:
    """Title, run name and recipe of each model, in the order in which they are made."""
    teacher: Graph = small_cnn(TEACHER_CHANNELS, seed=seed)
    student: Graph = small_cnn(STUDENT_CHANNELS, seed=seed + 1)
    trained, trained_teacher = str(folder / "student" / "model.onnx"), str(folder / "teacher" / "model.onnx")
    first, again = _training(epochs, 0.1), _training(epochs, 0.02)
    distilled = {**again, "distill": {"soft_label": {"weight": 0.9}}, "task_loss": {"weight": 0.1}}
    target = host_target() or "x64"
    quantize: dict[str, Any] = {"quantize": {"target": target, "weight_bits": capabilities().exact_weight_bits}}
    export: dict[str, Any] = {"export": {}}
    return [
        ("teacher, float", "teacher", {"model": teacher, "stages": [{"train": _training(2 * epochs, 0.1)}, export]}),
        ("student, float", "student", {"model": student, "stages": [{"train": first}, export]}),
        ("trained on, no teacher", "longer", {"model": trained, "stages": [{"train": again}, export]}),
        ("int8, PTQ", "ptq", {"model": trained, "stages": [quantize, export]}),
        ("int8, QAT", "qat", {"model": trained, "stages": [quantize, {"train": again}, export]}),
        (
            "int8, QAT + distillation",
            "distilled",
            {"model": trained, "teacher": trained_teacher, "stages": [quantize, {"train": distilled}, export]},
        ),
    ]


def _training(epochs: int, learning_rate: float) -> dict[str, Any]:
    return {
        "epochs": epochs,
        "optimizer": {"learning_rate": learning_rate},
        "augment": {"pad": 1, "crop": True},
    }


def _conclusion(result: DemoResult) -> str:
    """What the table shows, in a sentence that holds whatever the numbers are."""
    small, large = result.row("int8, QAT + distillation"), result.row("student, float")
    sizes = f"The distilled int8 student takes {100 * small.bytes / large.bytes:.1f} % of the float one's bytes"
    if small.accuracy is None or large.accuracy is None:
        return sizes + "."
    return (
        f"{sizes}; its top-1 is {100 * (small.accuracy.top1 - large.accuracy.top1):+.1f} points from the float one's."
    )
