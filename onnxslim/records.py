"""JSON records with a digest of their own, so that what is read back is what was written.

A record is a file, or a line of a file to which records are only ever added.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxslim.budget import JSON_BYTES
from onnxslim.errors import CheckpointError
from onnxslim.files import append, parse_json, read_json, read_regular, write_atomic

__all__ = ["append_record", "read_record", "read_records", "record_bytes", "write_record"]

_DIGEST = "digest"


def record_bytes(content: Mapping[str, Any]) -> bytes:
    """The record as it is written: JSON, the digest of all else under "digest"."""
    plain = json.loads(json.dumps(content))
    return json.dumps({**plain, _DIGEST: _digest(plain)}, indent=1).encode()


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a record atomically. Raises OutputError."""
    write_atomic(path, record_bytes(content))


def read_record(path: Path) -> dict[str, Any]:
    """A record without its digest; CheckpointError where it cannot be read or was changed since."""
    try:
        content = read_json(path)
        if not isinstance(content, dict) or content.pop(_DIGEST, None) != _digest(content):
            raise ValueError("it does not match its own digest: changed or damaged since it was written")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return content


def append_record(path: Path, content: Mapping[str, Any]) -> None:
    """Adds a record to a file, as one line of it. Raises OutputError, and what `json.dumps` raises."""
    plain = json.loads(json.dumps(content))
    append(path, json.dumps({**plain, _DIGEST: _digest(plain)}).encode() + b"\n")


def read_records(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The records of such a file in their order, without their digests; and the numbers, from 1, of lines that were
    left unfinished, as by a process that was killed.

    Raises OSError as of `open_regular`, ValueError naming a whole line that was changed since it was written, or is of
    another kind.
    """
    found, torn = [], []
    for number, line in enumerate(read_regular(path, JSON_BYTES).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            content = parse_json(line.decode("utf-8"))
        except ValueError:
            torn.append(number)
            continue
        if not isinstance(content, dict) or _DIGEST not in content:
            raise ValueError(f"line {number} is no record")
        if content.pop(_DIGEST) != _digest(content):
            raise ValueError(f"line {number} does not match its own digest: changed or damaged since it was written")
        found.append(content)
    return found, torn


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
