"""Small networks and data for pruning: images whose class is the bright row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.data import ArrayDataset, Preprocess
from onnxslim.ir.graph import Graph
from onnxslim.stages.base import prepared

PREPROCESS = Preprocess((100.0,), (50.0,))


@pytest.fixture
def network() -> Callable[..., Graph]:
    """network(channels=…, **options): a small_cnn in the working opset."""

    def made(channels: tuple[int, ...] = (8, 16, 12), **options: bool) -> Graph:
        return prepared(small_cnn(channels, classes=6, **options))

    return made


@pytest.fixture
def dataset() -> ArrayDataset:
    """96 images [8, 8, 1] of six classes."""
    rng = np.random.default_rng(3)
    labels = np.arange(96) % 6
    images = rng.integers(0, 100, (96, 8, 8, 1)).astype(np.uint8)
    images[np.arange(96), labels] += 150
    return ArrayDataset({"image": images, "label": labels})
