"""Large arrays that a pass makes lie in temporary files, mapped: what it rewrites need not fit into memory."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.errors import OutputError

__all__ = ["Spill"]


class Spill:
    """Room for new arrays: those of `from_bytes` and more in a file without a name, smaller ones in memory.

    Arrays share files of `file_bytes`, so that not each of them costs a descriptor; a file is gone when nothing refers
    to an array in it any more, at the latest with the process. It lies in the system's folder for temporary files
    (TMPDIR chooses another). Raises OutputError where that is full.
    """

    def __init__(self, from_bytes: int = 1 << 22, file_bytes: int = 1 << 28) -> None:
        self._from_bytes, self._file_bytes = from_bytes, file_bytes
        self._file: npt.NDArray[np.uint8] | None = None
        self._used = 0

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A new array in C order, its content not set."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size < self._from_bytes:
            return np.empty(shape, dtype)
        start = -(-self._used // 4096) * 4096
        if self._file is None or start + size > self._file.size:
            self._file, start = _mapped(max(size, self._file_bytes)), 0
        self._used = start + size
        return self._file[start : start + size].view(dtype).reshape(shape)

    def keep(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array, moved into a file where it is large."""
        if array.nbytes < self._from_bytes or array.dtype.hasobject:
            return array
        room = self.empty(array.shape, array.dtype)
        room[...] = array
        return room


def _mapped(size: int) -> npt.NDArray[np.uint8]:
    try:
        with tempfile.TemporaryFile(prefix="onnxslim-") as file:
            if hasattr(os, "posix_fallocate"):  # a page that finds no space later would end the process
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.uint8, "r+" if os.fstat(file.fileno()).st_size else "w+", shape=(size,))
    except OSError as error:
        raise OutputError(
            f"Cannot keep {size:,} bytes of rewritten weights in '{tempfile.gettempdir()}': {error.strerror}; "
            "free some space there, or name a folder on another disk in TMPDIR"
        ) from error
