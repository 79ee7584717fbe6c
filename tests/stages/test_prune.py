"""The prune stage: targets met, what came before it kept, and every wrong option found before anything is cut."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from onnxslim.analysis.cost import cost
from onnxslim.builders import small_cnn
from onnxslim.data import Preprocess
from onnxslim.data.dataset import ArrayDataset
from onnxslim.errors import DataError, OptionError, UnsupportedError
from onnxslim.evaluation import evaluate, open_session
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import to_bytes
from onnxslim.options import made_of
from onnxslim.pruning.sensitivity import Sensitivities
from onnxslim.stages import Data, Prune, Quantize, RunContext, Train

PREPROCESS = Preprocess((100.0,), (50.0,))


@pytest.fixture(scope="module")
def dataset() -> ArrayDataset:
    rng = np.random.default_rng(3)
    labels = np.arange(240) % 6
    images = rng.integers(0, 100, (240, 8, 8, 1)).astype(np.uint8)
    images[np.arange(240), labels] += 150
    return ArrayDataset({"image": images, "label": labels})


def context(dataset: ArrayDataset, folder: Path, *roles: str, **more: object) -> RunContext:
    data = Data({role: lambda: dataset for role in roles}, PREPROCESS)
    return RunContext(folder, data, workers=2, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(dataset: ArrayDataset, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """A network that tells the six classes apart, batch norm folded."""
    stage = Train(epochs=4, batch=16, layout="plain")
    folder = tmp_path_factory.mktemp("trained")
    graph = stage.run(small_cnn((8, 16), classes=6, batchnorm=False), context(dataset, folder, "train")).graph
    assert evaluate(graph, dataset, PREPROCESS).top1 > 0.9
    return graph


@pytest.mark.parametrize("strategy", ["uniform", "global", "sensitivity"])
@pytest.mark.parametrize("criterion", ["l1", "taylor", "bn_scale"])
def test_half_of_the_macs(trained: Graph, dataset: ArrayDataset, tmp_path: Path, strategy: str, criterion: str) -> None:
    before = to_bytes(trained)
    stage = Prune(macs=0.5, multiple=1, strategy=strategy, criterion=criterion, ratios=[0.3, 0.6], samples=64)
    result = stage.run(trained, context(dataset, tmp_path, "train", "val"))
    assert to_bytes(trained) == before
    left = cost(result.graph).macs / cost(trained).macs
    assert 0.4 <= left <= 0.5
    assert result.summary["macs_left"] == pytest.approx(left, abs=1e-3)
    assert not any(n.op == "BatchNormalization" for n in result.graph.nodes())  # folded back
    assert evaluate(result.graph, dataset, PREPROCESS).top1 > 0.4  # chance is 0.17


def test_batch_norm_measured_anew_saves_accuracy(trained: Graph, dataset: ArrayDataset, tmp_path: Path) -> None:
    found = []
    for restore in (True, False):
        stage = Prune(macs=0.4, multiple=1, restore_batchnorm=restore)
        graph = stage.run(trained, context(dataset, tmp_path, "train")).graph
        found.append(evaluate(graph, dataset, PREPROCESS).top1)
    assert found[0] >= found[1]


def test_masked_is_the_same_function_with_the_shapes_kept(
    trained: Graph, dataset: ArrayDataset, tmp_path: Path
) -> None:
    images = PREPROCESS(dataset.read(np.arange(16))["image"])
    outputs = []
    for mode in ("physical", "masked"):
        graph = Prune(macs=0.5, multiple=1, mode=mode).run(trained, context(dataset, tmp_path)).graph
        outputs.append(open_session(graph).run({"image": images})["logits"])
        if mode == "masked":
            assert cost(graph).macs == cost(trained).macs
    assert np.abs(outputs[0] - outputs[1]).max() <= 1e-5 * np.abs(outputs[0]).max()


def test_fractions_are_of_the_model_as_the_run_began(trained: Graph, dataset: ArrayDataset, tmp_path: Path) -> None:
    once = Prune(macs=0.6, multiple=1).run(trained, context(dataset, tmp_path)).graph
    twice = Prune(macs=0.5, multiple=1).run(once, context(dataset, tmp_path, whole=trained)).graph
    assert 0.42 <= cost(twice).macs / cost(trained).macs <= 0.5


def test_a_latency_target_is_measured(trained: Graph, dataset: ArrayDataset, tmp_path: Path) -> None:
    wide = small_cnn((64, 128), classes=6, batchnorm=False)
    result = Prune(latency=0.8, multiple=8).run(wide, context(dataset, tmp_path))
    assert result.summary["macs_left"] < 1
    assert 0 < result.summary["latency_left"] <= 0.8
    with pytest.raises(UnsupportedError, match=r"latency: at most 0.001 of .* let go, 0\.\d+ was measured"):
        Prune(latency=0.001, multiple=8).run(wide, context(dataset, tmp_path))


def test_multiples_scope_and_limits(trained: Graph, dataset: ArrayDataset, tmp_path: Path) -> None:
    graph = small_cnn((16, 32, 32), classes=6)
    stage = Prune(params=0.6, multiple=8, exclude=["conv1"], limits={"conv2*": 0.25})
    groups = {g["name"]: g["channels"] for g in stage.run(graph, context(dataset, tmp_path)).summary["groups"]}
    assert groups["conv2"][1] >= 24
    assert "conv1" not in groups
    assert all(left % 8 == 0 for _, left in groups.values())


def test_a_metric_of_the_users_own(
    trained: Graph, dataset: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_metric_of_pruning.py").write_text(
        "def weights(graph, dataset, preprocess):\n    return float(sum(v.array.size for v in graph.initializers()))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    stage = Prune(macs=0.5, multiple=1, strategy="sensitivity", metric="my_metric_of_pruning:weights", ratios=[0.5])
    stage.run(trained, context(dataset, tmp_path, "train", "val"))
    found = Sensitivities.load(tmp_path / "stage-sensitivities.json")
    assert found.baseline > 100
    assert all(0 < loss < 1 for points in found.losses.values() for loss in points.values())


def test_sensitivities_are_reused_and_another_models_are_refused(
    trained: Graph, dataset: ArrayDataset, tmp_path: Path
) -> None:
    path = tmp_path / "s.json"
    stage = Prune(macs=0.5, multiple=1, strategy="sensitivity", sensitivities=str(path), ratios=[0.5], samples=32)
    where = context(dataset, tmp_path, "train", "val")
    stage.run(trained, where)
    stamp = path.read_bytes()
    stage.run(trained, where)
    assert path.read_bytes() == stamp
    other = stage.run(trained, where).graph
    with pytest.raises(DataError, match="another model"):
        stage.run(other, where)
    assert path.read_bytes() == stamp


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, OptionError, "at least one of macs, params, bytes, latency"),
        ({"macs": 0.001}, UnsupportedError, "cannot be reached: within these limits between"),
        ({"macs": 0.5, "scope": ["konv1"]}, OptionError, "'konv1' matches no channel group; near names: .*conv1"),
        ({"macs": 0.5, "exclude": ["*"]}, OptionError, "no channel group is left"),
        ({"macs": 0.5, "scope": ["head"]}, OptionError, "'logits' is an output of the graph"),
        ({"macs": 0.5, "limits": {"nothing": 0.5}}, OptionError, "limits: 'nothing' matches no channel group"),
        ({"macs": 0.5, "strategy": "sensitivity"}, OptionError, "data.val: is needed"),
        ({"macs": 0.5, "strategy": "sensitivity", "metric": "nowhere:f"}, OptionError, "cannot import 'nowhere'"),
        ({"macs": 0.5, "strategy": "sensitivity", "metric": "f"}, OptionError, "package.module:function"),
        ({"macs": 0.5, "strategy": "sensitivity", "metric": "json:f"}, OptionError, "no function 'f'"),
    ],
)
def test_what_is_wrong_is_found_by_the_check(
    dataset: ArrayDataset, tmp_path: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        made_of(Prune, options).check(small_cnn((8, 16), classes=6), context(dataset, tmp_path, "train"))
    assert not list(tmp_path.iterdir())


def test_an_untrained_model_is_refused(dataset: ArrayDataset, tmp_path: Path) -> None:
    stage = Prune(macs=0.5, strategy="sensitivity", samples=32)
    with pytest.raises(DataError, match="near chance"):
        stage.run(small_cnn((8,), classes=6), context(dataset, tmp_path, "train", "val"))
    assert not list(tmp_path.iterdir())


def test_taylor_without_labels(tmp_path: Path) -> None:
    images = ArrayDataset({"image": np.zeros((8, 8, 8, 1), np.uint8)})
    with pytest.raises(OptionError, match="taylor needs labels"):
        Prune(macs=0.5, criterion="taylor").check(small_cnn((8,), classes=6), context(images, tmp_path, "train"))


@pytest.mark.parametrize("criterion", ["l1", "taylor"])
@pytest.mark.parametrize("restore", [True, False])
def test_a_cut_behind_quantize(
    trained: Graph, dataset: ArrayDataset, tmp_path: Path, criterion: str, restore: bool
) -> None:
    where = context(dataset, tmp_path, "train", "val")
    quantized = Quantize(samples=64).run(trained, where).graph
    stage = Prune(macs=0.6, multiple=1, criterion=criterion, restore_batchnorm=restore, samples=64)
    stage.check(quantized, where)
    cut = stage.run(quantized, where).graph
    assert sum(n.op == "FakeQuant" for n in cut.nodes()) == sum(n.op == "FakeQuant" for n in quantized.nodes())
    assert evaluate(cut, dataset, PREPROCESS).top1 > 0.4


def test_sensitivities_under_another_preprocessing_are_refused(
    trained: Graph, dataset: ArrayDataset, tmp_path: Path
) -> None:
    stage = Prune(macs=0.5, multiple=1, strategy="sensitivity", ratios=[0.5], samples=32)
    stage.run(trained, context(dataset, tmp_path, "train", "val"))
    other = Data({role: lambda: dataset for role in ("train", "val")}, Preprocess((90.0,), (50.0,)))
    with pytest.raises(DataError, match="measured with another preprocess: expected mean"):
        stage.run(trained, RunContext(tmp_path, other))


def test_numbers_that_are_none_in_the_data_are_an_error(trained: Graph, tmp_path: Path) -> None:
    images = np.zeros((16, 8, 8, 1), np.float32)
    images[3, 0, 0, 0] = np.nan
    broken = ArrayDataset({"image": images, "label": np.arange(16) % 6})
    for criterion in ("l1", "taylor"):
        with pytest.raises(DataError, match="The data hold NaN or infinity: sample 3 for input 'image'"):
            Prune(macs=0.5, multiple=1, criterion=criterion).run(trained, context(broken, tmp_path, "train"))


def test_taylor_takes_few_images_too(trained: Graph, dataset: ArrayDataset, tmp_path: Path) -> None:
    few = ArrayDataset(dataset.read(np.arange(20)))
    result = Prune(macs=0.5, multiple=1, criterion="taylor").run(trained, context(few, tmp_path, "train"))
    assert result.summary["macs_left"] <= 0.5


def test_taylor_reads_as_many_images_as_it_is_told(
    trained: Graph, dataset: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 a batch: none is read for a second batch that nothing asks for."""
    seen: list[int] = []
    plain = ArrayDataset.read

    def counting(self: ArrayDataset, indices: np.ndarray) -> dict[str, np.ndarray]:
        seen.extend(indices.tolist())
        return plain(self, indices)

    stage = Prune(macs=0.5, multiple=1, criterion="taylor", samples=64, restore_batchnorm=False)
    stage.check(trained, context(dataset, tmp_path, "train"))
    monkeypatch.setattr(ArrayDataset, "read", counting)
    stage.plan(trained, context(dataset, tmp_path, "train"))
    assert len(seen) == 64


def test_labels_out_of_range_are_an_error_for_taylor(trained: Graph, tmp_path: Path) -> None:
    wrong = ArrayDataset({"image": np.zeros((16, 8, 8, 1), np.uint8), "label": np.arange(16) + 90})
    with pytest.raises(DataError, match="Labels for a model of 6 classes"):
        Prune(macs=0.5, criterion="taylor").check(trained, context(wrong, tmp_path, "train"))


def test_behind_a_cut_what_is_out_of_reach_is_not_known_in_advance(
    trained: Graph, dataset: ArrayDataset, tmp_path: Path
) -> None:
    stage = Prune(macs=0.1, multiple=1, max_ratio=0.4)
    with pytest.raises(UnsupportedError, match="cannot be reached"):
        stage.check(trained, context(dataset, tmp_path, "train"))
    stage.check(trained, context(dataset, tmp_path, "train", foreseen=False))
