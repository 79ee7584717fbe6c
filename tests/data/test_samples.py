"""A data set as the one input of a model takes it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.data import ArrayDataset, Preprocess, Samples
from onnxslim.errors import DataError
from onnxslim.ir.graph import Dim, DType, Graph

PREPROCESS = Preprocess((100.0,), (50.0,))


@pytest.fixture
def dataset() -> ArrayDataset:
    """Sample i is full of i, and its label is i % 6."""
    images = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None, None], (20, 8, 8, 1))
    return ArrayDataset({"image": images, "label": np.arange(20) % 6})


def model(*sizes: Dim) -> Graph:
    graph = small_cnn((4,), classes=6)
    graph.set_type(graph.inputs[0], DType.FLOAT, ("N", 1, *sizes))
    return graph


def test_the_data_size_what_the_model_leaves_free(dataset: ArrayDataset) -> None:
    assert Samples.of(model("h", None), dataset, PREPROCESS).sizes == {"image[2]": 8, "image[3]": 8}
    assert Samples.of(model(8, "w"), dataset, PREPROCESS).sizes == {"image[3]": 8}
    assert Samples.of(model(8, 8), dataset, PREPROCESS).sizes == {}


def test_samples_with_labels_are_those_of_the_images(dataset: ArrayDataset) -> None:
    found = list(Samples.of(model(8, 8), dataset, PREPROCESS).labelled(2, 6, seed=1))
    assert [len(labels) for _, labels in found] == [6, 6]
    numbers = [np.rint(feeds["image"][:, 0, 0, 0] * 50 + 100).astype(int) for feeds, _ in found]
    assert len(set(np.concatenate(numbers))) == 12  # each once
    for drawn, (_, labels) in zip(numbers, found):
        assert np.array_equal(drawn % 6, labels)


def test_samples_that_are_drawn_are_the_same_each_time(dataset: ArrayDataset) -> None:
    samples = Samples.of(model(8, 8), dataset, PREPROCESS)
    once, again = ([feeds["image"] for feeds in samples.drawn(7, 4, seed=2)] for _ in range(2))
    assert [len(batch) for batch in once] == [4, 3]
    for one, other in zip(once, again):
        assert np.array_equal(one, other)


def test_a_model_of_two_inputs_takes_no_samples(dataset: ArrayDataset) -> None:
    graph = model(8, 8)
    graph.add_input("mask", DType.FLOAT, ["N"])
    with pytest.raises(DataError, match="expected one input to feed images to, got 'image', 'mask'"):
        Samples.of(graph, dataset, PREPROCESS)
