"""Python iterables of named arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxslim.data import from_iterable, open_dataset
from onnxslim.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
LABELS = np.arange(6) % 3


@pytest.mark.parametrize(
    "source",
    [
        {"image": IMAGES, "label": LABELS},
        [{"image": i, "label": int(k)} for i, k in zip(IMAGES, LABELS, strict=True)],
        [{"image": IMAGES[:4], "label": LABELS[:4]}, {"image": IMAGES[4:], "label": LABELS[4:]}],
        [{"image": i.tolist(), "label": k} for i, k in zip(IMAGES, LABELS, strict=True)],
    ],
    ids=["whole", "samples", "batches", "lists"],
)
def test_samples_batches_and_wholes(source: Any) -> None:
    data = open_dataset(source)
    got = data.read(np.arange(6))
    assert np.array_equal(got["image"], IMAGES)
    assert np.array_equal(got["label"], LABELS)
    assert got["label"].dtype == np.int64


def test_generators_and_label_names() -> None:
    data = open_dataset(({"x": i, "y": k} for i, k in zip(IMAGES, LABELS, strict=True)), label_name="y")
    assert len(data) == 6
    assert data.labelled


def test_unlabelled() -> None:
    assert len(open_dataset([{"image": IMAGES[:2]}, {"image": IMAGES[2:]}])) == 6
    assert len(open_dataset([{"image": i} for i in IMAGES])) == 6
    vectors = [{"x": np.zeros((2, 5))}, {"x": np.zeros((3, 5))}]
    assert len(from_iterable(vectors, batched=True)) == 5


def test_a_dataset_is_given_back() -> None:
    data = open_dataset({"image": IMAGES})
    assert open_dataset(data) is data
    assert len(open_dataset(data, "[1:3]")) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "iterable is empty"),
        ([(IMAGES[0], 1)], "Item 0 .* expected a mapping .*got tuple"),
        ([{"image": IMAGES[0]}, {"img": IMAGES[0]}], r"Item 1 .* expected the names \['image'\] .*got \['img'\]"),
        (
            [{"image": IMAGES[0]}, {"image": IMAGES[0, :, :2]}],
            r"Item 1 .*'image' uint8 \[4, 4, 3\].*\[4, 2, 3\]",
        ),
        ([{"image": IMAGES[0]}, {"image": IMAGES[0] / 2}], r"Item 1 .*uint8.*got float64"),
        ([{"label": 1}], "no input array"),
        ([{"image": IMAGES[0], "label": -1}], "out of range at sample 0"),
    ],
)
def test_wrong_items(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(source)


def test_no_splits() -> None:
    with pytest.raises(DataError, match="No such split 'train'"):
        open_dataset({"image": IMAGES}, "train")
