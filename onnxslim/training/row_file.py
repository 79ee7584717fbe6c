"""Named float32 arrays of as many rows as there are samples, in a safetensors file that never is in memory as a whole.

It is written block by block, each array where it belongs, and read through a map of which pages are let go again.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from onnxslim.errors import TrainingError
from onnxslim.files import open_regular, parse_json
from onnxslim.ir.graph import Array

__all__ = ["DamagedError", "RowFile", "write_rows"]

_CHUNK = 1 << 20
_HEADER_BYTES = 1 << 20  # at most
_RESIDENT = 1 << 23
"""Bytes of a map that may have come into memory before its pages are let go; the system keeps them while there is
room."""
_AROUND = 1 << 16  # bytes that come into memory where a page is read: those around it, too


class DamagedError(Exception):
    """A file that is not as it was written."""


def write_rows(file: BinaryIO, names: Sequence[str], blocks: Iterable[Mapping[str, Array]], rows: int) -> None:
    """Writes the arrays of those names, `rows` in all, from blocks of some rows of each, in order.

    Raises TrainingError for a block whose arrays are not of so many rows each.
    """
    header = b""
    shapes: dict[str, tuple[int, ...]] = {}
    starts: dict[str, int] = {}
    digests = {name: hashlib.sha256() for name in names}
    done = 0
    for block in blocks:
        arrays = {name: np.ascontiguousarray(block[name], np.float32) for name in names}
        if not shapes:
            shapes = {name: (rows, *array.shape[1:]) for name, array in arrays.items()}
            header, starts = _header(shapes, dict.fromkeys(names, "0" * 64))
            file.write(header)
        count = max((len(array) for array in arrays.values() if array.ndim), default=0)
        for name, array in arrays.items():
            expected = (count, *shapes[name][1:])
            if array.shape != expected:
                raise TrainingError(
                    f"Value '{name}' cannot be kept sample by sample: expected {expected} for {count} samples, "
                    f"got {array.shape}"
                )
            file.seek(starts[name] + done * math.prod(shapes[name][1:]) * array.itemsize)
            file.write(array.data)
            digests[name].update(array.data)
        done += count
    file.seek(0)
    file.write(_header(shapes, {name: digest.hexdigest() for name, digest in digests.items()})[0])


def _header(shapes: Mapping[str, tuple[int, ...]], digests: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """As the format has it: a length, JSON; and where each array begins in the file."""
    fields: dict[str, Any] = {"__metadata__": dict(digests)}
    offsets, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        fields[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        offsets[name] = at
        at += size
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, {name: 8 + len(text) + start for name, start in offsets.items()}


class RowFile:
    """Such a file, opened: `rows(name, indices)`. Raises DamagedError where it is not what `write_rows` wrote."""

    def __init__(self, path: Path) -> None:
        try:
            with open_regular(path) as file:
                self._arrays = self._read(file)
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise DamagedError(f"{path} cannot be read ({error})") from error
        self._touched = 0

    def _read(self, file: BinaryIO) -> dict[str, Array]:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _HEADER_BYTES:
            raise ValueError("it is no file of rows")
        fields = parse_json(file.read(length).decode("utf-8"))
        digests, found = fields.pop("__metadata__"), {}
        for name, entry in fields.items():
            start, end = entry["data_offsets"]
            if _digest(file, 8 + length + start, end - start) != digests[name]:
                raise ValueError(f"'{name}' does not match its digest")
        if os.fstat(file.fileno()).st_size == 0:
            raise ValueError("it is empty")
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for name, entry in fields.items():
            shape, start = tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
            array = np.frombuffer(self._map, np.float32, math.prod(shape), start)
            found[name] = array.reshape(shape)
        return found

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self._arrays.items()}

    def rows(self, name: str, indices: Array) -> Array:
        """A copy of some rows, in that order."""
        found = self._arrays[name][indices]
        self._touched += len(found) * _AROUND + found.nbytes
        if self._touched > _RESIDENT:
            self._touched = 0
            if hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED)
        return found


def _digest(file: BinaryIO, start: int, size: int) -> str:
    """Of a part of a file, read piece by piece."""
    digest = hashlib.sha256()
    file.seek(start)
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()
