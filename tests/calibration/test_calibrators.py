"""Calibrators: the table, and how one is chosen."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.calibration import CALIBRATORS, Calibrator, Extremes, MinMax, Range
from onnxslim.data import Preprocess
from onnxslim.data.dataset import ArrayDataset
from onnxslim.errors import OnnxSlimError
from onnxslim.ir.graph import Graph
from onnxslim.ir.statistics import Statistics
from onnxslim.recipe import dump_recipe, parse_recipe
from onnxslim.stages import Data, Quantize, RunContext


def quantize_stage(**options: object) -> Quantize:
    recipe = parse_recipe({"model": Graph(), "data": {}, "stages": [{"quantize": options}]})
    assert "calibrator:\n      name: min_max" in dump_recipe(recipe)
    stage = recipe.stages[0].stage
    assert isinstance(stage, Quantize)
    return stage


def test_every_calibrator_says_what_it_is_and_what_it_takes() -> None:
    assert len({cls.name for cls in CALIBRATORS}) == len(CALIBRATORS)
    for cls in CALIBRATORS:
        assert issubclass(cls, Calibrator)
        assert inspect.getdoc(cls)
        assert cls() == cls()  # usable without options, and a value


@pytest.mark.parametrize("options", [{}, {"calibrator": {}}, {"calibrator": {"name": "min_max"}}])
def test_a_recipe_names_a_calibrator(options: dict[str, object]) -> None:
    assert quantize_stage(**options).calibrator == MinMax()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "min_mux"}, r"quantize.calibrator.name: expected 'min_max'.*did you mean 'min_max'"),
        ({"percent": 99.0}, r"unknown key 'percent' in stages.0.quantize.calibrator; known keys: name"),
        ("min_max", r"quantize.calibrator: expected keys and values, got text 'min_max'"),
    ],
)
def test_wrong_ones_are_named(given: object, message: str) -> None:
    with pytest.raises(OnnxSlimError, match=message):
        quantize_stage(calibrator=given)


def test_min_max_is_the_range_as_it_was_seen() -> None:
    seen = Statistics({Range("x"): Extremes(-2.5, 7)})
    assert MinMax().range("x", 4, seen) == Extremes(-2.5, 7)


def test_the_scales_of_min_max_are_the_range_by_the_steps_of_the_grid() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    dataset, preprocess = ArrayDataset({"image": images}), Preprocess((100.0,), (50.0,))
    context = RunContext(Path(), Data({"train": lambda: dataset}, preprocess))
    for bits in (8, 6):
        stage = quantize_stage(samples=40, activation_bits=bits)
        graph = stage.run(small_cnn((4,), classes=3), context).graph
        node = graph.producer(graph.value(f"{graph.inputs[0].name}.quantized"))
        assert node is not None
        scale = graph.constant_of(graph.operand(node, 1))
        seen = (images.astype(np.float32) - 100) / 50
        assert scale == pytest.approx((seen.max() - seen.min()) / (2**bits - 1), rel=1e-6)
