"""Any Python iterable of named arrays: one mapping per sample, or one per batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from onnxslim.data.dataset import LABEL, ArrayDataset
from onnxslim.data.transforms import Layout
from onnxslim.errors import DataError
from onnxslim.graph import Array

__all__ = ["from_iterable"]


def from_iterable(
    source: Iterable[Mapping[str, object]] | Mapping[str, object],
    *,
    label_name: str = LABEL,
    classes: Sequence[str] | None = None,
    batched: bool | None = None,
    layout: Layout | None = None,
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
    items = [_named(item, label_name, i) for i, item in enumerate(source)]
    if not items:
        raise DataError("The data iterable is empty: expected at least one mapping of named arrays")
    first = items[0]
    unsure = batched is None and LABEL not in first
    if batched is None:
        batched = first[LABEL].ndim > 0 if LABEL in first else _first_axes_differ(items)
    for i, item in enumerate(items):
        _check_like(first, item, i, batched)
    join = np.concatenate if batched else np.stack
    merged = {name: join([item[name] for item in items]) for name in first}
    each = not batched and unsure and all(array.ndim > 0 for array in first.values())
    return ArrayDataset(merged, classes, layout=layout, source="the data iterable", perhaps_batches=each)


def _first_axes_differ(items: Sequence[Mapping[str, Array]]) -> bool:
    """So that they can be batches only."""
    shapes = [{name: array.shape for name, array in item.items()} for item in items]
    return any(shape != shapes[0] for shape in shapes) and all(
        shape.keys() == shapes[0].keys() and all(s and s[1:] == shapes[0][name][1:] for name, s in shape.items())
        for shape in shapes
    )


def _named(item: object, label_name: str, number: int) -> dict[str, Array]:
    if not isinstance(item, Mapping):
        raise DataError(
            f"Item {number} of the data iterable: expected a mapping of named arrays such as "
            f"{{'image': …, 'label': …}}, got {type(item).__name__}"
        )
    return {LABEL if name == label_name else str(name): np.asarray(value) for name, value in item.items()}


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
