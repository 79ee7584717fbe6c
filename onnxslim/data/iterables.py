"""Any Python iterable of named arrays: one mapping per sample, or one per batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from onnxslim.budget import ARCHIVE_BYTES, Budget
from onnxslim.data.dataset import LABEL, ArrayDataset
from onnxslim.data.transforms import AxisOrder
from onnxslim.errors import DataError
from onnxslim.ir.graph import Array

__all__ = ["from_iterable"]

_OVERHEAD = 200
"""Bytes of an array besides its elements."""


def from_iterable(
    source: Iterable[Mapping[str, object]] | Mapping[str, object],
    *,
    label_name: str = LABEL,
    classes: Sequence[str] | None = None,
    batched: bool | None = None,
    layout: AxisOrder | None = None,
) -> ArrayDataset:
    """Reads everything into memory. One mapping alone is taken as the whole data set.

    batched: whether each mapping holds a batch (samples along the first axis) or one sample; None: by the label, a
    number for a sample and a vector for a batch; without labels, items whose first axes differ are batches, and of
    others the rank of the model's input decides, when the data set is `fitted` to it.

    Raises DataError: empty; an item that is no mapping; names, dtypes or shapes that change from
    item to item (names the item); what `ArrayDataset` raises.
    """
    if isinstance(source, Mapping):
        arrays = _named(source, label_name, 0)
        return ArrayDataset(arrays, classes, layout=layout, source="the data")
    items = _items(source, label_name)
    if not items:
        raise DataError("The data iterable is empty: expected at least one mapping of named arrays")
    first = items[0]
    unsure = batched is None and LABEL not in first
    if batched is None:
        batched = first[LABEL].ndim > 0 if LABEL in first else _first_axes_differ(items)
    for i, item in enumerate(items):
        _check_like(first, item, i, batched)
    join = np.concatenate if batched else np.stack
    try:
        merged = {name: join([item[name] for item in items]) for name in first}
    except ValueError as error:  # batches without an axis for samples
        raise DataError(f"The data iterable: its items cannot be joined: {error}") from error
    each = not batched and unsure and all(array.ndim > 0 for array in first.values())
    return ArrayDataset(merged, classes, layout=layout, source="the data iterable", perhaps_batches=each)


def _first_axes_differ(items: Sequence[Mapping[str, Array]]) -> bool:
    """So that they can be batches only."""
    shapes = [{name: array.shape for name, array in item.items()} for item in items]
    return any(shape != shapes[0] for shape in shapes) and all(
        shape.keys() == shapes[0].keys() and all(s and s[1:] == shapes[0][name][1:] for name, s in shape.items())
        for shape in shapes
    )


def _items(source: Iterable[Mapping[str, object]], label_name: str) -> list[dict[str, Array]]:
    """Every item as arrays, as many as memory is meant for: an iterable may have no end."""
    if not isinstance(source, Iterable):
        raise DataError(
            "Data are expected as a path, a data set, a mapping of arrays or an iterable of such mappings, got "
            f"{type(source).__name__}"
        )
    items, left = [], Budget(ARCHIVE_BYTES)
    for number, item in enumerate(source):
        items.append(_named(item, label_name, number))
        if not left.spend(sum(array.nbytes for array in items[-1].values()) + _OVERHEAD):
            raise DataError(f"The data iterable gives more than {ARCHIVE_BYTES:,} bytes: give a part, or a data set")
    return items


def _named(item: object, label_name: str, number: int) -> dict[str, Array]:
    if not isinstance(item, Mapping):
        raise DataError(
            f"Item {number} of the data iterable: expected a mapping of named arrays such as "
            f"{{'image': …, 'label': …}}, got {type(item).__name__}"
        )
    return {LABEL if name == label_name else str(name): _array(value, name, number) for name, value in item.items()}


def _array(value: object, name: object, number: int) -> Array:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"Item {number} of the data iterable: expected '{name}' as an array, all rows of one length, got "
            f"{type(value).__name__}: {error}"
        ) from None


def _check_like(first: Mapping[str, Array], item: Mapping[str, Array], number: int, batched: bool) -> None:
    if list(item) != list(first) and sorted(item) != sorted(first):
        raise DataError(
            f"Item {number} of the data iterable: expected the names {sorted(first)} as in item 0, got {sorted(item)}"
        )
    skip = 1 if batched else 0
    for name, array in item.items():
        want = first[name]
        if array.shape[skip:] != want.shape[skip:] or array.ndim != want.ndim or array.dtype.kind != want.dtype.kind:
            raise DataError(
                f"Item {number} of the data iterable: expected '{name}' {want.dtype} {list(want.shape[skip:])} per "
                f"sample as in item 0, got {array.dtype} {list(array.shape[skip:])}"
            )
