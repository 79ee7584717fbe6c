"""`.npz` archives of named arrays, as numpy.savez writes them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from onnxslim.budget import ARCHIVE_BYTES
from onnxslim.data.dataset import LABEL, ArrayDataset
from onnxslim.data.transforms import AxisOrder
from onnxslim.errors import DataError
from onnxslim.files import open_regular
from onnxslim.ir.graph import Array

__all__ = ["load_arrays", "open_npz"]

_LABELS = (LABEL, "labels", "y")


def open_npz(
    path: Path, split: str | None = None, *, label_name: str = LABEL, layout: AxisOrder | None = None
) -> ArrayDataset:
    """The arrays of an archive: inputs by name, labels under `label_name` (or "labels", "y").

    Splits are name parts: with split "train", `train_image`, `image_train` and `x_train` count.
    An array `classes` of strings names the classes. Pickled objects are never loaded.

    Raises DataError: not an archive, no such split, what `ArrayDataset` raises.
    """
    arrays = load_arrays(path)
    classes = arrays.pop("classes", None)
    splits = sorted({s for name in arrays if (s := _split_of(name)[0])})
    if split is None and splits:
        raise DataError(f"{path} has the splits {', '.join(splits)}: say which one to read")
    if split is not None and split not in splits:
        whole = "its arrays are not split: name none, or parts of the whole such as '[:1000]' and '[1000:]'"
        there = f"the splits there are {', '.join(splits)}" if splits else whole
        raise DataError(f"{path}: no such split '{split}'; {there} (arrays: {', '.join(sorted(arrays))})")
    chosen = {base: arrays[name] for name in arrays for s, base in [_split_of(name)] if s == (split or "")}
    named: dict[str, Array] = {}
    for name, array in chosen.items():
        is_label = name == label_name or (label_name not in chosen and name in _LABELS)
        named[LABEL if is_label else name] = array
    if classes is not None and classes.ndim != 1:
        raise DataError(f"{path}: 'classes' is expected to name the classes in one row, got shape {classes.shape}")
    names = None if classes is None else [str(c) for c in classes.tolist()]
    return ArrayDataset(named, names, layout=layout, source=str(path))


def load_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an archive by name; DataError where it is none."""
    try:
        with open_regular(path) as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds one array without a name: save it with numpy.savez(image=…, label=…)")
            with archive:
                size = sum(member.file_size for member in archive.zip.infolist()) if archive.zip is not None else 0
                if size > ARCHIVE_BYTES:
                    raise DataError(f"{path} unpacks to {size:,} bytes; expected at most {ARCHIVE_BYTES:,}")
                return {name: archive[name] for name in archive.files}
    except DataError:
        raise
    except Exception as error:  # a damaged archive makes zipfile and numpy raise whatever
        what = str(error) or type(error).__name__
        raise DataError(f"{path} is not a readable .npz archive of plain arrays: {what}") from error


def _split_of(name: str) -> tuple[str, str]:
    """'train_image' or 'image_train' → ('train', 'image'); no split → ('', name)."""
    splits = "train|val|valid|validation|test"
    if match := re.fullmatch(rf"({splits})[_./-](.+)", name):
        return match[1], match[2]
    if match := re.fullmatch(rf"(.+)[_./-]({splits})", name):
        return match[2], match[1]
    return "", name
