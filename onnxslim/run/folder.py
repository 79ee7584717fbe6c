"""`RunFolder`: a run on disk — what is finished, with which options, and whether a recipe still fits it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxslim.errors import CheckpointError, OutputError, RecipeError
from onnxslim.files import held, make_folder, read_json, read_regular, write_atomic
from onnxslim.graph import Graph
from onnxslim.onnx_io import read, to_bytes
from onnxslim.report import Accuracy, StageRow
from onnxslim.report.report import accuracy_from, stage_from
from onnxslim.report.tables import int8_path
from onnxslim.runtime.capabilities import capabilities
from onnxslim.stages.base import Stage

__all__ = ["Finished", "RunFolder", "machine"]

_RECORD = "run.json"
_PACKAGES = ("onnxslim", "onnx", "numpy", "networkx")


@dataclass(frozen=True)
class Finished:
    """A stage that is done: the model after it, and what it reported."""

    graph: Graph
    row: StageRow


class RunFolder:
    """`path` need not exist yet. Raises OutputError where something cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.report_path = path / "report.json"
        self._record_path = path / _RECORD

    @property
    def exists(self) -> bool:
        """Whether there is anything that a run would overwrite."""
        return self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))

    @contextlib.contextmanager
    def held(self) -> Generator[None, None, None]:
        """No other process can work on this run meanwhile."""
        make_folder(self.path.parent)
        busy = (
            f"The run '{self.path}' is under way in another process: wait for it, stop it, or give this one another "
            "name (--set run.name=…)"
        )
        with held(self.path, busy):
            yield

    def create(self, *, replace_old: bool) -> None:
        """Makes an empty folder. An old one is removed only where that is wanted, and where it is a run's."""
        if self.exists and not replace_old:
            raise OutputError(
                f"The run '{self.path}' exists already: continue it (--resume), replace it (--force), or give this "
                "one another name (--set run.name=…)"
            )
        if self.exists:
            if not self._record_path.is_file():
                raise OutputError(f"'{self.path}' is not a run's folder: it is not replaced, remove it yourself")
            shutil.rmtree(self.path)
        make_folder(self.path)

    def write_recipe(self, text: str, fixed: Mapping[str, Any]) -> None:
        """Notes the resolved recipe, and what a resumed run must have unchanged."""
        write_atomic(self.path / "recipe.yaml", text.encode())
        self._note("fixed", fixed)

    def stored(self, *keys: str) -> Any:
        """What a run here noted as fixed; None where there is none."""
        content: Any = self._record().get("fixed")
        for key in keys:
            content = content.get(key) if isinstance(content, dict) else None
        return content

    def kept(self, key: str, measure: Callable[[], Accuracy | None]) -> Accuracy | None:
        """A measurement made once in a run."""
        record = self._record()
        if key not in record:
            found = measure()
            self._note(key, None if found is None else dataclasses.asdict(found))
            return found
        return accuracy_from(record[key])

    def require_same(self, fixed: Mapping[str, Any], stages: Sequence[Stage]) -> None:
        """RecipeError where a resumed recipe contradicts what is done already.

        Finished stages must be the same, and so must an interrupted one and everything beside the
        stages, once one is begun. Later stages may change.
        """
        begun = [n for n in range(_MOST_STAGES) if self._json(n).is_file() or self._begun(n).is_file()]
        if not begun:
            return
        old = self.stored() or {}
        for key in fixed:
            if fixed[key] != old.get(key):
                self._refuse(_difference(key, old.get(key), fixed[key]), "the run was begun with it")
        for number in begun:
            is_finished = self._json(number).is_file()
            done = "finished" if is_finished else "interrupted"
            stored = _load(self._json(number) if is_finished else self._begun(number))["stage"]
            now = stages[number] if number < len(stages) else None
            wanted = None if now is None else _declared(now)
            if wanted != stored:
                self._refuse(_difference(f"stages.{number}", stored, wanted), f"stage {number} is {done}")

    def begin(self, number: int, stage: Stage) -> None:
        """Notes that a stage runs, with which options."""
        make_folder(self._begun(number).parent)
        write_atomic(self._begun(number), json.dumps({"stage": _declared(stage)}, indent=1).encode())

    def finish(self, number: int, stage: Stage, before: Graph, after: Graph, row: StageRow) -> Finished:
        """Keeps the model after a stage, where it changed; the record, written last, says that it is complete.

        Gives what a resumed run would read, so that both go on from the same.
        """
        make_folder(self._json(number).parent)
        digest = ""
        if after is not before:
            data = to_bytes(after)
            digest = hashlib.sha256(data).hexdigest()
            write_atomic(self._onnx(number), data)
        record = {"stage": _declared(stage), "sha256": digest, "row": dataclasses.asdict(row)}
        write_atomic(self._json(number), json.dumps(record, indent=1).encode())
        self._begun(number).unlink(missing_ok=True)
        return Finished(read(self._onnx(number)) if digest else before, row)

    def finished(self, number: int, stage: Stage, before: Graph) -> Finished | None:
        """A stage's result where it is done; CheckpointError where its file was damaged since."""
        if not self._json(number).is_file():
            return None
        record = _load(self._json(number))
        if not record["sha256"]:
            return Finished(before, stage_from(record["row"]))
        path = self._onnx(number)
        if not path.is_file() or hashlib.sha256(read_regular(path)).hexdigest() != record["sha256"]:
            raise CheckpointError(
                f"{path} is missing or not what stage {number} ({stage.kind}) wrote: remove {self._json(number)} to "
                "run that stage again"
            )
        return Finished(read(path), stage_from(record["row"]))

    def _refuse(self, difference: str, why: str) -> None:
        raise RecipeError(
            f"Cannot resume '{self.path}': {difference}, but {why}. Put it back, start anew (--force), or give the "
            "run another name (--set run.name=…)"
        )

    def _onnx(self, number: int) -> Path:
        return self.path / "stages" / f"{number}.onnx"

    def _json(self, number: int) -> Path:
        return self.path / "stages" / f"{number}.json"

    def _begun(self, number: int) -> Path:
        return self.path / "stages" / f"{number}.begun.json"

    def _record(self) -> dict[str, Any]:
        return _load(self._record_path) if self._record_path.is_file() else {}

    def _note(self, key: str, value: Any) -> None:
        write_atomic(self._record_path, json.dumps({**self._record(), key: value}, indent=1).encode())


_MOST_STAGES = 100


def machine() -> dict[str, Any]:
    """Versions and machine, as reports and resolved recipes note them."""
    found = capabilities()
    versions = {name: _version(name) for name in _PACKAGES}
    return {
        "cpu": found.cpu,
        "int8": int8_path(found.vnni),
        "runtime": f"{found.distribution} {found.version}",
        "python": found.python,
        "system": platform.platform(terse=True),
        "versions": versions,
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _declared(stage: Stage) -> dict[str, Any]:
    """A stage as JSON would hold it."""
    content: dict[str, Any] = json.loads(json.dumps({stage.kind: stage.model_dump(mode="json")}))
    return content


def _load(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(path)
        return content
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): start the run anew (--force)") from error


def _difference(key: str, old: Any, new: Any) -> str:
    """The first place where two values differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for inner in dict.fromkeys([*old, *new]):
            if old.get(inner) != new.get(inner):
                return _difference(f"{key}.{inner}", old.get(inner), new.get(inner))
    shown = [("nothing" if v is None else json.dumps(v, ensure_ascii=False)) for v in (old, new)]
    return f"{key} was {shown[0]} and now is {shown[1]}"
