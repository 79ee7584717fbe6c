"""Tensors of a model may be called anything: the run is the same, and the names come out again."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.data import ArrayDataset, Augment, Loader, Preprocess
from onnxslim.errors import CheckpointError, OptionError, TrainingError
from onnxslim.ir.graph import DType, Graph, Value
from onnxslim.ir.onnx_io import read, write
from onnxslim.ir.shapes import infer_shapes
from onnxslim.pruning.taylor import gradient_products
from onnxslim.run import compress
from onnxslim.runtime.session import Session
from onnxslim.stages.quantize import Quantize
from onnxslim.stages.train import mark_roles
from onnxslim.training.loop import Trainer
from onnxslim.training.optimizers import AdamW, Sgd
from onnxslim.training.ports import STATE, Kind, Port
from onnxslim.training.schedules import Cosine
from onnxslim.training.state import State
from onnxslim.training.step import StepOptions, build_step
from passes.distill import CrossEntropy, SoftLabel

PLAIN = ("x", "k", "b", "gamma", "beta", "mean", "var", "w", "conv", "norm", "relu", "pool", "flat", "y")
OWN = (
    "label", "loss", "correct", "lr", "step", "factor", "grad_norm", "axes", "rows/decayed", "rows/undecayed",
    "rows/mean", "w0/grad.k", "w1/grad.rows/decayed", "k.next", "k.momentum", "k.exp_avg", "b.momentum", "loss.weight",
    "loss.cross_entropy", "loss.soft_label", "teacher.y", "teacher.x", "teacher.label", "grad.k", "grad.w", "grad/one",
    "observed.x.range", "batch_mean.mean", "batch_var.mean", "const/0.9", "const/1.0", "op/k/decay", "user/label/",
    "user/label", "user/user/label//", "k_grad", "loss_grad", "cross_entropy/classes", "observed/axis", "weights",
    "k.scale", "k.quantized", "k.fake_quant", "x.range", "k.scale/abs", "correction/0", "ints/0_2", "grad", "rows", "",
)  # fmt: skip


def network(names: Mapping[str, str]) -> Graph:
    """Convolution → batch norm → ReLU → mean → matrix product, every tensor called as `names` says."""
    graph, rng = Graph("net"), np.random.default_rng(2)

    def c(name: str, *shape: int, low: float = -0.5) -> Value:
        return graph.add_constant(names[name], rng.uniform(low, 1, shape).astype(np.float32))

    def op(op: str, name: str, *inputs: Value, **attributes: object) -> Value:
        made = graph.add_node(op, inputs, [names[name]], attributes, name=f"the_{name}")
        return graph.result(made)

    x = graph.add_input(names["x"], DType.FLOAT, ("n", 1, 4, 4))
    x = op("Conv", "conv", x, c("k", 4, 1, 3, 3), c("b", 4))
    x = op("BatchNormalization", "norm", x, c("gamma", 4), c("beta", 4), c("mean", 4), c("var", 4, low=0.5))
    x = op("Flatten", "flat", op("GlobalAveragePool", "pool", op("Relu", "relu", x)))
    graph.add_output(op("MatMul", "y", x, c("w", 4, 3)))
    infer_shapes(graph)
    return graph


def images() -> ArrayDataset:
    rng = np.random.default_rng(3)
    return ArrayDataset({"image": rng.integers(0, 255, (16, 4, 4, 1)).astype(np.uint8), "label": np.arange(16) % 3})


def student_of(names: Mapping[str, str], quantize: bool) -> Graph:
    graph = network(names)
    if quantize:
        graph = Quantize(target="x64", samples=8).apply(graph, images(), Preprocess()).graph
    mark_roles(graph)
    return graph


def trainer(
    names: Mapping[str, str], folder: Path | None = None, *, quantize: bool = False, adam: bool = False
) -> Trainer:
    optimizer = AdamW(clip_norm=1.0) if adam else Sgd(clip_norm=1.0)
    loader = Loader(images(), names["x"], Preprocess(), Augment(), 8, seed=1)
    options = StepOptions((CrossEntropy(), SoftLabel(0.5)))
    return Trainer(student_of(names, quantize), loader, options, optimizer, Cosine(), epochs=1, workers=2,
                   teacher=network(names), folder=folder)  # fmt: skip


def mapped(given: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(PLAIN, given))


def trained(made: Trainer) -> tuple[dict[str, bytes], dict[str, object]]:
    result = made.run()
    drop = ("seconds", "images_per_second", "data_wait")
    arrays = {v.name: np.array(v.array).tobytes() for v in result.graph.initializers()}
    return arrays, {k: v for k, v in result.history[0].items() if k not in drop}


@pytest.mark.parametrize(("quantize", "adam"), [(False, False), (True, True)], ids=["float", "qat"])
def test_the_run_is_the_same_whatever_tensors_are_called(quantize: bool, adam: bool) -> None:
    expected, history = trained(trainer(mapped(PLAIN), quantize=quantize, adam=adam))

    @settings(max_examples=5, deadline=None, derandomize=True)
    @given(st.permutations([name for name in OWN if name]))
    def check(names: list[str]) -> None:
        called = mapped(tuple(names))
        found, record = trained(trainer(called, quantize=quantize, adam=adam))
        assert record == history
        for plain, name in called.items():
            if plain in expected:
                assert found[name] == expected[plain], (plain, name)

    check()


@pytest.mark.parametrize("place", ["x", "k"])
def test_each_own_name_at_an_input_and_a_weight(place: str) -> None:
    expected, history = trained(trainer(mapped(PLAIN)))
    for name in ("label", "loss", "correct", "lr", "step", "rows/decayed", "k.next", "w0/grad.rows/decayed"):
        called = {**mapped(PLAIN), place: name}
        found, record = trained(trainer(called))
        assert record == history, name
        assert {called[plain]: array for plain, array in expected.items()} == found, name


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(OWN), st.text(max_size=12)), unique=True, max_size=12), st.data())
def test_ports_are_written_unambiguously(names: list[str], data: st.DataObject) -> None:
    """Whatever tensors, moments and a loss's parameters are called: keys differ, and each is read back as it was."""
    parts = st.sampled_from(["", "momentum", "exp_avg", ":", "1:a", "moment:0::parameter"])
    ports = [Port(kind, name, data.draw(parts) if kind is Kind.LOSS_PARAMETER else "")
             for name in names for kind in STATE if kind is not Kind.MOMENT]  # fmt: skip
    ports += [port.moment(name) for port in ports for name in ("momentum", "exp_avg", ":")]
    assert len({port.key for port in ports}) == len(ports)
    assert [Port.from_key(port.key) for port in ports] == ports


@pytest.mark.parametrize("key", ["", "w", "conv.weight", "w.momentum", "label:0::w", "parameter:9:x", "moment:1:m:w"])
def test_other_texts_are_no_ports(key: str) -> None:
    with pytest.raises(CheckpointError, match="names no array of a training state"):
        Port.from_key(key)


def test_errors_say_the_models_names() -> None:
    called = {**mapped(PLAIN), "x": "label", "k": "loss", "conv": "correct", "y": "grad.w"}
    moment = State({Port(Kind.PARAMETER, "loss").moment("exp_avg"): np.zeros(3, np.float32)})
    what = r"for the moment 'exp_avg' of parameter 'loss' it has shape \(3,\), this run none"
    with pytest.raises(CheckpointError, match=what):
        moment.check_like(State({}), "That state")
    broken = trainer(called)
    broken.student.set_array(broken.student.value("loss"), np.full((4, 1, 3, 3), np.nan, np.float32))
    with pytest.raises(TrainingError, match=r"the parameter 'loss', of the training state, is NaN"):
        broken.run()
    teacher = network(called)
    teacher.set_array(teacher.value("w"), np.ones((4, 5), np.float32))
    teacher.clear_shape(teacher.outputs[0])
    infer_shapes(teacher)
    with pytest.raises(OptionError, match=r"output 'grad.w' has the shape .*, but the student's 'grad.w' has"):
        build_step(student_of(called, quantize=False), 8, StepOptions((SoftLabel(),), labelled=False), teacher)


def test_taylor_finds_its_products() -> None:
    called = {**mapped(PLAIN), "x": "label", "k": "loss", "w": "k.momentum"}
    rng = np.random.default_rng(0)
    feeds = rng.normal(size=(4, 1, 4, 4)).astype(np.float32), np.arange(4) % 3
    plain = gradient_products(network(mapped(PLAIN)), [({"x": feeds[0]}, feeds[1])], 4, 1)
    found = gradient_products(network(called), [({"label": feeds[0]}, feeds[1])], 4, 1)
    for name, product in plain[0].items():
        assert np.array_equal(found[0][called[name]], product), name


def test_a_whole_job_with_the_names_that_training_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantised, trained towards a teacher, interrupted, resumed and exported: it ships what any other names ship."""
    monkeypatch.chdir(tmp_path)
    odd = ("label", "loss", "correct", "lr", "step", "w0/x", "rows/a", "a.next", "factor", "loss.x", "1/grad", "op/w",
           "grad.w", "teacher.y")  # fmt: skip
    found = {}
    for run, names in (("plain", mapped(PLAIN)), ("odd", mapped(odd))):
        write(network(names), tmp_path / f"{run}.onnx")
        images = np.random.default_rng(3).integers(0, 255, (32, 4, 4, 1)).astype(np.uint8)
        train = {"epochs": 2, "batch": 8, "views": 2, "distill": {}, "optimizer": {"clip_norm": 1.0}, "layout": "plain"}
        recipe = {
            "model": f"{run}.onnx", "teacher": f"{run}.onnx", "run": {"name": run, "workers": 2},
            "data": {"train": {"image": images, "label": np.arange(32) % 3}},
            "stages": [{"quantize": {"samples": 8}}, {"train": train}, {"export": {"ort": False}}],
            "evaluate": {"latency_repeats": 0},
        }  # fmt: skip

        def stop(label: str, done: int, total: int) -> None:
            if (label, done) == ("1-train", 5):
                os.kill(os.getpid(), signal.SIGINT)

        if run == "odd":
            with pytest.raises(KeyboardInterrupt):
                compress(recipe, progress=stop)
        compress(recipe, resume=run == "odd")
        feeds = {names["x"]: images.transpose(0, 3, 1, 2).astype(np.float32) / 255}
        (found[run],) = Session(read(tmp_path / "runs" / run / "model.onnx"), fuse_qdq=False).run(feeds).items()
        trained = read(tmp_path / "runs" / run / "stages" / "1.onnx")
        assert {names[name] for name in ("x", "k", "w", "y")} <= {value.name for value in trained.values()}
    assert (found["plain"][0], found["odd"][0]) == ("y", "teacher.y")
    np.testing.assert_array_equal(found["odd"][1], found["plain"][1])
