"""Checkpoints: safetensors and JSON in a folder each, complete or not there.

<folder>/<label>-<epoch>[-<step>]/state.safetensors, state.json
<folder>/<label>-best-<epoch>/…

What is read back is what was written: the tensors have their digest in state.json, and that has one of its own. Each
tensor is called by its port's `key`.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import secrets
import shutil
import warnings
from pathlib import Path
from typing import Any

import safetensors.numpy
from safetensors import SafetensorError

from onnxslim.errors import CheckpointError, OutputError
from onnxslim.files import read_regular, write_atomic
from onnxslim.records import read_record, write_record
from onnxslim.training.ports import Port
from onnxslim.training.state import State

__all__ = ["Checkpoints"]

_FIELDS = (
    "epoch", "step_in_epoch", "step", "best", "best_epoch", "before", "seconds", "spent", "sums", "history",
)  # fmt: skip


_FORMAT = 2
"""Of state.json; of the first one, whose tensors were called otherwise, it does not tell."""


class Checkpoints:
    """The checkpoints of one training stage: the newest `keep`, and the best on validation.

    run: what must be the same for a checkpoint to be resumed (seed, workers, data …), as JSON values.
    """

    def __init__(self, folder: Path, label: str, keep: int = 2, run: dict[str, Any] | None = None) -> None:
        self.folder, self.label, self.keep, self.run = Path(folder), label, keep, run or {}

    def save(self, state: State, *, is_best: bool = False) -> Path:
        """Writes a checkpoint: in a hidden folder first, synced, then renamed; then drops old ones.

        The best is written before the newest, which names it, and one is dropped when no checkpoint that is kept names
        it: a run that is killed in between, or whose newest is damaged, goes on from one that has its best.
        """
        name = f"{self.label}-{state.epoch:04d}"
        if state.step_in_epoch:
            name += f"-{state.step_in_epoch:06d}"
        if is_best:
            self._write(self._best_name(state.epoch), state)
        path = self._write(name, state)
        self._remove(self._newest()[self.keep :])
        named = {self._best_name(epoch) for epoch in self._named_bests()}
        self._remove([best for best in self._bests() if best.name not in named])
        return path

    def save_first(self, state: State) -> None:
        """Keeps the state before training, the best until an epoch is better."""
        self._write(self._best_name(state.best_epoch), state)

    def latest(self, like: State) -> State | None:
        """The newest checkpoint that can be read; unreadable ones are skipped with a warning, and what came after
        them is trained again.

        Raises CheckpointError where it belongs to another model, optimiser or run.
        """
        for path in self._newest():
            try:
                state = self._read(path)
            except _DamagedError as error:
                warnings.warn(f"{error}; it is skipped", UserWarning, stacklevel=2)
                continue
            state.check_like(like, f"Checkpoint '{path}'")
            return state
        return None

    def best(self, of: State) -> State | None:
        """The best on validation that a state names, if any.

        Raises CheckpointError where it is gone or damaged, since no other state is as good.
        """
        if of.best is None:
            return None
        path = self.folder / self._best_name(of.best_epoch)
        try:
            state = self._read(path)
        except _DamagedError as error:
            raise CheckpointError(
                f"{error}, and it is the best on val, which training gives in the end: put it back, or remove all of "
                f"'{self.folder / self.label}-*' to train this stage anew"
            ) from error
        state.check_like(of, f"Checkpoint '{path}'")
        return state

    def newest_name(self) -> str | None:
        """The path of the newest checkpoint, for messages."""
        found = self._newest()
        return str(found[0]) if found else None

    def clear(self) -> None:
        """Forgets all of this stage's checkpoints: a run that starts anew must not resume them later."""
        self._remove([*self._newest(), *self._bests()])

    def _remove(self, paths: list[Path]) -> None:
        """Each is hidden first, so that what is seen is whole whenever this is interrupted; then all hidden ones go."""
        for path in paths:
            with contextlib.suppress(OSError):
                os.rename(path, self.folder / f".{path.name}.{secrets.token_hex(4)}")
        for path in self._unfinished():
            shutil.rmtree(path, ignore_errors=True)

    def _best_name(self, epoch: int) -> str:
        return f"{self.label}-best-{epoch:04d}"

    def _named_bests(self) -> list[int]:
        """The epochs of the bests that the kept checkpoints name."""
        found = []
        for path in self._newest():
            with contextlib.suppress(CheckpointError):  # skipped when it is read, too
                found.append(int(read_record(path / "state.json").get("best_epoch", 0)))
        return found

    def _bests(self) -> list[Path]:
        """Those of this stage that are called best."""
        return [path for path in self.folder.glob(f"{glob.escape(self.label)}-best-*") if path.is_dir()]

    def _unfinished(self) -> list[Path]:
        """What a killed run left half-written."""
        return [path for path in self.folder.glob(f".{glob.escape(self.label)}-*") if path.is_dir()]

    def _newest(self) -> list[Path]:
        """Newest first: by epoch, then by step."""
        pattern = re.compile(rf"{re.escape(self.label)}-(\d+)(?:-(\d+))?")
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            match = pattern.fullmatch(path.name)
            if match and path.is_dir():
                found.append((int(match[1]), int(match[2] or 0), path))
        return [path for *_, path in sorted(found, reverse=True)]

    def _write(self, name: str, state: State) -> Path:
        target = self.folder / name
        staged = self.folder / f".{name}.{secrets.token_hex(4)}"
        tensors = safetensors.numpy.save({port.key: array for port, array in state.arrays.items()})
        meta = {field: getattr(state, field) for field in _FIELDS}
        meta |= {"format": _FORMAT, "tensors": hashlib.sha256(tensors).hexdigest(), "run": self.run}
        old = None
        try:
            staged.mkdir(parents=True)
            write_atomic(staged / "state.safetensors", tensors)
            write_record(staged / "state.json", meta)
            if target.exists():  # a folder cannot be renamed over another: the old one steps aside first
                old = self.folder / f".{name}.{secrets.token_hex(4)}"
                os.rename(target, old)
            os.rename(staged, target)
        except OSError as error:
            raise OutputError(f"Cannot write the checkpoint '{target}': {error.strerror or error}") from error
        finally:
            for spare in (staged, old):
                if spare is not None:
                    shutil.rmtree(spare, ignore_errors=True)
        return target

    def _read(self, path: Path) -> State:
        try:
            tensors = read_regular(path / "state.safetensors")
            meta = read_record(path / "state.json")
            if hashlib.sha256(tensors).hexdigest() != meta["tensors"]:
                raise ValueError("its tensors do not match their digest")
            if meta.get("format") != _FORMAT:
                raise _OtherFormatError(
                    f"Checkpoint '{path}' was written by another version of onnxslim, which called its tensors "
                    f"otherwise (expected format {_FORMAT}, got {meta.get('format', 1)}): resume with that version, or "
                    "start anew"
                )
            arrays = {Port.from_key(key): array for key, array in safetensors.numpy.load(tensors).items()}
            state = State(arrays, **{field: meta[field] for field in _FIELDS})
        except _OtherFormatError:
            raise
        except (OSError, ValueError, KeyError, TypeError, CheckpointError, SafetensorError) as error:
            raise _DamagedError(f"The checkpoint '{path}' cannot be read ({error})") from error
        if meta.get("run", {}) != self.run:
            mine, theirs = self.run, meta["run"]
            key = next(k for k in sorted({*mine, *theirs}) if mine.get(k) != theirs.get(k))
            raise CheckpointError(
                f"Checkpoint '{path}' belongs to another run: '{key}' was {theirs.get(key)!r}, "
                f"now it is {mine.get(key)!r}. "
                "Resume with the recipe that wrote it, or start anew"
            )
        return state


class _OtherFormatError(CheckpointError):
    """A checkpoint of another version's."""


class _DamagedError(Exception):
    """A checkpoint that is not there as it was written."""
