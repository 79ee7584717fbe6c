"""`RunFolder`: a run on disk — what is finished, with which options, and whether a recipe still fits it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import platform
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxslim.errors import CheckpointError, OutputError, RecipeError
from onnxslim.files import held, make_folder, read_regular, write_atomic
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import read, to_bytes
from onnxslim.records import read_record, write_record
from onnxslim.report import Accuracy, Report, StageRow
from onnxslim.report.report import accuracy_from, stage_from
from onnxslim.report.tables import int8_path
from onnxslim.run.ownership import CHECKPOINTS, listed_files, remove_listed
from onnxslim.runtime.capabilities import capabilities
from onnxslim.stages.base import Stage

__all__ = ["Finished", "RunFolder", "files_of", "machine"]

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
        """Whether there is anything but what a run that was killed at its very beginning leaves."""
        if not self.path.is_dir():
            return self.path.exists()
        return {*self.path.iterdir()} != {*listed_files(self.path, [_RECORD])} or self._record_path.exists()

    @contextlib.contextmanager
    def held(self) -> Generator[None, None, None]:
        """No other process can work on this run meanwhile. A folder above it that was made for it, and holds nothing
        afterwards, goes again."""
        parent = self.path.parent
        is_new = not parent.exists()
        make_folder(parent)
        busy = (
            f"The run '{self.path}' is under way in another process: wait for it, stop it, or give this one another "
            "name (`overrides=['run.name=…']`)"
        )
        try:
            with held(self.path, busy):
                yield
        finally:
            lock = parent / f".{self.path.name}.lock"
            if is_new and [*parent.iterdir()] == [lock]:
                with contextlib.suppress(OSError):
                    lock.unlink()
                    parent.rmdir()

    def require_run(self) -> None:
        """OutputError where something else than a run's folder stands there; an empty folder, or nothing, may."""
        if self.path.is_symlink():
            raise OutputError(
                f"'{self.path}' is a link: a run is neither resumed nor replaced through one. Name the folder itself "
                "(`overrides=['run.folder=…']`), or give the run another name (`overrides=['run.name=…']`)"
            )
        if not self.exists:
            return
        why = "it has no run.json"
        if self._record_path.is_file():
            try:
                if isinstance(read_record(self._record_path).get("files"), list):
                    return
                why = "its run.json is no run's"
            except CheckpointError as error:
                why = str(error)
        raise OutputError(
            f"'{self.path}' is not a run's folder ({why}): it is neither resumed nor replaced. Remove it yourself, or "
            "give the run another name (`overrides=['run.name=…']`)"
        )

    def create(self, files: Sequence[str], *, replace_old: bool, inputs: Sequence[Path] = ()) -> None:
        """Makes the folder, and notes in it the list of files that the run will write (see `ownership`).

        A run that is there is removed only where that is wanted: the files on its own list. OutputError where one of
        `inputs` is among them, or where something else stands at a place on the new list.
        """
        if self.exists and not replace_old:
            raise OutputError(
                f"The run '{self.path}' exists already: continue it (`resume=True`), replace it (`force=True`), or "
                "give this one another name (`overrides=['run.name=…']`)"
            )
        self.require_run()
        old = self._listed()
        own = {path.resolve() for path in listed_files(self.path, old)} if self.exists else set()
        for given in inputs:
            if any(given.resolve() in (path, *path.parents) for path in own) and self._has(given):
                raise OutputError(
                    f"'{given}' belongs to the run '{self.path}' that it is to replace: copy it elsewhere, or give "
                    "this run another name (`overrides=['run.name=…']`)"
                )
        for path in listed_files(self.path, files, temporaries=False):
            if path.resolve() not in own:
                raise OutputError(
                    f"'{path}' is not of the run that is there, and this one would write over it: move it away, or "
                    "give this run another name (`overrides=['run.name=…']`)"
                )
        remove_listed(self.path, [*old, _RECORD], _RECORD)
        make_folder(self.path)
        write_record(self._record_path, {"files": list(files)})

    def remove(self) -> None:
        """Takes back what `create` and the run since have written, where no stage is finished and no epoch trained: a
        run that is refused leaves nothing."""
        is_any_done = any(self._json(number).is_file() for number in range(_MOST_STAGES))
        trained = [path.name for path in (self.path / CHECKPOINTS).glob("*") if not path.name.endswith("-best-0000")]
        if not is_any_done and not trained:
            remove_listed(self.path, self._listed(), _RECORD)

    def write_recipe(self, text: str, fixed: Mapping[str, Any], files: Sequence[str] = ()) -> None:
        """Notes the resolved recipe, what a resumed run must have unchanged, and which files it writes beside those
        that it listed before."""
        write_atomic(self.path / "recipe.yaml", text.encode())
        self._note(fixed=fixed, files=list(dict.fromkeys([*self._listed(), *files])))

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
            self._note(**{key: None if found is None else dataclasses.asdict(found)})
            return found
        return accuracy_from(record[key])

    def write_report(self, report: Report, measured: Mapping[str, Any]) -> None:
        """Writes the report, then notes that the run is finished: with which report, measured how."""
        report.write(self.report_path)
        self._note(finished={"report": _sha256(self.report_path), "measured": dict(measured)})

    def report(self, measured: Mapping[str, Any]) -> Report | None:
        """The report of a finished run, where it is as it was written and was measured in this way."""
        noted = self._record().get("finished")
        if not noted or noted["measured"] != measured or noted["report"] != _sha256(self.report_path):
            return None
        return Report.read(self.report_path)

    def require_same(self, fixed: Mapping[str, Any], stages: Sequence[Stage]) -> None:
        """RecipeError where a resumed recipe contradicts what is done already.

        Finished stages must be the same, and so must an interrupted one and everything beside the
        stages, once one is begun. Later stages may change; and a stage that changes no model, such as an export, may be
        followed by others, changed and left out: it is done again, or its files go.
        """
        begun = [n for n in range(_MOST_STAGES) if self._json(n).is_file() or self._begun(n).is_file()]
        if not begun:
            return
        old = self.stored() or {}
        for key in fixed:
            if fixed[key] != old.get(key):
                self._refuse(_difference(key, old.get(key), fixed[key]), "the run was begun with it")
        undone: dict[int, dict[str, Any]] = {}
        for number in begun:
            is_finished = self._json(number).is_file()
            done = "finished" if is_finished else "interrupted"
            record = _load(self._json(number) if is_finished else self._begun(number))
            now = stages[number] if number < len(stages) else None
            if record.get("repeatable") and (now is None or _declared(now) != record["stage"]):
                undone[number] = record
                continue
            wanted = None if now is None else _declared(now)
            if wanted != record["stage"]:
                self._refuse(_difference(f"stages.{number}", record["stage"], wanted), f"stage {number} is {done}")
            inputs = {} if now is None else now.input_digests()
            if inputs != record["inputs"]:
                self._refuse(_difference(f"stages.{number}", record["inputs"], inputs), f"stage {number} is {done}")
        for number, record in undone.items():
            self._forget(number, record)

    def begin(self, number: int, stage: Stage) -> None:
        """Notes that a stage runs, with which options."""
        make_folder(self._begun(number).parent)
        write_record(self._begun(number), {"stage": _declared(stage), "inputs": stage.input_digests()})

    def finish(
        self, number: int, stage: Stage, before: Graph, after: Graph, row: StageRow, files: Sequence[Path] = ()
    ) -> Finished:
        """Keeps the model after a stage, where it changed; the record, written last, says that it is complete, with
        the digests of the model and of the files that the stage wrote for the user.

        Gives what a resumed run would read, so that both go on from the same.
        """
        make_folder(self._json(number).parent)
        digest = ""
        if after is not before:
            data = to_bytes(after)
            digest = hashlib.sha256(data).hexdigest()
            write_atomic(self._onnx(number), data)
        record = {
            "stage": _declared(stage),
            "inputs": stage.input_digests(),
            "repeatable": stage.repeatable,
            "sha256": digest,
            "files": {path.relative_to(self.path).as_posix(): _sha256(path) for path in files},
            "row": dataclasses.asdict(row),
        }
        write_record(self._json(number), record)
        self._begun(number).unlink(missing_ok=True)
        return Finished(read(self._onnx(number)) if digest else before, row)

    def finished(self, number: int, stage: Stage, before: Graph) -> Finished | None:
        """A stage's result where it is done; None where it is not, or where files that it wrote are gone and it can be
        done again. CheckpointError where a file was changed since."""
        if not self._json(number).is_file():
            return None
        record = _load(self._json(number))
        for name, digest in record["files"].items():
            found = _sha256(self.path / name)
            if found is None:
                return None
            if found != digest:
                raise CheckpointError(
                    f"{self.path / name} is not what stage {number} ({stage.kind}) wrote: move it away, and it is "
                    "written again"
                )
        if not record["sha256"]:
            return Finished(before, stage_from(record["row"]))
        path = self._onnx(number)
        if _sha256(path) != record["sha256"]:
            raise CheckpointError(
                f"{path} is missing or not what stage {number} ({stage.kind}) wrote: remove {self._json(number)} to "
                "run that stage again"
            )
        return Finished(read(path), stage_from(record["row"]))

    def _has(self, path: Path) -> bool:
        """Whether it is in this folder, or the folder itself."""
        return self.path.resolve() in (path.resolve(), *path.resolve().parents)

    def _forget(self, number: int, record: Mapping[str, Any]) -> None:
        """Undoes a finished stage that changed no model."""
        remove_listed(self.path, list(record["files"]), _RECORD)
        self._json(number).unlink()

    def _refuse(self, difference: str, why: str) -> None:
        raise RecipeError(
            f"Cannot resume '{self.path}': {difference}, but {why}. Put it back, start anew (`force=True`), or give "
            "the run another name (`overrides=['run.name=…']`)"
        )

    def _onnx(self, number: int) -> Path:
        return self.path / "stages" / f"{number}.onnx"

    def _json(self, number: int) -> Path:
        return self.path / "stages" / f"{number}.json"

    def _begun(self, number: int) -> Path:
        return self.path / "stages" / f"{number}.begun.json"

    def _record(self) -> dict[str, Any]:
        return _load(self._record_path) if self._record_path.is_file() else {}

    def _listed(self) -> list[str]:
        files: list[str] = self._record().get("files", [])
        return files

    def _note(self, **content: Any) -> None:
        write_record(self._record_path, {**self._record(), **content})


def files_of(stages: Sequence[Stage]) -> tuple[str, ...]:
    """The list of all files that a run of these stages writes, relative to its folder."""
    found = ["recipe.yaml", _RECORD, "log.jsonl", "report.json"]
    for number, stage in enumerate(stages):
        found += [f"stages/{number}.onnx", f"stages/{number}.json", f"stages/{number}.begun.json"]
        found += stage.writes(f"{number}-{stage.kind}")
    return tuple(dict.fromkeys(found))


_MOST_STAGES = 100
_LONGEST = 100  # letters of a value that a message shows


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
        return read_record(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. Put it back, or remove the run's folder and start anew") from error


def _sha256(path: Path) -> str | None:
    """Of a file's content; None where there is none."""
    try:
        return hashlib.sha256(read_regular(path)).hexdigest()
    except OSError:
        return None


def _difference(key: str, old: Any, new: Any) -> str:
    """The first place where two values differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for inner in dict.fromkeys([*old, *new]):
            if old.get(inner) != new.get(inner):
                return _difference(f"{key}.{inner}", old.get(inner), new.get(inner))
    texts = [("nothing" if v is None else json.dumps(v, ensure_ascii=False)) for v in (old, new)]
    shown = [text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…" for text in texts]
    return f"{key} was {shown[0]} and now is {shown[1]}"
