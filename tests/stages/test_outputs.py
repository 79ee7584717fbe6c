"""What the losses read is found before training, refused where it cannot be logits, and said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxslim.builders import small_cnn
from onnxslim.data import ArrayDataset
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Graph
from onnxslim.stages import Train
from onnxslim.stages.base import Data, RunContext, prepared
from onnxslim.stages.outputs import output_notes, require_scores
from passes.distill import CrossEntropy, MeanSquare

IMAGES = {"image": np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype(np.float32)}


def ending_in(*ops: str, seed: int = 0, extra: bool = False) -> Graph:
    """A small network of three classes with ops behind its logits; "Sum" divides by the sum of a row."""
    graph = small_cnn((4,), classes=3, seed=seed)
    output = graph.outputs[0]
    graph.remove_output(output)
    value = output
    for op in ops:
        if op == "Sum":
            axes = graph.add_constant("axes", np.array([1]))
            value = graph.op("Div", value, graph.op("ReduceSum", value, axes, keepdims=1), name="y")
        else:
            value = graph.op(op, value, name="y")
    graph.set_type(value, output.dtype, output.shape)
    graph.add_output(value)
    if extra:
        second = graph.op("Relu", output, name="second")
        graph.set_type(second, output.dtype, output.shape)
        graph.add_output(second)
    return prepared(graph)


@pytest.mark.parametrize("ops", [("Abs", "Sum"), ("Softplus", "Sum"), ("Softmax", "Abs")])
def test_probabilities_of_an_unknown_kind_are_refused(ops: tuple[str, ...]) -> None:
    with pytest.raises(
        UnsupportedError, match=r"The teacher's output 'y.*' gives probabilities .* export the model with"
    ):
        require_scores(ending_in(*ops), IMAGES, "teacher")


@pytest.mark.parametrize("ops", [(), ("Softmax",), ("LogSoftmax",), ("Relu",), ("Exp", "Sum"), ("Abs",)])
def test_logits_a_softmax_and_other_scores_are_taken(ops: tuple[str, ...]) -> None:
    require_scores(ending_in(*ops), IMAGES, "model")


@pytest.mark.parametrize("role", ["model", "teacher"])
def test_a_recipe_is_refused_before_it_runs(role: str, tmp_path: Path) -> None:
    good, bad = ending_in(), ending_in("Abs", "Sum", seed=1)
    student, teacher = (bad, good) if role == "model" else (good, bad)
    arrays = {"image": np.transpose(IMAGES["image"], (0, 2, 3, 1)), "label": np.arange(8) % 3}
    context = RunContext(tmp_path, Data({"train": lambda: ArrayDataset(arrays)}), teacher=teacher)
    with pytest.raises(UnsupportedError, match=f"The {role}'s output"):
        Train(batch=4, distill={"soft_label": {}}).check(student, context)
    numbers = {"task_loss": {"weight": 0.0}, "distill": {"mean_square": {}}}
    Train(batch=4, **numbers).check(student, context)


def test_what_training_reads_is_said() -> None:
    assert output_notes(ending_in(), (CrossEntropy(),)) == ()
    soft, two = output_notes(ending_in("Softmax", extra=True), (MeanSquare(1.0, "teacher"),))[::-1]
    assert "'y' is a softmax: training works on what it reads, the logits 'logits'" in soft
    assert "2 outputs, and training follows the first alone, 'y': what only 'second' reads is not trained" in two
