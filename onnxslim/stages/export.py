"""`Export`: the files a device runs — QDQ int8 `.onnx`, `.ort`, and the operators a small runtime needs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from onnxslim.analysis.precision import TARGET_KEY, precision_of, quantized_for
from onnxslim.brief import Brief
from onnxslim.data import Preprocess
from onnxslim.errors import UnsupportedError
from onnxslim.evaluation.trial import require_runs
from onnxslim.files import make_folder, require_name, write_atomic, write_together
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import to_bytes
from onnxslim.ir.rewrite import Context, Outcome, Pass, Refusal
from onnxslim.runtime.ort_format import write_ort
from onnxslim.stages.base import RunContext, Stage, StageResult
from onnxslim.stages.preprocessing import note_preprocess
from onnxslim.stages.quantize import TargetName
from onnxslim.targets import Target, load_target, target_names
from passes.deploy import finish
from passes.quantize import FlattenToReshape, LowerToQdq, RoundBiases, SaturateHardSigmoid, ShiftActivations
from passes.simplify import FoldBatchnorm, FuseNormalization, canonicalize

__all__ = ["Export", "Exported", "export_model", "lower", "target_of"]


@dataclass(frozen=True, repr=False)
class Exported(Brief):
    """What was written for one target; `ort` and `config` are None where they were not asked for."""

    target: str
    precision: str  # "int8" or "float"
    onnx: Path
    ort: Path | None
    config: Path | None
    refused: tuple[Refusal, ...] = ()
    note: str | None = None  # why it could not be run before it was written

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.onnx, self.ort, self.config) if path is not None)

    def record(self, folder: Path) -> dict[str, Any]:
        """As JSON, paths relative to `folder`."""
        files = {"onnx": self.onnx, "ort": self.ort, "config": self.config}
        named = {key: path.relative_to(folder).as_posix() for key, path in files.items() if path is not None}
        sizes = {f"{key}_bytes": path.stat().st_size for key, path in files.items() if path and key != "config"}
        return {"target": self.target, "precision": self.precision, **named, **sizes}


class Export(Stage):
    """Folds batch norm, lowers fake-quant to int8 and writes model.onnx, model.ort and the operators' list."""

    kind: ClassVar[str] = "export"
    repeatable: ClassVar[bool] = True

    targets: list[TargetName] = Field(
        default=[],
        description=f"What to write for: one or several of {', '.join(target_names())}. One quantised model serves all "
        "that take activations of as many bits. The first is written to the run's folder, others to folders of their "
        "own. Default: what was quantised for.",
    )
    ort: bool = Field(default=True, description="Also write the ORT format and required_operators.config.")

    def run(self, graph: Graph, context: RunContext) -> StageResult:
        targets = list(dict.fromkeys(self.targets)) or [target_of(graph)]
        written = []
        for number, target in enumerate(targets):
            folder = context.folder if number == 0 else context.folder / target
            written.append(export_model(graph, target, folder, context.data.preprocess, ort=self.ort))
        summary: dict[str, Any] = {"files": [exported.record(context.folder) for exported in written]}
        notes = list(dict.fromkeys(exported.note for exported in written if exported.note))
        summary |= {"notes": notes} if notes else {}
        files = tuple(file for exported in written for file in exported.paths)
        return StageResult(graph, summary, written[0].refused, files=files)

    def writes(self, label: str) -> tuple[str, ...]:
        names = ("model.onnx", "model.ort", "required_operators.config")
        others = tuple(dict.fromkeys(self.targets))[1:]
        return (*names, *(f"{target}/{name}" for target in others for name in names))


def target_of(graph: Graph) -> str:
    """The target that a graph was quantised for; x64 where it is in float, or does not say."""
    return quantized_for(graph) or "x64"


def lower(graph: Graph, target: str, preprocess: Preprocess | None = None) -> tuple[Graph, Outcome]:
    """The graph to ship: batch norm folded, int8 where it has fake-quant nodes, short names. An int8 graph stays as it
    is, its activations in the target's type.

    The preprocessing is noted in its metadata (None leaves what is noted), and so is the target of an int8 graph.
    Raises UnsupportedError where an int8 graph was written for another target and cannot be converted.
    """
    graph, profile, kind = graph.copy(), load_target(target), precision_of(graph).kind
    steps: tuple[Pass, ...] = (canonicalize(), FoldBatchnorm(), FuseNormalization())
    if kind == "fake-quant":
        steps += (FlattenToReshape(), RoundBiases(), LowerToQdq(), SaturateHardSigmoid())
    elif kind == "int8":
        steps = _for_target(graph, profile)
    context, outcome = Context(target=profile), Outcome()
    for step in (*steps, finish(short=True)):
        outcome += step(graph, context)
    if preprocess is not None:
        note_preprocess(graph, preprocess)
    graph.metadata.pop(TARGET_KEY, None)
    if kind != "float":
        graph.metadata[TARGET_KEY] = profile.name
    return graph, outcome


def _for_target(graph: Graph, target: Target) -> tuple[Pass, ...]:
    """What brings an int8 graph to a target's activation type; nothing where it has it."""
    found = precision_of(graph)
    if found.suits(target):
        return ()
    if not found.activations:
        ops = ", ".join(op for op, _ in found.ops)
        raise UnsupportedError(
            f"Graph '{graph.name}' computes with {ops}, which are made for one target: quantise the float model for "
            f"{target.name}"
        )
    return (ShiftActivations(target.activation_signed),)


def export_model(
    graph: Graph,
    target: str,
    folder: Path,
    preprocess: Preprocess | None = None,
    *,
    name: str = "model",
    ort: bool = True,
) -> Exported:
    """Writes `name.onnx`, and with `ort` `name.ort` and `required_operators.config`, for a target.

    A graph with neither fake-quant nor int8 nodes is written in float. All files are loaded and run before any is
    written, and appear together. Raises what `lower`, `write_ort` and `require_runs` raise, OutputError where a file
    cannot be written or `name` leads out of the folder.
    """
    require_name(name, "name")
    lowered, outcome = lower(graph, target, preprocess)
    data = to_bytes(lowered, value_info=False)
    is_float = precision_of(graph).kind == "float"
    refused, precision = ((), "float") if is_float else (outcome.refused, "int8")
    path = folder / f"{name}.onnx"
    if not ort:
        note = require_runs(lowered, graph, [data])
        make_folder(folder)
        write_atomic(path, data)
        return Exported(target, precision, path, None, None, refused, note)
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as scratch:
        made = write_ort(data, scratch, load_target(target).ort_platform, name=name)
        model, config = folder / made.model.name, folder / made.config.name
        content = made.model.read_bytes()
        note = require_runs(lowered, graph, [data, content])
        make_folder(folder)
        write_together({path: data, model: content, config: made.config.read_bytes()})
    return Exported(target, precision, path, model, config, refused, note)
