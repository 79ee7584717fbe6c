"""Arrays in memory, parts of them, digests."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.data import ArrayDataset, Subset, input_array
from onnxslim.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.int32)


def test_reads_samples_by_index() -> None:
    data = ArrayDataset({"image": IMAGES, "label": LABELS}, ["a", "b", "c"])
    got = data.read(np.array([4, 1]))
    assert len(data) == 6
    assert data.labelled
    assert data.classes == ("a", "b", "c")
    assert np.array_equal(got["image"], IMAGES[[4, 1]])
    assert got["label"].dtype == np.int64
    assert got["label"].tolist() == [1, 1]


def test_unlabelled() -> None:
    data = ArrayDataset({"image": IMAGES})
    assert not data.labelled
    assert data.labels is None
    assert sorted(data.read(np.arange(2))) == ["image"]


def test_images_are_kept_channels_last() -> None:
    planes = IMAGES.transpose(0, 3, 1, 2)
    for data in (ArrayDataset({"image": planes}), ArrayDataset({"image": planes}, layout="NCHW")):
        assert np.array_equal(data.read(np.arange(6))["image"], IMAGES)
    assert ArrayDataset({"image": planes}, layout="NHWC").read(np.arange(1))["image"].shape == (1, 3, 4, 5)
    grey = ArrayDataset({"image": IMAGES[..., 0]})
    assert np.array_equal(grey.read(np.arange(6))["image"], IMAGES[..., :1])
    assert ArrayDataset({"tokens": np.zeros((2, 3, 4))}).read(np.arange(2))["tokens"].shape == (2, 3, 4)


def test_column_of_labels() -> None:
    assert ArrayDataset({"image": IMAGES, "label": LABELS[:, None]}).read(np.array([2]))["label"].tolist() == [2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"label": LABELS}, "no input array"),
        ({"image": IMAGES[:0]}, "empty"),
        ({"image": IMAGES, "label": LABELS[:3]}, r"one first axis.*'label' \[3\]"),
        ({"image": np.float32(1)}, "one first axis"),
        ({"image": IMAGES, "label": LABELS + 1}, r"out of range at sample 2: expected 0 to 2 \(3 classes\), got 3"),
        ({"image": IMAGES, "label": LABELS - 1}, "out of range at sample 0: .*got -1"),
        ({"image": IMAGES, "label": LABELS.astype(np.float32)}, r"expected as integers.*float32 \[6\]"),
        ({"image": IMAGES, "label": np.eye(6, dtype=np.int64)}, r"expected as integers.*int64 \[6, 6\]"),
        ({"image": IMAGES.astype(str)}, "expected to hold numbers"),
    ],
)
def test_wrong_arrays(arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArrayDataset(arrays, ["a", "b", "c"])


def test_digest_follows_content() -> None:
    data = ArrayDataset({"image": IMAGES, "label": LABELS})
    assert data.digest() == ArrayDataset({"label": LABELS, "image": IMAGES.copy()}).digest()
    changed = IMAGES.copy()
    changed[3, 1, 1, 1] ^= 1
    digests = {
        data.digest(),
        ArrayDataset({"image": changed, "label": LABELS}).digest(),
        ArrayDataset({"image": IMAGES}).digest(),
        ArrayDataset({"image": IMAGES, "label": LABELS}, ["a", "b", "c"]).digest(),
        Subset(data, np.arange(5)).digest(),
        Subset(data, np.arange(4)).digest(),
    }
    assert len(digests) == 6


def test_subset() -> None:
    data = ArrayDataset({"image": IMAGES, "label": LABELS}, ["a", "b", "c"])
    part = Subset(data, np.array([5, 3]))
    assert len(part) == 2
    assert part.labelled
    assert part.classes == data.classes
    assert part.labels is not None
    assert part.labels.tolist() == [2, 0]
    assert np.array_equal(part.read(np.array([1]))["image"], IMAGES[[3]])


def test_input_array_is_found_by_name_then_convention() -> None:
    one, two, label = np.zeros(1), np.ones(1), np.zeros(1)
    assert input_array({"x": one, "image": two}, "x") is one
    assert input_array({"x": one, "image": two}, "input.1") is two
    assert input_array({"x": one, "label": label}, "input.1") is one
    with pytest.raises(DataError, match=r"'input.1', the data have x, y"):
        input_array({"x": one, "y": two}, "input.1")
