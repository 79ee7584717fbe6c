"""Everything that `find_trainable` says is trained moves, decays or not as it says, survives an interruption bit by
bit, and comes back under its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import onnxslim
from onnxslim.data import ArrayDataset, Augment, Loader, Preprocess
from onnxslim.ir.graph import DType, Graph, Value
from onnxslim.ir.onnx_io import read, write
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.session import Session
from onnxslim.training.loop import Interrupted, Trainer
from onnxslim.training.optimizers import AdamW, Sgd
from onnxslim.training.parameters import updates_of
from onnxslim.training.rules import Optimise
from onnxslim.training.schedules import Cosine
from onnxslim.training.step import StepOptions
from passes.distill import CrossEntropy
from passes.quantize import ExpandFakeQuant

WORDS, LENGTH, WIDTH, CLASSES, SAMPLES = 9, 5, 6, 3, 48
DECAYED = {"embedding", "W", "R", "mixed", "head"}
PLAIN = {"positions", "B", "scale", "shift", "slope", "token", "bias"}


def sentences() -> Graph:
    """Numbers of words → embedding + positions → class token → LSTM → a norm written out → slopes → head."""
    graph, rng = Graph("sentences"), np.random.default_rng(4)

    def w(name: str, *shape: int) -> Value:
        return graph.add_constant(name, (rng.normal(size=shape) * 0.5).astype(np.float32))

    def c(name: str, array: object, dtype: type = np.float32) -> Value:
        return graph.add_constant(name, np.asarray(array, dtype))

    x = graph.op("Cast", graph.add_input("x", DType.FLOAT, ("n", LENGTH)), to=int(DType.INT64))
    rows = graph.op("Add", graph.op("Gather", w("embedding", WORDS, WIDTH), x), w("positions", 1, LENGTH, WIDTH))
    token = graph.op("Add", graph.op("ReduceMean", rows, c("one", [1], np.int64)), w("token", 1, 1, WIDTH))
    rows = graph.op("Transpose", graph.op("Concat", token, rows, axis=1), perm=[1, 0, 2])
    lstm = [w("W", 1, 4 * WIDTH, WIDTH), w("R", 1, 4 * WIDTH, WIDTH), w("B", 1, 8 * WIDTH)]
    made = graph.add_node("LSTM", [rows, *lstm], [None, "state"], {"hidden_size": WIDTH})
    y = graph.op("Squeeze", graph.result(made, 1), c("zero", [0], np.int64))
    y = graph.op("Sub", y, graph.op("ReduceMean", y, c("last", [-1], np.int64)))
    y = graph.op("Add", graph.op("Mul", y, w("scale", WIDTH)), w("shift", WIDTH))
    y = graph.op("PRelu", graph.op("Einsum", y, w("mixed", WIDTH, WIDTH), equation="ab,bc->ac"), w("slope", WIDTH))
    graph.add_output(graph.op("Add", graph.op("MatMul", y, w("head", WIDTH, CLASSES)), w("bias", CLASSES), name="y"))
    infer_shapes(graph)
    return graph


def words() -> ArrayDataset:
    rng = np.random.default_rng(5)
    x = rng.integers(0, WORDS, (SAMPLES, LENGTH))
    return ArrayDataset({"x": x.astype(np.float32), "label": x[:, 0] % CLASSES})


def trainer(folder: Path | None = None, **changes: object) -> Trainer:
    loader = Loader(words(), "x", Preprocess(), Augment(), 16, seed=1)
    made = Trainer(sentences(), loader, StepOptions((CrossEntropy(),)), AdamW(learning_rate=0.02), Cosine(),
                   epochs=3, workers=2, folder=folder)  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def arrays(graph: Graph) -> dict[str, np.ndarray]:
    return {v.name: np.array(v.array) for v in graph.initializers() if v.dtype is DType.FLOAT}


def test_weights_decay_and_biases_norms_and_positions_do_not() -> None:
    decays = {rule.value.owner: rule.decays for rule in updates_of(sentences()) if isinstance(rule, Optimise)}
    assert decays == {**dict.fromkeys(DECAYED, True), **dict.fromkeys(PLAIN, False)}


def test_decay_alone_moves_what_decays() -> None:
    """The learning rate of one step makes λ·w visible where the gradient is scaled down to nothing."""
    before = arrays(sentences())
    after = arrays(trainer(optimizer=Sgd(weight_decay=10.0, clip_norm=1e-12), epochs=1).run().graph)
    for name in DECAYED | PLAIN:
        shrunk = np.linalg.norm(after[name]) < 0.9 * np.linalg.norm(before[name])
        assert shrunk == (name in DECAYED), name


def test_everything_moves_and_is_learnt() -> None:
    before, result = arrays(sentences()), trainer(epochs=25, optimizer=AdamW(learning_rate=0.05)).run()
    after = arrays(result.graph)
    assert set(after) == set(before) == DECAYED | PLAIN
    for name, array in before.items():
        assert np.abs(after[name] - array).max() > 1e-3, name
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]


def test_interrupted_and_resumed_it_ends_bit_identical(tmp_path: Path) -> None:
    whole = trainer().run()

    def stop(label: str, done: int, total: int) -> None:
        broken._stop = done == 4

    broken = trainer(tmp_path)
    broken.progress = stop
    with pytest.raises(Interrupted):
        broken.run()
    resumed = trainer(tmp_path).run(resume=True)
    for name, array in arrays(whole.graph).items():
        assert arrays(resumed.graph)[name].tobytes() == array.tobytes(), name


def small_images() -> Graph:
    """A normalised image → convolution → scale, slopes and positions → convolution beside a skip → head."""
    graph, rng = Graph("images"), np.random.default_rng(6)

    def w(name: str, *shape: int, size: float = 0.3) -> Value:
        return graph.add_constant(name, (rng.normal(size=shape) * size).astype(np.float32))

    x = graph.op("Sub", graph.add_input("image", DType.FLOAT, ("n", 3, 8, 8)), w("mean", 3, 1, 1))
    x = graph.op("Conv", x, w("first", 8, 3, 3, 3), w("first_bias", 8), pads=[1] * 4)
    x = graph.op("PRelu", graph.op("Mul", x, w("layer_scale", 8, 1, 1, size=1)), w("slope", 8, 1, 1, size=0.1))
    x = graph.op("Add", x, w("positions", 1, 8, 8, 8))
    y = graph.op("Relu", graph.op("Conv", x, w("second", 8, 8, 3, 3, size=0.15), pads=[1] * 4))
    y = graph.op("Flatten", graph.op("GlobalAveragePool", graph.op("Add", x, y)))
    graph.add_output(graph.op("Add", graph.op("MatMul", y, w("head", 8, CLASSES)), w("bias", CLASSES), name="y"))
    infer_shapes(graph)
    return graph


@pytest.mark.parametrize("layout", ["plain", "lanes", "blocked"])
def test_quantised_training_ships_what_was_trained(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """compress: quantise, train, export; the model that is shipped computes what was trained."""
    monkeypatch.chdir(tmp_path)
    write(small_images(), tmp_path / "m.onnx")
    rng = np.random.default_rng(7)
    images = rng.integers(0, 255, (32, 8, 8, 3)).astype(np.uint8)
    data = {"train": {"image": images, "label": np.arange(32) % CLASSES}}
    train = {"epochs": 1, "batch": 32, "layout": layout, "optimizer": {"learning_rate": 0.01}}
    report = onnxslim.compress(
        {"model": "m.onnx", "data": data, "run": {"name": "r", "workers": 2},
         "stages": [{"quantize": {"samples": 32}}, {"train": train}, {"export": {}}]}
    )  # fmt: skip
    before, after = arrays(small_images()), arrays(read(tmp_path / "runs/r/stages/1.onnx"))
    moved = {name for name, array in before.items() if name in after and np.abs(after[name] - array).max() > 1e-6}
    assert moved == set(before) - {"mean", "first_bias"}  # a bias joins the batch norm that training restores
    assert ("'mean'", "the normalisation of an input, before the first layer") in report.stages[1].refused
    trained = read(tmp_path / "runs/r/stages/1.onnx")
    ExpandFakeQuant()(trained)
    feeds = {"image": images.transpose(0, 3, 1, 2).astype(np.float32) / 255}
    expected, shipped = (
        Session(graph, fuse_qdq=False).run(feeds)["y"] for graph in (trained, read(tmp_path / "runs/r/model.onnx"))
    )  # in float between the pairs, so that no CPU's kernels matter
    # Some steps of 1/255 of the range, where sums fall on the other side of a rounding.
    assert np.abs(expected - shipped).max() <= 0.03 * np.abs(expected).max()


def test_a_large_embedding_is_scattered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same training, whether rows are added up by a product or one by one."""
    from passes.gradient.rules import movement

    product = arrays(trainer(epochs=1).run().graph)
    monkeypatch.setattr(movement, "_LARGE_PRODUCT", 0)
    scattered = arrays(trainer(epochs=1).run().graph)
    for name, array in product.items():  # Adam divides by the gradient's size: rounding is seen where that is tiny
        np.testing.assert_allclose(scattered[name], array, rtol=1e-3, atol=1e-4, err_msg=name)
