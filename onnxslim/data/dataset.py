"""`Dataset`: random access to samples; and the one that holds arrays in memory."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from onnxslim.data.fitting import ModelInput, arranged, fitted, image_order
from onnxslim.data.progress import ProgressCallback
from onnxslim.data.transforms import AxisOrder
from onnxslim.errors import DataError
from onnxslim.ir.graph import Array

__all__ = [
    "LABEL",
    "ArrayDataset",
    "Dataset",
    "Loads",
    "Subset",
    "Unlabelled",
    "as_labels",
    "finite_input",
    "input_array",
    "input_name_in",
    "load_all",
    "numbers_of",
]

LABEL = "label"
"""The name under which every data set gives its labels."""

_IMAGES = ("image", "images")
"""Names that arrays of images often have."""


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
    layout: the order of four-axis arrays; None: what the model says that they are `fitted` to. Until then they are
    taken for images: NCHW where only the second axis can be channels (1, 3 or 4), else NHWC; and read as NHWC, an
    "image" of three axes [n, H, W] with a channel axis.

    perhaps_batches: each sample may be a batch instead, which the rank of a model's input tells when they are fitted.

    Raises DataError: no array, no sample, unequal lengths, labels that are not integers in the
    range of `classes`. `source` names the data in messages.
    """

    def __init__(
        self,
        arrays: Mapping[str, Array],
        classes: Sequence[str] | None = None,
        *,
        layout: AxisOrder | None = None,
        source: str = "the arrays",
        perhaps_batches: bool = False,
    ) -> None:
        self._perhaps_batches = perhaps_batches
        self.classes = None if classes is None else tuple(classes)
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self._layout, self._source, self._digest = layout, source, ""
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
        self._given = dict(self._arrays)
        for name in inputs:
            self._arrays[name] = _as_samples(name, self._arrays[name], layout, source)
        if LABEL in self._arrays:
            self._arrays[LABEL] = as_labels(self._arrays[LABEL], self.classes, source)

    def __len__(self) -> int:
        return self._size

    def arranged_for(self, source: ModelInput, layout: AxisOrder) -> ArrayDataset:
        """The same samples, the array of that input as the model takes it; see `fitted`."""
        name = input_name_in(self._given, source.name)
        given = self._given[name]
        if self._perhaps_batches and source.shape is not None and given.ndim == len(source.shape) + 1:
            parts = {key: array.reshape(-1, *array.shape[2:]) for key, array in self._given.items()}
            whole = ArrayDataset(parts, self.classes, layout=self._layout, source=self._source)
            return whole.arranged_for(source, layout)
        twin = copy.copy(self)
        array = arranged(given, source.shape, layout, self._layout)
        twin._arrays, twin._digest = {**self._arrays, name: array}, ""
        return twin

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

    def arranged_for(self, source: ModelInput, layout: AxisOrder) -> Subset:
        """The same samples of the whole, arranged; see `fitted`."""
        whole = fitted(self._whole, source, layout)
        if len(whole) != len(self._whole):
            raise DataError("A part of data of which each item is a batch: cut the data themselves")
        return Subset(whole, self._indices)

    def numbers(self, indices: Array) -> Array:
        """The samples' numbers in the whole data set, which messages name."""
        return numbers_of(self._whole, self._indices[indices])

    def digest(self) -> str:
        return hashlib.sha256(self._whole.digest().encode() + self._indices.tobytes()).hexdigest()


class Unlabelled:
    """A data set without its labels."""

    classes, labelled, labels = None, False, None

    def __init__(self, whole: Dataset) -> None:
        self._whole = whole

    def __len__(self) -> int:
        return len(self._whole)

    def read(self, indices: Array) -> dict[str, Array]:
        return {name: array for name, array in self._whole.read(indices).items() if name != LABEL}

    def load(self, indices: Array, progress: ProgressCallback | None = None) -> None:
        if isinstance(self._whole, Loads):
            self._whole.load(indices, progress)

    def arranged_for(self, source: ModelInput, layout: AxisOrder) -> Unlabelled:
        """The same samples of the whole, arranged; see `fitted`."""
        return Unlabelled(fitted(self._whole, source, layout))

    def digest(self) -> str:
        return hashlib.sha256(self._whole.digest().encode() + b" unlabelled").hexdigest()


def load_all(dataset: Dataset, progress: ProgressCallback | None = None) -> None:
    """Readies every sample of a data set that would else be decoded when it is read, for who will read all of them.

    Raises DataError where a sample is damaged.
    """
    if isinstance(dataset, Loads):
        dataset.load(np.arange(len(dataset), dtype=np.int64), progress)


def numbers_of(dataset: Dataset, indices: Array) -> Array:
    """The numbers that samples have where they come from: a part of a data set knows those of the whole."""
    return dataset.numbers(indices) if isinstance(dataset, Subset) else indices


def input_array(arrays: Mapping[str, Array], input_name: str) -> Array:
    """The array for a model's input; see `input_name_in`."""
    return arrays[input_name_in(arrays, input_name)]


def input_name_in(arrays: Mapping[str, Array], input_name: str) -> str:
    """Which array is for a model's input: the one of its name, else the only one, else the one named as images are;
    never the labels, whatever the input is called.

    Raises DataError naming what there is.
    """
    if input_name in arrays and input_name != LABEL:
        return input_name
    inputs = [name for name in arrays if name != LABEL]
    if len(inputs) != 1:
        inputs = [name for name in _IMAGES if name in arrays][:1]
    if len(inputs) != 1:
        inputs = [name for name in arrays if name != LABEL]
        raise DataError(
            f"The model's input is '{input_name}', the data have {', '.join(sorted(inputs)) or 'no inputs'}: "
            "name one after it"
        )
    return inputs[0]


def finite_input(arrays: Mapping[str, Array], input_name: str, numbers: Array) -> Array:
    """`input_array`, of samples with these `numbers`; DataError naming the first that holds NaN or infinity, of which
    whatever is measured, calibrated or trained would be nonsense without a word."""
    array = input_array(arrays, input_name)
    if array.dtype.kind == "f":
        finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if not finite.all():
            more = int((~finite).sum()) - 1
            raise DataError(
                f"The data hold NaN or infinity: sample {numbers[int(finite.argmin())]} for input '{input_name}', and "
                f"{more} more of its batch of {len(array)}; repair or remove them"
            )
    return array


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


def _as_samples(name: str, array: Array, layout: AxisOrder | None, source: str) -> Array:
    if array.dtype.kind not in "biuf":
        raise DataError(f"{source}: array '{name}' is expected to hold numbers, got {array.dtype}")
    if array.ndim == 3 and name == "image":
        return array[..., None]
    if array.ndim == 4 and (layout or image_order(array.shape[1:])) == "NCHW":
        return np.moveaxis(array, 1, -1)
    return array


def _shapes(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"'{name}' {list(array.shape)}" for name, array in arrays.items())
