"""Arrays become what a model's input says, whatever their rank, order and name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from onnxslim.data import ArrayDataset, AxisOrder, Preprocess, Subset, check_fits, fitted, open_dataset
from onnxslim.data.dataset import Unlabelled, input_array
from onnxslim.errors import DataError
from onnxslim.ir.graph import Array, DType, Shape


@dataclass(frozen=True)
class Source:
    name: str
    shape: Shape | None
    dtype: DType = DType.FLOAT


def numbered(*shape: int) -> Array:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def got(array: Array, wanted: Shape | None, layout: AxisOrder = "NCHW", name: str = "x", **options: AxisOrder) -> Array:
    """What the model's input is fed."""
    source, preprocess = Source(name, wanted), Preprocess(layout=layout)
    dataset = ArrayDataset({name: array}, layout=options.get("given"))
    if wanted is not None:
        check_fits(dataset, source, None, preprocess)
    ready = fitted(dataset, source, layout)
    again = fitted(ready, source, layout)  # a second time changes nothing
    made = [preprocess(input_array(d.read(np.arange(len(d))), name)) for d in (ready, again)]
    np.testing.assert_array_equal(*made)
    return made[0]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ["x", "image", "feats"])
@pytest.mark.parametrize(
    "shape, wanted",
    [
        ((5, 2, 50), ("N", 2, 50)),
        ((5, 2, 50), ("N", None, "T")),
        ((5, 25, 96), ("n", 25, 96)),
        ((5, 16), ("N", 16)),
        ((5, 16, 8, 8), ("N", 16, 8, 8)),
        ((5, 16, 8, 9), ("N", 16, "H", "W")),
        ((5, 16, 1, 50), ("N", 16, 1, 50)),
        ((5, 3, 50, 3), ("N", 3, None, None)),
        ((5, 4, 4, 4), ("N", 4, 4, 4)),
        ((5, 2, 3, 4, 6), ("N", 2, 3, 4, 6)),
        ((5, 7, 8, 9), ("N", None, None, None)),
    ],
)
def test_what_fits_exactly_is_taken_as_it_is(
    shape: tuple[int, ...], wanted: Shape, name: str, layout: AxisOrder
) -> None:
    array = numbered(*shape)
    np.testing.assert_array_equal(got(array, wanted, layout, name), array)


@pytest.mark.parametrize(
    "shape, wanted, layout, axes",
    [
        ((5, 8, 9, 16), ("N", 16, 8, 9), "NCHW", (0, 3, 1, 2)),
        ((5, 1, 50, 16), ("N", 16, 1, 50), "NCHW", (0, 3, 1, 2)),
        ((5, 32, 32, 3), ("N", 3, 32, 32), "NCHW", (0, 3, 1, 2)),
        ((5, 32, 32, 3), ("N", 3, None, None), "NCHW", (0, 3, 1, 2)),
        ((5, 32, 32, 3), (None,) * 4, "NCHW", (0, 3, 1, 2)),
        ((5, 16, 8, 9), ("N", 8, 9, 16), "NHWC", (0, 2, 3, 1)),
        ((5, 3, 32, 32), (None,) * 4, "NHWC", (0, 2, 3, 1)),
    ],
)
def test_images_of_the_other_order_are_turned(
    shape: tuple[int, ...], wanted: Shape, layout: AxisOrder, axes: tuple[int, ...]
) -> None:
    array = numbered(*shape)
    np.testing.assert_array_equal(got(array, wanted, layout), array.transpose(axes))


def test_images_without_channels_get_one_where_the_model_has_them() -> None:
    array = numbered(5, 28, 27)
    np.testing.assert_array_equal(got(array, ("N", 1, 28, 27)), array[:, None])
    np.testing.assert_array_equal(got(array, ("N", 28, 27, 1), "NHWC"), array[..., None])
    np.testing.assert_array_equal(got(array, ("N", 28, 27), name="image"), array)
    with pytest.raises(DataError, match=r"expected 3×28×27 per sample .*, got 1×28×27"):
        got(array, ("N", 3, 28, 27))


def test_an_order_that_is_said_holds() -> None:
    array = numbered(5, 4, 4, 4)
    np.testing.assert_array_equal(got(array, ("N", 4, 4, 4), given="NHWC"), array.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(got(array, ("N", 4, 4, 4), given="NCHW"), array)


@pytest.mark.parametrize("name", ["x", "images", "audio"])
def test_archives_keep_the_names_they_have(tmp_path: Path, name: str) -> None:
    array = numbered(6, 2, 50)
    np.savez(tmp_path / "d.npz", **{name: array, "y": np.arange(6)})
    dataset = fitted(open_dataset(tmp_path / "d.npz"), Source("input.1", ("N", 2, 50)), "NCHW")
    found = dataset.read(np.array([4]))
    np.testing.assert_array_equal(input_array(found, "input.1"), array[4:5])
    assert found["label"].tolist() == [4]


def test_parts_and_data_without_labels_are_fitted_too() -> None:
    whole = ArrayDataset({"x": numbered(6, 16, 8, 8), "label": np.arange(6)})
    source = Source("x", ("N", 16, 8, 8))
    part = fitted(Unlabelled(Subset(whole, np.array([5, 1]))), source, "NCHW")
    assert not part.labelled
    assert part.labels is None
    found = part.read(np.array([0]))
    assert list(found) == ["x"]
    np.testing.assert_array_equal(Preprocess()(found["x"]), numbered(6, 16, 8, 8)[5:])
    assert part.digest() != whole.digest()


@pytest.mark.parametrize("last", [4, 1])
@pytest.mark.parametrize("shape", [(2, 50), (16,), (3, 8, 8)])
def test_items_are_samples_or_batches_as_the_model_says(shape: tuple[int, ...], last: int) -> None:
    source = Source("x", ("N", *shape))
    batches = [{"x": numbered(count, *shape)} for count in (4, 4, last)]
    samples = [{"x": item} for batch in batches for item in batch["x"]]
    expected = np.concatenate([batch["x"] for batch in batches])
    for items in (batches, samples):
        dataset = fitted(open_dataset(items), source, "NCHW")
        assert len(dataset) == len(expected)
        made = Preprocess()(dataset.read(np.arange(len(dataset)))["x"])
        np.testing.assert_array_equal(made, expected)
