"""`open_dataset`: finds out what a source is and opens it; `check_fits`: data against a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import numpy as np

from onnxslim.data.cifar_binary import is_cifar_binary, open_cifar_binary
from onnxslim.data.dataset import LABEL, Dataset, Subset, as_labels, input_array
from onnxslim.data.fitting import ModelInput, fitted
from onnxslim.data.folders import open_folder
from onnxslim.data.iterables import from_iterable
from onnxslim.data.npz import open_npz
from onnxslim.data.transforms import AxisOrder, Preprocess
from onnxslim.errors import DataError
from onnxslim.files import looked_from
from onnxslim.ir.graph import Shape

__all__ = ["Source", "check_fits", "open_dataset"]

Source = str | Path | Dataset | Mapping[str, object] | Iterable[Mapping[str, object]]


def open_dataset(
    source: Source,
    split: str | None = None,
    *,
    label_name: str = LABEL,
    resize: tuple[int, int] | int | None = None,
    channels: int | None = None,
    layout: AxisOrder | None = None,
    memory_limit: int = 2 << 30,
) -> Dataset:
    """Opens an image folder, a zip of one, an `.npz`, a CIFAR-10 binary archive, an iterable of named
    arrays, or gives back a Dataset.

    split: "train", "val", "test" or whatever is there; "train[:45000]" or "train[45000:]" takes part
    of it (in stored order: image folders are ordered by class).
    label_name: of the labels among named arrays. resize, channels, memory_limit: see `open_folder`.
    layout: of four-axis arrays in `.npz` and iterables; see `ArrayDataset`.

    Raises DataError, saying what is wrong where, on a missing path and all else.
    """
    name, part = _part(split)
    size = (resize, resize) if isinstance(resize, int) else resize
    if isinstance(source, str | Path):
        path = Path(source)
        _require_there(path)
        dataset: Dataset
        if path.suffix == ".npz":
            dataset = open_npz(path, name, label_name=label_name, layout=layout)
        elif is_cifar_binary(path):
            dataset = open_cifar_binary(path, name)
        elif path.is_dir() or path.suffix == ".zip":
            dataset = open_folder(path, name, resize=size, channels=channels, memory_limit=memory_limit)
        else:
            raise DataError(f"{path}: expected a folder, .zip, .npz or CIFAR-10 .tar.gz, got a '{path.suffix}' file")
    else:
        if name is not None:
            raise DataError(f"No such split '{name}': data given from Python have no splits, give the right part")
        if hasattr(source, "read") and hasattr(source, "labelled"):
            dataset = cast(Dataset, source)
        else:
            dataset = from_iterable(
                cast("Iterable[Mapping[str, object]]", source), label_name=label_name, layout=layout
            )
    if part is None:
        return dataset
    indices = np.arange(len(dataset), dtype=np.int64)[part]
    if not len(indices):
        raise DataError(f"Split '{split}' is empty: there are {len(dataset)} samples before the cut")
    return Subset(dataset, indices)


def _require_there(path: Path) -> None:
    """A folder or a regular file."""
    try:
        there, regular = path.exists(), path.is_dir() or path.is_file()
    except ValueError as error:  # a NUL, or letters that no file system takes
        raise DataError(f"Data not found: {str(path)!r} is no path ({error})") from None
    if not there:
        raise DataError(f"Data not found: {path} does not exist{looked_from()}")
    if not regular:
        raise DataError(f"{path}: expected a folder or a regular file, got a device, a pipe or a socket")


def _part(split: str | None) -> tuple[str | None, slice | None]:
    """'train[:45000]' → ('train', slice(None, 45000))."""
    match = re.fullmatch(r"([^\[\]]*)\[(-?\d{0,18}):(-?\d{0,18})\]", split or "")
    if match is None:
        return split, None
    start, stop = (int(text) if text not in ("", "-") else None for text in match.group(2, 3))
    return match[1] or None, slice(start, stop)


def check_fits(
    dataset: Dataset, model_input: ModelInput, classes: int | None = None, preprocess: Preprocess | None = None
) -> None:
    """Checks that the data, preprocessed, are what a model takes: dtype, rank, channels, size, and
    labels within its `classes` outputs (None: not checked).

    Raises DataError: expected against got. Symbolic axes of the model fit anything.
    """
    preprocess = preprocess or Preprocess()
    dataset = fitted(dataset, model_input, preprocess.layout)
    name, wanted = model_input.name, model_input.shape
    if not model_input.dtype.is_float:
        raise DataError(
            f"Model input '{name}' takes {model_input.dtype.name.lower()}; data are preprocessed to float: "
            "expected a model with a float input"
        )
    sample = preprocess(input_array(dataset.read(np.zeros(1, np.int64)), name))
    got = sample.shape[1:]
    if wanted is not None:
        expected = wanted[1:]
        fits = len(expected) == len(got) and all(
            not isinstance(e, int) or e == g for e, g in zip(expected, got, strict=True)
        )
        if not fits:
            raise DataError(
                f"The data do not fit model input '{name}': expected {_show(expected)} per sample"
                f"{_axes(expected, preprocess.layout)}, got {_show(got)}{_axes(got, preprocess.layout)}"
                f"{_hint(expected, got)}"
            )
    if classes is None or not dataset.labelled:
        return
    if dataset.classes is not None and len(dataset.classes) != classes:
        raise DataError(
            f"The model has {classes} classes, the data have {len(dataset.classes)}: {_some(dataset.classes)}"
        )
    if dataset.labels is not None:
        as_labels(dataset.labels, tuple(str(i) for i in range(classes)), f"Labels for a model of {classes} classes")


def _show(shape: Shape) -> str:
    return "×".join("?" if d is None else str(d) for d in shape) or "a number"


def _axes(shape: Shape, layout: AxisOrder) -> str:
    if len(shape) != 3:
        return ""
    return " (channels × height × width)" if layout == "NCHW" else " (height × width × channels)"


def _hint(expected: Shape, got: tuple[int, ...]) -> str:
    if len(expected) == 3 and len(got) == 3:
        if tuple(expected) in ((got[1], got[2], got[0]), (got[2], got[0], got[1])):
            return ": the layout is the other one, set layout"
        return ": give a resize, or use data of that size"
    return ""


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
