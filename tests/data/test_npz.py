"""`.npz` archives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxslim.data import open_dataset
from onnxslim.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
LABELS = np.arange(6) % 3


def saved(tmp_path: Path, **arrays: np.ndarray) -> Path:
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


def test_named_arrays(tmp_path: Path) -> None:
    data = open_dataset(saved(tmp_path, image=IMAGES, label=LABELS, classes=np.array(["a", "b", "c"])))
    got = data.read(np.array([5]))
    assert data.classes == ("a", "b", "c")
    assert np.array_equal(got["image"], IMAGES[[5]])
    assert got["label"].tolist() == [2]


def test_label_name_and_aliases(tmp_path: Path) -> None:
    named = open_dataset(saved(tmp_path, features=IMAGES, target=LABELS), label_name="target")
    assert sorted(named.read(np.arange(1))) == ["features", "label"]
    for label in ("y", "labels"):
        data = open_dataset(saved(tmp_path, x=IMAGES, **{label: LABELS}))
        assert sorted(data.read(np.arange(1))) == ["label", "x"]
    assert not open_dataset(saved(tmp_path, images=IMAGES)).labelled


@pytest.mark.parametrize("pattern", ["{split}_{name}", "{name}_{split}"])
def test_splits(tmp_path: Path, pattern: str) -> None:
    arrays = {}
    for split, n in (("train", 4), ("test", 2)):
        arrays |= {pattern.format(split=split, name="x"): IMAGES[:n], pattern.format(split=split, name="y"): LABELS[:n]}
    path = saved(tmp_path, **arrays)
    assert len(open_dataset(path, "train")) == 4
    assert len(open_dataset(path, "test")) == 2
    with pytest.raises(DataError, match="has the splits test, train"):
        open_dataset(path)
    with pytest.raises(DataError, match=r"no such split 'val'; the splits there are test, train"):
        open_dataset(path, "val")


def test_no_splits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such split 'val'; its arrays are not split"):
        open_dataset(saved(tmp_path, image=IMAGES), "val")


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.npz: label out of range at sample 2"):
        open_dataset(saved(tmp_path, image=IMAGES, label=LABELS, classes=np.array(["a", "b"])))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(DataError, match=r"bad.npz is not a readable .npz"):
        open_dataset(tmp_path / "bad.npz")
    whole = saved(tmp_path, image=IMAGES).read_bytes()
    (tmp_path / "bad.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"bad.npz is not a readable .npz"):
        open_dataset(tmp_path / "bad.npz")
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(DataError, match=r"one array without a name"):
        open_dataset(tmp_path / "one.npz")


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="plain arrays"):
        open_dataset(saved(tmp_path, image=np.array([{"a": 1}], dtype=object)))
