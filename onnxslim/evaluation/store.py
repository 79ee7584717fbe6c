"""`Store`: results by key, in a file to which a line is added for each, whatever stands there already.

    {"store": 1, "context": "…", "key": "…", "result": …, "seconds": …, "digest": "…"}

Several processes may add at once. A line has a digest of its own, and the last one of a key counts. A line that was not
finished, because its process was killed or the disk was full, is left out: its point is evaluated again.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from onnxslim.budget import JSON_BYTES
from onnxslim.errors import DataError
from onnxslim.files import read_json, read_regular
from onnxslim.records import append_record, read_records

__all__ = ["Entry", "Result", "Store"]

Result: TypeAlias = "float | int | str | bool | list[Result] | dict[str, Result] | None"
"""What an evaluation gives: anything that JSON holds."""

_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """What is stored of a key. seconds: that it took."""

    result: Result
    seconds: float


class Store:
    """The results of one context, read when it is made, and added to.

    path: the file; None keeps them in memory alone. context: what else a result depends on (digest of the data,
    settings); results of another context are kept and not seen.

    Raises DataError where the file is no store, or a line of it was changed; warns of lines that were not finished.
    """

    def __init__(self, path: Path | None = None, context: str = "") -> None:
        self._path, self._context = path, context
        self._entries: dict[str, Entry] = {}
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._entries = _read(path).get(context, {})

    @property
    def entries(self) -> Mapping[str, Entry]:
        """By key, the oldest key first."""
        return self._entries

    def add(self, key: str, result: Result, seconds: float = 0.0) -> None:
        """Adds a line, synced. Raises OutputError where the system refuses."""
        entry = Entry(result, round(seconds, 3))
        if self._path is not None:
            append_record(
                self._path,
                {"store": _VERSION, "context": self._context, "key": key, "result": result, "seconds": entry.seconds},
            )
        self._entries[key] = entry


def _read(path: Path) -> dict[str, dict[str, Entry]]:
    """Everything in a file, by context and key."""
    found: dict[str, dict[str, Entry]] = {}
    try:
        records, torn = read_records(path)
        if torn and not records and not _begins_as_one(path):
            raise ValueError("expected a record a line")
        for record in records:
            if record["store"] != _VERSION:
                raise DataError(
                    f"{path}: results of version {record['store']}, expected {_VERSION}: move the file away"
                )
            found.setdefault(record["context"], {})[record["key"]] = Entry(record["result"], float(record["seconds"]))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = "it is as earlier versions of onnxslim wrote it" if _is_earlier(path) else error
        raise DataError(f"{path} is not a file of evaluation results ({why}): move it away to start anew") from error
    if torn:
        lines = f"line {torn[0]} was" if len(torn) == 1 else f"lines {', '.join(map(str, torn))} were"
        warnings.warn(
            f"{path}: {lines} left unfinished, and {'is' if len(torn) == 1 else 'are'} left out", stacklevel=3
        )
    return found


def _begins_as_one(path: Path) -> bool:
    """Whether all that stands there may be the beginning of a first line."""
    start = b'{"store": '
    data = read_regular(path, JSON_BYTES)
    return data[: len(start)] == start[: len(data)]


def _is_earlier(path: Path) -> bool:
    """Whether the file is one JSON object, as results and sensitivities were kept before there were lines."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "version" in content and ("contexts" in content or "groups" in content)
