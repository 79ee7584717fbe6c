"""The steps of a training stage: `check` builds those of `run`, in layouts that equal runs choose alike."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.errors import DataError, VerifyError
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.onnx_io import write
from onnxslim.ir.rewrite import Outcome
from onnxslim.run import compress
from onnxslim.runtime.capabilities import capabilities
from onnxslim.stages import Train
from onnxslim.stages.base import prepared
from onnxslim.training import loop
from onnxslim.training.step import LAYOUTS
from onnxslim.training.step_passes import StepContext
from passes.simplify import EliminateDead, FoldBatchnorm

TRAIN = {"epochs": 2, "batch": 32, "freeze_batchnorm": 0.5}
BARE = {"export": {"ort": False}}
DISTILLED = {**TRAIN, "views": 2, "distill": {}}


def recipe(*stages: dict[str, Any], **run: Any) -> dict[str, Any]:
    data = {"train": "data.npz", "val": "data.npz", "normalize": {"mean": [100], "std": [50]}}
    return {
        "model": "student.onnx", "data": data, "run": {"name": "mine", "workers": 1, **run},
        "stages": [*stages, BARE], "evaluate": {"latency_repeats": 0},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "teacher"),
    [
        ([{"train": TRAIN}], False),
        ([{"train": {**TRAIN, "restore_batchnorm": False}}], False),
        ([{"quantize": {"samples": 32}}, {"train": TRAIN}], False),
        ([{"quantize": {"samples": 32, "per_channel": False}}, {"train": TRAIN}], False),
        ([{"train": DISTILLED}], True),
    ],
    ids=["float", "no batch norm", "qat", "per tensor", "cached teacher"],
)
def test_check_builds_the_steps_that_run_builds(
    job: Path, monkeypatch: pytest.MonkeyPatch, stages: list[dict[str, Any]], teacher: bool
) -> None:
    """The same ops of the student, sizes, phases, layouts and teacher: what cannot be built is found before anything
    is written, and nothing is found that a run would not meet."""
    built: list[Any] = []
    began: list[int] = []
    build, run = loop.build_step, Train.run

    def noted(student: Graph, batch: int, options: Any, of: Graph | None = None, **rest: Any) -> Any:
        ops = Counter((node.domain, node.op) for node in student.nodes())
        built.append((frozenset(ops.items()), batch, of is not None, options))
        return build(student, batch, options, of, **rest)

    def started(self: Train, *arguments: Any) -> Any:
        began.append(len(built))
        return run(self, *arguments)

    monkeypatch.setattr(loop, "build_step", noted)
    monkeypatch.setattr(Train, "run", started)
    compress(recipe(*stages) | ({"teacher": "teacher.onnx"} if teacher else {}))
    checked, ran = built[: began[0]], built[began[0] :]
    assert {step[3].frozen_batchnorm for step in checked} == (
        {False} if "per_channel" in str(stages) else {False, True}
    )
    assert set(checked) == set(ran)


@pytest.mark.parametrize("quantize", [False, True], ids=["float", "qat"])
def test_a_recipe_that_is_checked_names_the_pass(job: Path, monkeypatch: pytest.MonkeyPatch, quantize: bool) -> None:
    """One pass of the training step halves the logits; it is found before anything is written."""
    run = EliminateDead.run

    def spoiled(self: EliminateDead, graph: Graph, context: Any) -> Outcome:
        outcome = run(self, graph, context)
        if not isinstance(context, StepContext):
            return outcome
        logits = next(n for n in graph.nodes() if n.op == "LogSoftmax")
        half = graph.op("Mul", graph.operand(logits, 0), graph.add_constant("half", np.float32(0.5)), name="mistake")
        graph.set_type(half, DType.FLOAT, graph.operand(logits, 0).shape)
        graph.set_input(logits, 0, half)
        return Outcome(outcome.rewrites + 1)

    stages: list[dict[str, Any]] = [{"quantize": {"samples": 32}}] if quantize else []
    checked = recipe(*stages, {"train": {**TRAIN, "epochs": 1, "layout": "plain"}})
    compress(checked, check=True)
    monkeypatch.setattr(EliminateDead, "run", spoiled)
    with pytest.raises(VerifyError, match=r"After pass 'eliminate_dead': 'eliminate_dead' changed"):
        compress(checked | {"run": {"name": "other", "workers": 1}}, check=True)
    assert not (job / "runs" / "other").exists()


def test_a_layout_that_cannot_be_had_is_said_and_does_not_end_the_run(job: Path) -> None:
    """30 images are no multiple of any CPU's lanes."""
    report = compress(recipe({"train": {"epochs": 1, "batch": 30, "layout": "lanes"}}))
    lanes = capabilities().lanes or 8
    note = f"layout: lanes was asked for, and plain is taken: a worker's 30 images are no multiple of {lanes}"
    assert any(note in line for line in report.notes)
    plan = json.loads((job / "runs" / "mine" / "plan.json").read_text())["0-train"]
    assert (plan["layout"], set(plan["refused"])) == ("plain", {"lanes"})


def test_equal_runs_give_equal_models(job: Path) -> None:
    """Under default options, layout: auto among them; and the choice is written down before the first step."""
    wide = capabilities().lanes or 8
    write(small_cnn((wide, wide), classes=6), job / "student.onnx")
    lines: list[str] = []
    for name in ("a", "b"):
        compress(recipe({"train": TRAIN}, name=name), say=lines.append)
    first, second = ((job / "runs" / name / "model.onnx").read_bytes() for name in ("a", "b"))
    assert first == second
    plans = [(job / "runs" / name / "plan.json").read_bytes() for name in ("a", "b")]
    assert plans[0] == plans[1]
    words = [line.partition(": ")[2] for line in lines]
    chosen = next(i for i, line in enumerate(words) if re.match(f"({'|'.join(LAYOUTS)}) layout", line))
    assert words.index("comparing the layouts of the training step") < chosen
    assert chosen < next(i for i, line in enumerate(words) if line.startswith("epoch 1 of "))
    assert json.loads(plans[0])["0-train"]["layout"] in LAYOUTS


def test_no_thread_is_left_where_the_data_end_a_run(job: Path) -> None:
    """NaN in an image: found while batch norms are measured, in the middle of an epoch that is read ahead."""
    graph = prepared(small_cnn((4, 8), classes=6))
    FoldBatchnorm()(graph)
    images = np.zeros((96, 1, 8, 8), np.float32)
    images[90] = np.nan
    data = {"train": {"image": images, "label": np.arange(96) % 6}}
    made = recipe({"train": {**TRAIN, "batch": 8, "threads": 2}}) | {"model": graph, "data": data}
    with pytest.raises(DataError, match="NaN"):
        compress(made)
    assert not [t.name for t in threading.enumerate() if t.name.startswith(("loader", "worker"))]
