"""`Export`: the files a device runs — QDQ int8 `.onnx`, `.ort`, and the operators a small runtime needs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from onnxslim.brief import Brief
from onnxslim.data import Preprocess
from onnxslim.evaluation.models import has_fake_quant
from onnxslim.evaluation.trial import require_runs
from onnxslim.files import make_folder, require_name, write_atomic, write_together
from onnxslim.graph import Graph
from onnxslim.onnx_io import to_bytes
from onnxslim.rewrite import Context, Outcome, Refusal
from onnxslim.runtime.ort_format import write_ort
from onnxslim.stages.base import RunContext, Stage, StageResult
from onnxslim.stages.preprocessing import note_preprocess
from onnxslim.stages.quantize import TargetName
from onnxslim.targets import load_target
from passes.deploy import finish
from passes.quantize import FlattenToReshape, LowerToQdq, RoundBiases, SaturateHardSigmoid
from passes.simplify import FoldBatchnorm, canonicalize

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
        description="What to write for: x64, arm, or both; one quantised model serves both. The first is "
        "written to the run's folder, others to folders of their own. Default: what was quantised for.",
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
    """The target that a graph's activations were quantised for; x64 where they are in float."""
    for node in graph.nodes():
        if node.op == "FakeQuant" and node.domain == "onnxslim" and node.attr("kind") == "activation":
            return "arm" if node.attr("signed") else "x64"
    return "x64"


def lower(graph: Graph, target: str, preprocess: Preprocess | None = None) -> tuple[Graph, Outcome]:
    """The graph to ship: batch norm folded, int8 where it has fake-quant nodes, short names.

    The preprocessing is noted in its metadata (None leaves what is noted).
    """
    graph = graph.copy()
    context = Context(target=load_target(target))
    outcome = Outcome()
    int8 = FlattenToReshape(), RoundBiases(), LowerToQdq(), SaturateHardSigmoid()
    for step in (canonicalize(), FoldBatchnorm(), *int8, finish(short=True)):
        outcome += step(graph, context)
    if preprocess is not None:
        note_preprocess(graph, preprocess)
    return graph, outcome


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

    A graph without fake-quant nodes is written in float. All files are loaded and run before any is written, and
    appear together. Raises what `lower`, `write_ort` and `require_runs` raise, OutputError where a file cannot be
    written or `name` leads out of the folder.
    """
    require_name(name, "name")
    lowered, outcome = lower(graph, target, preprocess)
    data = to_bytes(lowered, value_info=False)
    is_int8 = has_fake_quant(graph)
    refused, precision = (outcome.refused, "int8") if is_int8 else ((), "float")
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
