"""A training job small enough for a test: images whose class is the bright row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.data import ArrayDataset, Augment, Loader, Preprocess
from onnxslim.ir.graph import Graph
from onnxslim.stages.base import prepared
from onnxslim.stages.quantize import Quantize
from onnxslim.stages.train import mark_roles
from onnxslim.training.loop import Trainer
from onnxslim.training.optimizers import Sgd
from onnxslim.training.schedules import Cosine
from onnxslim.training.step import StepOptions
from passes.distill import CrossEntropy

CLASSES, SAMPLES, BATCH = 6, 96, 16


def bright_rows() -> ArrayDataset:
    rng = np.random.default_rng(3)
    labels = np.arange(SAMPLES) % CLASSES
    images = rng.integers(0, 100, (SAMPLES, 8, 8, 1)).astype(np.uint8)
    images[np.arange(SAMPLES), labels] += 150
    return ArrayDataset({"image": images, "label": labels})


def build_student(quantize: bool) -> Graph:
    graph = small_cnn((4, 8), classes=CLASSES)
    if quantize:
        graph = Quantize(target="x64", samples=32).apply(graph, bright_rows(), Preprocess((100.0,), (50.0,))).graph
    graph = prepared(graph)
    mark_roles(graph)
    return graph


def build_trainer(folder: Path | None = None, *, quantize: bool = True, **changes: Any) -> Trainer:
    loader = Loader(bright_rows(), "image", Preprocess((100.0,), (50.0,)), Augment(pad=1, crop=True), BATCH, seed=5)
    trainer = Trainer(
        build_student(quantize),
        loader,
        StepOptions((CrossEntropy(),)),
        Sgd(),
        Cosine(),
        epochs=4,
        workers=2,
        folder=folder,
    )
    return replace(trainer, **changes)


@pytest.fixture
def trainer() -> Callable[..., Trainer]:
    """trainer(folder=None, quantize=True, **fields): a Trainer of 4 epochs of 6 steps."""
    return build_trainer


@pytest.fixture
def student() -> Callable[[bool], Graph]:
    """student(quantize): its graph, roles marked."""
    return build_student
