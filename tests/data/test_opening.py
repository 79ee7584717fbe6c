"""Paths, parts of splits, and data against models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from onnxslim.data import ArrayDataset, Preprocess, Subset, check_fits, open_dataset
from onnxslim.errors import DataError
from onnxslim.ir.graph import DType, Shape

IMAGES = np.zeros((6, 4, 5, 3), np.uint8)


@dataclass
class Input:
    name: str
    dtype: DType
    shape: Shape | None


def model(*shape: int | str | None, dtype: DType = DType.FLOAT) -> Input:
    return Input("image", dtype, shape)


def test_missing_and_unknown_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.zip does not exist \(looked from"):
        open_dataset(tmp_path / "nowhere.zip")
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"expected a folder, .zip, .npz .*got a '.csv' file"):
        open_dataset(str(tmp_path / "data.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image found"):
        open_dataset(tmp_path / "empty")


def test_parts() -> None:
    data = ArrayDataset({"image": IMAGES, "label": np.arange(6)})
    assert open_dataset(data, "[:2]").labels is not None
    assert open_dataset(data, "[:2]").read(np.arange(2))["label"].tolist() == [0, 1]
    assert open_dataset(data, "[-2:]").read(np.arange(2))["label"].tolist() == [4, 5]
    assert isinstance(open_dataset(data, "[:]"), Subset)
    with pytest.raises(DataError, match=r"'\[6:\]' is empty: there are 6 samples"):
        open_dataset(data, "[6:]")


def test_fitting_data() -> None:
    data = ArrayDataset({"image": IMAGES, "label": np.arange(6)})
    check_fits(data, model("batch", 3, 4, 5), 6)
    check_fits(data, model(None, 3, None, "w"), 10)
    check_fits(data, model(64, 4, 5, 3), preprocess=Preprocess(layout="NHWC"))
    check_fits(data, Input("image", DType.FLOAT16, None))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (model("n", 1, 4, 5), r"expected 1×4×5 per sample \(channels × height × width\), got 3×4×5"),
        (model("n", 3, 32, 32), r"expected 3×32×32 .*got 3×4×5.*give a resize"),
        (model("n", 4, 5, 3), "the layout is the other one"),
        (model("n", 60), "expected 60 per sample, got 3×4×5"),
        (model("n", 3, 4, 5, dtype=DType.UINT8), "'image' takes uint8"),
    ],
)
def test_data_that_do_not_fit(wanted: Input, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_fits(ArrayDataset({"image": IMAGES}, layout="NHWC"), wanted)


def test_labels_that_do_not_fit() -> None:
    fits = model("n", 3, 4, 5)
    named = ArrayDataset({"image": IMAGES, "label": np.arange(6)}, list("abcdef"))
    with pytest.raises(DataError, match="The model has 10 classes, the data have 6: a, b, c"):
        check_fits(named, fits, 10)
    plain = ArrayDataset({"image": IMAGES, "label": np.arange(6)})
    with pytest.raises(DataError, match=r"model of 4 classes: label out of range at sample 4: expected 0 to 3"):
        check_fits(plain, fits, 4)
    check_fits(ArrayDataset({"image": IMAGES}), fits, 4)
