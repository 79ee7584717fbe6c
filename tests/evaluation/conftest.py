"""A classifier whose answers are known, and data for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxslim.data import ArrayDataset
from onnxslim.ir.graph import DType, Graph

CLASSES = 8


def linear(weights: np.ndarray, batch: int | str = "N", name: str = "image") -> Graph:
    """logits = flatten(x[N, 2, 2, 2]) · weights [8, classes]."""
    graph = Graph("linear")
    x = graph.add_input(name, DType.FLOAT, (batch, 2, 2, 2))
    w = graph.add_constant("w", weights.astype(np.float32))
    flat = graph.op("Flatten", x, name="flat", axis=1)
    out = graph.op("MatMul", flat, w, name="logits")
    graph.set_type(out, DType.FLOAT, (batch, weights.shape[1]))
    graph.add_output(out)
    return graph


@pytest.fixture
def make_model() -> Callable[..., Graph]:
    return linear


@pytest.fixture
def data() -> ArrayDataset:
    """101 one-hot "images" [2, 2, 2] scaled at random; the identity gives their position as class.

    The first 80 are labelled with it, the others with the next class.
    """
    rng = np.random.default_rng(0)
    place = rng.integers(0, CLASSES, 101)
    images = np.zeros((101, 8), np.float32)
    images[np.arange(101), place] = rng.uniform(1, 2, 101)
    labels = np.where(np.arange(101) < 80, place, (place + 1) % CLASSES)
    planes = images.reshape(101, 2, 2, 2).transpose(0, 2, 3, 1)
    return ArrayDataset({"image": planes, "label": labels}, layout="NHWC")
