"""Accuracy of models whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxslim.data import ArrayDataset, Preprocess, open_dataset
from onnxslim.errors import DataError, ModelError, ModelFormatError
from onnxslim.evaluation import Evaluation, evaluate
from onnxslim.ir.graph import DType, Graph, Role
from onnxslim.ir.onnx_io import to_bytes, write

Make = Callable[..., Graph]
EYE = np.eye(8)


def test_known_accuracy(make_model: Make, data: ArrayDataset) -> None:
    found = evaluate(make_model(EYE), data, batch=16)
    assert (found.n, found.classes) == (101, 8)
    assert found.correct.tolist() == [True] * 80 + [False] * 21
    assert found.top1 == pytest.approx(80 / 101)
    assert found.top5 is not None
    assert 80 / 101 < found.top5 <= 1
    assert found.interval[0] < found.top1 < found.interval[1]
    assert found.interval_top5 is not None
    assert data.labels is not None
    assert np.array_equal(found.predictions[:80], data.labels[:80])
    assert found.seconds > 0


def same(a: Evaluation, b: Evaluation) -> bool:
    return np.array_equal(a.predictions, b.predictions) and np.array_equal(a.correct, b.correct)


def test_batch_threads_and_form_do_not_matter(make_model: Make, data: ArrayDataset, tmp_path: Path) -> None:
    weights = np.random.default_rng(1).standard_normal((8, 8))
    graph = make_model(weights)
    write(graph, tmp_path / "model.onnx")
    base = evaluate(graph, data)
    assert 0 < base.top1 < 1
    for batch, threads in ((1, 1), (7, 3), (1000, 2)):
        assert same(base, evaluate(graph, data, batch=batch, threads=threads))
    for form in (to_bytes(graph), tmp_path / "model.onnx", str(tmp_path / "model.onnx")):
        assert same(base, evaluate(form, data))
    assert base.agreement(base) == 1.0
    assert base.agreement(evaluate(make_model(EYE), data)) < 1.0


def test_fixed_batch_is_filled_up(make_model: Make, data: ArrayDataset) -> None:
    assert same(evaluate(make_model(EYE), data), evaluate(make_model(EYE, batch=16), data))
    assert same(evaluate(make_model(EYE), data), evaluate(make_model(EYE, batch=1), data))


def test_a_model_that_runs_in_batches_need_not_take_one_sample() -> None:
    """Of one sample the Squeeze takes the batch away, too, and the GRU gets two axes: 1.19.2 ends the process."""
    graph, rng = Graph("net"), np.random.default_rng(0)
    x = graph.add_input("image", DType.FLOAT, ["N", 1, 3, 8])
    steps = graph.op("Transpose", x, name="t", perm=[2, 1, 0, 3])
    weights = [
        graph.add_constant(name, rng.standard_normal(shape).astype(np.float32))
        for name, shape in {"w": (1, 15, 8), "r": (1, 15, 5)}.items()
    ]
    squeezed = graph.op("Squeeze", steps, name="s")
    last = graph.node_outputs(graph.add_node("GRU", [squeezed, *weights], [None, "last"], {"hidden_size": 5}))[1]
    assert last is not None
    graph.add_output(graph.op("Squeeze", last, graph.add_constant("first", np.array([0])), name="y"))
    images = rng.standard_normal((16, 1, 3, 8)).astype(np.float32)
    samples = ArrayDataset({"image": images, "label": np.arange(16) % 5}, layout="NCHW")
    assert evaluate(graph, samples, batch=8).n == 16
    assert evaluate(graph, samples).n == 16


def test_few_classes_have_no_top5(make_model: Make) -> None:
    data = ArrayDataset({"image": np.zeros((4, 2, 2, 2), np.uint8), "label": np.array([0, 1, 0, 1])}, layout="NHWC")
    found = evaluate(make_model(EYE[:, :2]), data)
    assert found.top1 == 0.5
    assert found.top5 is None
    assert found.interval_top5 is None


def test_input_of_another_name_and_normalisation(make_model: Make, data: ArrayDataset) -> None:
    found = evaluate(make_model(EYE, name="input.1"), data, Preprocess((0.5,), (4.0,)))
    assert same(found, evaluate(make_model(EYE), data))


def test_fake_quant_runs_expanded(make_model: Make, data: ArrayDataset) -> None:
    def quantised(scale: float) -> Graph:
        graph = make_model(EYE)
        s = graph.add_constant("x_scale", np.array(scale, np.float32), role=Role.SCALE)
        z = graph.add_constant("x_zero", np.array(0, np.float32), role=Role.SCALE)
        x = graph.value("image")
        uses = graph.uses(x)
        attributes = {"bits": 8, "signed": 1, "narrow": 0, "kind": "activation"}
        node = graph.add_node("FakeQuant", [x, s, z], ["image_q"], attributes, domain="onnxslim")
        graph.opsets["onnxslim"] = 1
        graph.set_type(graph.result(node), DType.FLOAT, x.shape)
        graph.replace_uses(x, graph.result(node), only=uses)
        return graph

    fine, coarse = quantised(2 / 127), quantised(10.0)
    assert same(evaluate(fine, data), evaluate(make_model(EYE), data))
    assert (evaluate(coarse, data).predictions == 0).all()  # everything rounds to zero
    assert any(n.op == "FakeQuant" for n in fine.nodes()), "the model given must not change"


def test_float16_models_are_fed_float16(data: ArrayDataset) -> None:
    graph = Graph("half")
    x = graph.add_input("image", DType.FLOAT16, ("N", 2, 2, 2))
    w = graph.add_constant("w", EYE.astype(np.float16))
    out = graph.op("MatMul", graph.op("Flatten", x, name="flat", axis=1), w, name="logits")
    graph.set_type(out, DType.FLOAT16, ("N", 8))
    graph.add_output(out)
    assert evaluate(graph, data).top1 == pytest.approx(80 / 101)


def test_progress(make_model: Make, data: ArrayDataset) -> None:
    seen: list[tuple[str, int, int]] = []
    evaluate(make_model(EYE), data, batch=50, progress=lambda *a: seen.append(a))
    assert seen == [("evaluating", 50, 101), ("evaluating", 100, 101), ("evaluating", 101, 101)]


def test_errors(make_model: Make, data: ArrayDataset, tmp_path: Path) -> None:
    graph = make_model(EYE)
    images = data.read(np.arange(5))["image"]
    with pytest.raises(DataError, match="needs labels"):
        evaluate(graph, ArrayDataset({"image": images}))
    with pytest.raises(DataError, match=r"model of 8 classes: label out of range at sample 0"):
        evaluate(graph, ArrayDataset({"image": images, "label": np.full(5, 8)}))
    with pytest.raises(DataError, match=r"expected 2×2×2 per sample.*got 3×4×4"):
        evaluate(graph, ArrayDataset({"image": np.zeros((5, 4, 4, 3)), "label": np.zeros(5, int)}))
    with pytest.raises(ModelFormatError, match="does not exist"):
        evaluate(tmp_path / "nothing.onnx", data)
    with pytest.raises(ModelError, match="no output 'probs', its outputs are logits"):
        evaluate(graph, data, output_name="probs")
    with pytest.raises(ModelError, match="an input 'pixels', got 'image'"):
        evaluate(graph, data, input_name="pixels")
    with pytest.raises(DataError, match="from 1 to"):
        evaluate(graph, data, batch=0)
    spatial = make_model(EYE)
    spatial.add_output(spatial.op("Relu", spatial.value("image"), name="relu"))
    with pytest.raises(ModelError, match=r"expected to hold scores \[2, classes\], got \[2, 2, 2, 2\]"):
        evaluate(spatial, data, output_name="relu")


@pytest.mark.slow
def test_mobilenet_has_its_published_accuracy(mobilenet: Path, shared: Path) -> None:
    data = open_dataset(shared / "data" / "cifar10.zip", "val")
    found = evaluate(mobilenet, data, Preprocess((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)))
    assert found.top1 == pytest.approx(0.8650, abs=2e-4)
