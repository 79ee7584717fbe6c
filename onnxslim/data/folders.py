"""Image folders, and zips of them: one folder per class, optionally under one folder per split.

    root/cat/1.png  root/dog/2.png            root/train/cat/1.png  root/test/dog/2.png
    root/1.png (unlabelled)                   root/train/1.png (unlabelled)

Images that all lie in one folder are unlabelled too: a single class says nothing. Order: classes by
name, files by name in their class. Class numbers count the class folders of all splits, and empty
folders too, so that a class without an image in one split does not shift the others.
"""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from onnxslim.budget import IMAGE_BYTES, IMAGE_PIXELS
from onnxslim.data.dataset import LABEL, Dataset
from onnxslim.data.progress import ProgressCallback
from onnxslim.errors import DataError
from onnxslim.files import open_regular, read_regular
from onnxslim.ir.graph import Array

__all__ = ["SPLITS", "open_folder"]

SPLITS = ("train", "val", "valid", "validation", "test")
"""Folder names that are taken for splits rather than for classes."""

_FORMATS = ("BMP", "JPEG", "PNG", "PPM")
"""What Pillow may take a file for, whatever its name: others are refused, such as EPS, which starts Ghostscript."""
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm")
_CHUNK = 256
_SAMPLE = 1024
_MOST_SAMPLED = 20_000


class _Files(ABC):
    """Files under a root, by POSIX path relative to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def entries(self) -> Iterator[tuple[str, str]]:
        """(path, stamp) of every file, unsorted; folders end in '/'. The stamp is of its size and what else is known
        without reading it."""

    def sample(self, path: str) -> bytes:
        """A part of a file's content that shows whether it is another; none where the stamp does."""
        return b""

    @abstractmethod
    def read(self, path: str) -> bytes: ...


class _Folder(_Files):
    def entries(self) -> Iterator[tuple[str, str]]:
        try:
            for path in self.root.rglob("*"):
                name = path.relative_to(self.root).as_posix()
                if path.is_dir():
                    yield name + "/", ""
                else:
                    yield name, str(path.stat().st_size)
        except OSError as error:
            raise DataError(
                f"{self.root}: cannot read '{error.filename}': {error.strerror}; mend or remove it"
            ) from error

    def sample(self, path: str) -> bytes:
        """Its beginning, middle and end."""
        try:
            with open_regular(self.root / path) as file:
                size = file.seek(0, io.SEEK_END)
                parts = []
                for start in (0, (size - _SAMPLE) // 2, size - _SAMPLE):
                    file.seek(max(start, 0))
                    parts.append(file.read(_SAMPLE))
        except OSError as error:
            raise DataError(f"{self.root}: cannot read '{path}': {error.strerror}; mend or remove it") from error
        return b"".join(parts)

    def read(self, path: str) -> bytes:
        return read_regular(self.root / path, IMAGE_BYTES)


class _Zip(_Files):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        try:
            self._zip = zipfile.ZipFile(root)
        except Exception as error:  # a damaged one makes zipfile raise whatever
            raise DataError(f"{root} is not a readable zip file: {error}") from error
        self._lock = threading.Lock()

    def entries(self) -> Iterator[tuple[str, str]]:
        for info in self._zip.infolist():
            yield info.filename, f"{info.file_size} {info.CRC:08x}"

    def read(self, path: str) -> bytes:
        with self._lock:
            size = self._zip.getinfo(path).file_size
            if size > IMAGE_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes, expected at most {IMAGE_BYTES:,}")
            return self._zip.read(path)


@dataclass(frozen=True)
class _Listing:
    """The images of one split: paths and stamps in order, label per path (-1: none), class names."""

    paths: tuple[str, ...]
    stamps: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...] | None


class _Decoder:
    """Files → uint8 [H, W, C] of one shape; DataError naming the file where one cannot be read or differs."""

    def __init__(self, files: _Files, first: str, resize: tuple[int, int] | None, channels: int | None) -> None:
        self._files, self._resize, self._convert = files, resize, channels is not None
        with self._open(first) as image:
            grey = image.mode in ("1", "L") if channels is None else channels == 1
            self._mode = "L" if grey else "RGB"
            width, height = image.size
        self._reference = first
        self.shape = (*(resize or (height, width)), 1 if grey else 3)

    def _open(self, path: str) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(self._files.read(path)), formats=_FORMATS)
        except Exception as error:  # a damaged file makes Pillow and zipfile raise whatever
            what = str(error) or type(error).__name__
            raise DataError(f"{self._files.root}: cannot read the image '{path}': {what}") from error
        if image.width * image.height > IMAGE_PIXELS:
            raise DataError(
                f"{self._files.root}: image '{path}' has {image.height}×{image.width} pixels, expected at most "
                f"{IMAGE_PIXELS:,}: make it smaller"
            )
        return image

    def __call__(self, path: str) -> Array:
        with self._open(path) as image:
            height, width = self.shape[:2]
            if self._resize is None and image.size != (width, height):
                raise DataError(
                    f"{self._files.root}: image '{path}' has another size: expected {height}×{width} (height × width, "
                    f"as '{self._reference}'), got {image.size[1]}×{image.size[0]}; give a resize to allow that"
                )
            if self._mode == "L" and not self._convert and image.mode not in ("1", "L"):
                raise DataError(
                    f"{self._files.root}: image '{path}' is in colour ({image.mode}), expected greyscale as "
                    f"'{self._reference}': give channels 3 or 1 to convert all"
                )
            try:
                pixels = image.convert(self._mode)
            except Exception as error:  # of a damaged one, whatever
                what = str(error) or type(error).__name__
                raise DataError(f"{self._files.root}: image '{path}' is damaged: {what}") from error
            if pixels.size != (width, height):
                pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(pixels, np.uint8).reshape(self.shape)

    def sample(self, path: str) -> bytes:
        """As of the files; DataError where there is none to take."""
        try:
            return self._files.sample(path)
        except OSError as error:
            raise DataError(f"{self._files.root}: cannot read the image '{path}': {error}") from error


class _Images:
    """Images decoded when they are first read, and kept from then on; or decoded again each time (keep=False), for
    sets that do not fit into memory."""

    def __init__(self, listing: _Listing, decoder: _Decoder, *, keep: bool) -> None:
        self.classes, self.labelled = listing.classes, listing.classes is not None
        self.labels: Array | None = np.array(listing.labels, np.int64) if self.labelled else None
        self._listing, self._decoder, self._digest = listing, decoder, ""
        self._kept: Array | None = None
        if keep:
            self._kept = np.empty((len(listing.paths), *decoder.shape), np.uint8)  # memory is taken as it is filled
            self._known = np.zeros(len(listing.paths), bool)

    def __len__(self) -> int:
        return len(self._listing.paths)

    def read(self, indices: Array) -> dict[str, Array]:
        indices = np.asarray(indices)
        if self._kept is None:
            images = np.empty((len(indices), *self._decoder.shape), np.uint8)
            for place, index in enumerate(indices.tolist()):
                images[place] = self._decoder(self._listing.paths[index])
        else:
            self._decode(np.unique(indices))
            images = self._kept[indices]
        arrays = {"image": images}
        if self.labels is not None:
            arrays[LABEL] = self.labels[indices]
        return arrays

    def load(self, indices: Array, progress: ProgressCallback | None = None, threads: int = 2) -> None:
        """Decodes what is not decoded yet, several at a time, so that a damaged image is found now; nothing where
        images are not kept."""
        if self._kept is None:
            return
        wanted = np.unique(indices)
        missing, done = wanted[~self._known[wanted]], 0
        with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
            chunks = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]
            jobs = [pool.submit(self._decode, chunk) for chunk in chunks]
            try:
                for job in jobs:
                    done += job.result()
                    if progress is not None:
                        progress("decoding images", done, len(missing))
            finally:
                pool.shutdown(cancel_futures=True)

    def digest(self) -> str:
        """Of every file's name, size and a sample of its content (of at most 20,000 files, evenly chosen)."""
        if not self._digest:
            state = hashlib.sha256(repr((self._listing, self._decoder.shape)).encode())
            for path in self._listing.paths[:: -(-len(self) // _MOST_SAMPLED)]:
                state.update(self._decoder.sample(path))
            self._digest = state.hexdigest()
        return self._digest

    def _decode(self, indices: Array) -> int:
        """Those that are not known yet. Two threads may do the same image, with the same result."""
        assert self._kept is not None
        for index in indices[~self._known[indices]].tolist():
            self._kept[index] = self._decoder(self._listing.paths[index])
            self._known[index] = True
        return len(indices)


def open_folder(
    path: Path,
    split: str | None = None,
    *,
    resize: tuple[int, int] | None = None,
    channels: int | None = None,
    memory_limit: int = 2 << 30,
) -> Dataset:
    """The images of a folder or zip as {"image": uint8 [n, H, W, C], "label"}.

    resize: (height, width), bilinear; needed where images differ in size.
    channels: 3 (RGB) or 1 (grey); default by the first image.
    memory_limit: bytes of decoded images up to which they are kept once they are decoded; more are decoded again
    whenever they are read.

    Raises DataError: nothing there, no such split, a first image that cannot be read. Others are decoded when they are
    read (see `load_all`), and raise it then.
    """
    if channels not in (None, 1, 3):
        raise DataError(f"channels is 3 (RGB) or 1 (grey): got {channels}")
    files: _Files = _Folder(path) if path.is_dir() else _Zip(path)
    listing = _list(files, split)
    decoder = _Decoder(files, listing.paths[0], resize, channels)
    return _Images(listing, decoder, keep=len(listing.paths) * int(np.prod(decoder.shape)) <= memory_limit)


def _list(files: _Files, split: str | None) -> _Listing:
    """Finds split, classes and images among the entries."""
    entries = {name: stamp for name, stamp in files.entries() if not _hidden(name)}
    images = sorted(name for name in entries if name.lower().endswith(_SUFFIXES))
    if not images:
        raise DataError(
            f"{files.root}: no image found; expected {'/'.join(s[1:] for s in _SUFFIXES)} files in one folder per class"
        )
    prefix = _wrapper(images, split)
    folders = _folders(entries, prefix)
    top = sorted({parts[0] for parts in folders})
    deep = sorted({parts[0] for parts in folders if len(parts) > 1})
    if split is None:
        splits = deep or [name for name in top if name in SPLITS]
        if splits and (deep or len(splits) == len(top)):
            raise DataError(f"{files.root} has the splits {', '.join(splits)}: say which one to read")
    else:
        if split not in top:
            there = f"the splits there are {', '.join(deep or top)}" if top else "it has no split folders"
            raise DataError(f"{files.root}: no such split '{split}'; {there}")
        folders = [parts[1:] for parts in folders if len(parts) > 1]
    base = prefix if split is None else f"{prefix}{split}/"
    return _label(files, entries, [n for n in images if n.startswith(base)], base, folders)


def _label(
    files: _Files, entries: dict[str, str], images: list[str], base: str, folders: list[tuple[str, ...]]
) -> _Listing:
    if not images:
        raise DataError(f"{files.root}: no image under '{base}'")
    parts = {name: name[len(base) :].split("/") for name in images}
    depth = len(parts[images[0]])
    for name in images:
        if len(parts[name]) != depth or depth > 2:
            raise DataError(
                f"{files.root}: '{name}' is not where images are expected: all in class folders under "
                f"'{base or '.'}', or all directly there (unlabelled)"
            )
    stamps = tuple(entries[name] for name in images)
    classes = tuple(sorted({folder[0] for folder in folders if folder}))
    if depth == 1 or len(classes) == 1:
        return _Listing(tuple(images), stamps, (-1,) * len(images), None)
    number = {name: i for i, name in enumerate(classes)}
    order = sorted(images, key=lambda name: (number[parts[name][0]], name))
    labels = tuple(number[parts[name][0]] for name in order)
    return _Listing(tuple(order), tuple(entries[name] for name in order), labels, classes)


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX")) or "/." in name


def _wrapper(images: list[str], split: str | None) -> str:
    """The folders that hold everything, as in a zip of one folder: a prefix ending in '/', or ''."""
    prefix = ""
    while True:
        heads = {name[len(prefix) :].partition("/")[0] for name in images}
        if len(heads) != 1 or min(name.count("/", len(prefix)) for name in images) < 2:
            return prefix
        head = heads.pop()
        if head == split or head in SPLITS:
            return prefix
        prefix += head + "/"


def _folders(entries: dict[str, str], prefix: str) -> list[tuple[str, ...]]:
    """Every folder below the prefix that holds images or is empty, by its parts, sorted."""
    holding = {name.rpartition("/")[0] + "/" for name in entries if name.lower().endswith(_SUFFIXES)}
    busy = {name.rstrip("/").rpartition("/")[0] + "/" for name in entries}
    empty = {name for name in entries if name.endswith("/") and name not in busy}
    found: set[tuple[str, ...]] = set()
    for name in holding | empty:
        if name.startswith(prefix) and name != "/":
            parts = tuple(name[len(prefix) :].split("/")[:-1])
            found.update(parts[:n] for n in range(1, len(parts) + 1))
    return sorted(found)
