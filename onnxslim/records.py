"""JSON records with a digest of their own, so that what is read back is what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxslim.errors import CheckpointError
from onnxslim.files import read_json, write_atomic

__all__ = ["read_record", "record_bytes", "write_record"]

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


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
