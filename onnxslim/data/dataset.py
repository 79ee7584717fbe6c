"""`Dataset`: random access to samples; and the one that holds arrays in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from onnxslim.data.progress import ProgressCallback
from onnxslim.data.transforms import Layout
from onnxslim.errors import DataError
from onnxslim.graph import Array

__all__ = ["LABEL", "ArrayDataset", "Dataset", "Loads", "Subset", "as_labels", "input_array", "load_all"]

LABEL = "label"
"""The name under which every data set gives its labels."""

_CHANNELS = (1, 3, 4)


class Dataset(Protocol):
    """Samples by index. Images are [n, H, W, C], uint8 as files hold them or float32."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the labels, where they are known."""

    @property
    def labelled(self) -> bool:
        """Whether `read` gives "label"."""

    @property
    def labels(self) -> Array | None:
        """All labels, int64 [len]; None where there are none."""

    def __len__(self) -> int: ...

    def read(self, indices: Array) -> dict[str, Array]:
        """The samples at `indices` int64 [n]: e.g. {"image": uint8 [n, H, W, C], "label": int64 [n]}."""

    def digest(self) -> str:
        """Hexadecimal digest of the content: equal digests, equal samples in equal order."""


@runtime_checkable
class Loads(Protocol):
    """A data set that does work for a sample when it is first read, and can do it before."""

    def load(self, indices: Array, progress: ProgressCallback | None = None) -> None:
        """Readies the samples at `indices`; DataError where one is damaged."""


class ArrayDataset:
    """Named arrays in memory, samples along the first axis.

    arrays: one array per input, and the labels (integers [n] or [n, 1]) under "label" if there are any.
    layout: of four-axis arrays; None: NCHW where only the second axis can be channels (1, 3 or 4),
    else NHWC. They are kept as NHWC; an "image" of three axes [n, H, W] gets a channel axis.

    Raises DataError: no array, no sample, unequal lengths, labels that are not integers in the
    range of `classes`. `source` names the data in messages.
    """

    def __init__(
        self,
        arrays: Mapping[str, Array],
        classes: Sequence[str] | None = None,
        *,
        layout: Layout | None = None,
        source: str = "the arrays",
    ) -> None:
        self.classes = None if classes is None else tuple(classes)
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self._digest = ""
        inputs = [name for name in self._arrays if name != LABEL]
        if not inputs:
            raise DataError(f"{source}: no input array beside the labels; expected one such as 'image'")
        lengths = {name: (array.shape[0] if array.ndim else None) for name, array in self._arrays.items()}
        size = lengths[inputs[0]]
        if size is None or any(n != size for n in lengths.values()):
            raise DataError(f"{source}: expected arrays with one first axis, the samples; got {_shapes(self._arrays)}")
        if size == 0:
            raise DataError(f"{source}: empty, there is no sample")
        self._size = int(size)
        for name in inputs:
            self._arrays[name] = _as_samples(name, self._arrays[name], layout, source)
        if LABEL in self._arrays:
            self._arrays[LABEL] = as_labels(self._arrays[LABEL], self.classes, source)

    def __len__(self) -> int:
        return self._size

    @property
    def labelled(self) -> bool:
        return LABEL in self._arrays

    @property
    def labels(self) -> Array | None:
        return self._arrays.get(LABEL)

    def read(self, indices: Array) -> dict[str, Array]:
        return {name: array[indices] for name, array in self._arrays.items()}

    def digest(self) -> str:
        if not self._digest:
            state = hashlib.sha256(repr(self.classes).encode())
            for name in sorted(self._arrays):
                array = self._arrays[name]
                state.update(f"{name} {array.dtype.str} {array.shape}".encode())
                state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            self._digest = state.hexdigest()
        return self._digest


class Subset:
    """Some samples of a data set, in the order of `indices`."""

    def __init__(self, whole: Dataset, indices: Array) -> None:
        self._whole = whole
        self._indices = np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self._whole.classes

    @property
    def labelled(self) -> bool:
        return self._whole.labelled

    @property
    def labels(self) -> Array | None:
        labels = self._whole.labels
        return None if labels is None else labels[self._indices]

    def read(self, indices: Array) -> dict[str, Array]:
        return self._whole.read(self._indices[indices])

    def load(self, indices: Array, progress: ProgressCallback | None = None) -> None:
        if isinstance(self._whole, Loads):
            self._whole.load(self._indices[indices], progress)

    def digest(self) -> str:
        return hashlib.sha256(self._whole.digest().encode() + self._indices.tobytes()).hexdigest()


def load_all(dataset: Dataset, progress: ProgressCallback | None = None) -> None:
    """Readies every sample of a data set that would else be decoded when it is read, for who will read all of them.

    Raises DataError where a sample is damaged.
    """
    if isinstance(dataset, Loads):
        dataset.load(np.arange(len(dataset), dtype=np.int64), progress)


def input_array(arrays: Mapping[str, Array], input_name: str) -> Array:
    """The array for a model's input: the one of its name, else "image", else the only one; never the labels, whatever
    the input is called.

    Raises DataError naming what there is.
    """
    for name in (input_name, "image"):
        if name in arrays and name != LABEL:
            return arrays[name]
    inputs = [name for name in arrays if name != LABEL]
    if len(inputs) != 1:
        raise DataError(
            f"The model's input is '{input_name}', the data have {', '.join(sorted(inputs)) or 'no inputs'}: "
            "name one after it"
        )
    return arrays[inputs[0]]


def as_labels(labels: Array, classes: tuple[str, ...] | None, source: str) -> Array:
    """Labels as int64 [n]; DataError where they are not integers in the range of the classes."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{source}: labels are expected as integers of shape [samples], got {labels.dtype} {list(labels.shape)}"
        )
    out = labels.astype(np.int64)
    limit = len(classes) if classes is not None else np.iinfo(np.int64).max
    wrong = np.flatnonzero((out < 0) | (out >= limit))
    if len(wrong):
        allowed = f"0 to {limit - 1} ({limit} classes)" if classes is not None else "0 or more"
        raise DataError(f"{source}: label out of range at sample {wrong[0]}: expected {allowed}, got {out[wrong[0]]}")
    return out


def _as_samples(name: str, array: Array, layout: Layout | None, source: str) -> Array:
    if array.dtype.kind not in "biuf":
        raise DataError(f"{source}: array '{name}' is expected to hold numbers, got {array.dtype}")
    if array.ndim == 3 and name == "image":
        return array[..., None]
    if array.ndim == 4:
        guess = array.shape[1] in _CHANNELS and array.shape[3] not in _CHANNELS
        if layout == "NCHW" or (layout is None and guess):
            return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    return array


def _shapes(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"'{name}' {list(array.shape)}" for name, array in arrays.items())
