"""The original CIFAR-10 binary archive: https://www.cs.toronto.edu/~kriz/cifar.html.

Each record is one label byte and 3,072 pixel bytes (red, green, blue planes of 32×32).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from onnxslim.budget import Budget
from onnxslim.data.dataset import LABEL, ArrayDataset
from onnxslim.errors import DataError
from onnxslim.files import open_regular, read_regular

__all__ = ["is_cifar_binary", "open_cifar_binary"]

_MOST = 1 << 29
"""Bytes of a file and of an archive, of which the original has 0.19 GB."""
_RECORD = 1 + 3 * 32 * 32
_META = "batches.meta.txt"
_WANTED = (_META, "test_batch.bin", *(f"data_batch_{i}.bin" for i in range(1, 6)))


def is_cifar_binary(path: Path) -> bool:
    """A .tar.gz/.tgz file, or a folder that holds (or whose one subfolder holds) the batch files."""
    if path.is_dir():
        return _folder(path) is not None
    return path.name.endswith((".tar.gz", ".tgz", ".tar"))


def open_cifar_binary(path: Path, split: str | None = None) -> ArrayDataset:
    """Split "train" (data_batch_1…5) or "test" (test_batch) as {"image": uint8 [n, 32, 32, 3], "label"}.

    Raises DataError: unreadable or incomplete archive, no such split, truncated or damaged batch.
    """
    if split not in ("train", "test"):
        what = f"no such split '{split}'; the splits there are" if split else "say which split to read:"
        raise DataError(f"{path} (CIFAR-10 binary): {what} train, test")
    files = _read_folder(path) if path.is_dir() else _read_tar(path)
    if _META not in files:
        raise DataError(f"{path}: not the CIFAR-10 binary archive: it has no {_META}")
    classes = tuple(files[_META].decode("utf-8", "replace").split())
    wanted = [n for n in _WANTED if n.startswith("data_batch" if split == "train" else "test_batch")]
    parts = []
    for name in wanted:
        content = files.get(name)
        if content is None:
            raise DataError(f"{path}: incomplete CIFAR-10 binary archive: {name} is missing")
        if not content or len(content) % _RECORD:
            raise DataError(f"{path}: {name} is truncated: expected a multiple of {_RECORD} bytes, got {len(content)}")
        parts.append(np.frombuffer(content, np.uint8).reshape(-1, _RECORD))
    records = np.concatenate(parts)
    images = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return ArrayDataset({"image": images, LABEL: records[:, 0]}, classes, layout="NHWC", source=str(path))


def _folder(path: Path) -> Path | None:
    for folder in (path, path / "cifar-10-batches-bin"):
        if (folder / _META).is_file():
            return folder
    return None


def _read_folder(path: Path) -> Mapping[str, bytes]:
    folder = _folder(path) or path
    try:
        return {name: read_regular(folder / name, _MOST) for name in _WANTED if (folder / name).is_file()}
    except OSError as error:
        raise DataError(f"{path}: cannot read the CIFAR-10 binary files: {error.strerror}") from error


def _read_tar(path: Path) -> Mapping[str, bytes]:
    """The wanted members, read in memory: nothing is extracted to disk."""
    found: dict[str, bytes] = {}
    try:
        with open_regular(path) as file:
            bounded: Any = _Bounded(_unpacked(file))
            with tarfile.open(fileobj=bounded, mode="r|") as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if member.isfile() and name in _WANTED:
                        stream = archive.extractfile(member)
                        if stream is not None:
                            found[name] = stream.read()
    except DataError:
        raise
    except Exception as error:  # a damaged one makes tarfile raise whatever
        raise DataError(f"{path} is not a readable tar archive: {str(error) or type(error).__name__}") from error
    return found


def _unpacked(file: BinaryIO) -> Any:
    """What a packed file holds; the file itself where it is not packed."""
    magic = file.read(6)
    file.seek(0)
    for start, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if magic.startswith(start):
            return opened(file)
    return file


class _Bounded:
    """A stream that ends in an error after so many bytes that no archive of this kind has them."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._left = stream, Budget(_MOST)

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        if not self._left.spend(len(data)):
            raise DataError(f"The archive unpacks to more than {_MOST:,} bytes: it is not the CIFAR-10 binary archive")
        return data
