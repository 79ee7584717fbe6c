"""Pruning without a run, and as a stage among others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxslim
import onnxslim.recipe
from onnxslim.analysis.cost import cost
from onnxslim.builders import small_cnn
from onnxslim.data import Preprocess
from onnxslim.errors import ModelError, OptionError, RecipeError, UnsupportedError, VerifyError
from onnxslim.evaluation import open_session
from onnxslim.ir.graph import DType, Graph, Role
from onnxslim.ir.onnx_io import from_proto, read, to_bytes, write
from onnxslim.ir.rewrite import Context, Outcome, Pass
from onnxslim.stages import Prune
from onnxslim.stages.preprocessing import noted_preprocess
from passes.prune import CutChannels
from passes.simplify import FoldBatchnorm, RestoreBatchnorm

DATA = {"train": {"path": "data.npz", "split": "train"}, "normalize": {"mean": [100.0], "std": [50.0]}}


def test_prune_from_a_file(job: Path) -> None:
    found = onnxslim.prune("student.onnx", DATA, macs=0.5, multiple=1)
    assert 0.4 <= found.plan.after.macs / found.plan.before.macs <= 0.5
    assert cost(found.graph).macs == found.plan.after.macs
    write(found.graph, job / "half.onnx")
    again = read(job / "half.onnx")
    images = np.zeros((2, 1, 8, 8), np.float32)
    assert open_session(again).run({"image": images})["logits"].shape == (2, 6)


def test_a_plan_cuts_nothing_and_is_what_prune_does(job: Path) -> None:
    graph = read("student.onnx")
    before = to_bytes(graph)
    plan = onnxslim.plan_pruning(graph, macs=0.5, multiple=1)
    assert to_bytes(graph) == before
    found = onnxslim.prune(graph, macs=0.5, multiple=1)
    assert found.plan.cuts == plan.cuts
    assert found.plan.after == plan.after


def test_sensitivity_is_written_and_used(job: Path) -> None:
    data = {**DATA, "val": {"path": "data.npz", "split": "train"}}
    # Untrained models are near chance: a metric of one's own has no such guard.
    (job / "a_metric_for_run_pruning.py").write_text("def one(graph, dataset, preprocess):\n    return 1.0\n")
    options = {"metric": "a_metric_for_run_pruning:one", "ratios": [0.5], "samples": 16}
    found = onnxslim.sensitivity("student.onnx", data, "s.json", **options)
    assert set(found.metrics) == {"conv1", "conv2"}
    assert found.pinned == {"head": "'logits' is an output of the graph"}
    stamp = (job / "s.json").read_bytes()
    options |= {"strategy": "sensitivity", "sensitivities": "s.json", "macs": 0.6, "multiple": 1}
    pruned = onnxslim.prune("student.onnx", data, **options)
    assert pruned.plan.after.macs <= 0.6 * pruned.plan.before.macs
    assert (job / "s.json").read_bytes() == stamp


def test_options_are_checked_like_a_recipes(job: Path) -> None:
    with pytest.raises(OptionError, match="^prune: unknown option 'mac'; did you mean 'macs'"):
        onnxslim.prune("student.onnx", mac=0.5)
    with pytest.raises(OptionError, match="at least one of"):
        onnxslim.prune("student.onnx")
    with pytest.raises(UnsupportedError, match="cannot be reached"):
        onnxslim.plan_pruning("student.onnx", macs=0.01)


RECIPE = """\
model: student.onnx
teacher: teacher.onnx
data:
  train: data.npz
  val: data.npz
  normalize: {mean: [100], std: [50]}
run: {name: pruned, workers: 1}
stages:
  - prune: {macs: 0.8, multiple: 1}
  - train: {epochs: 1, batch: 16, distill: {soft_label: {weight: 0.5}}, layout: plain}
  - prune: {macs: 0.5, multiple: 1, criterion: taylor}
  - quantize: {samples: 32}
  - train: {epochs: 1, batch: 16, layout: plain}
  - export:
evaluate: {latency_repeats: 2}
"""


def test_prune_train_prune_quantize_train_export(job: Path) -> None:
    """Every stage takes what the one before gives, with no special case; fractions are of the run's model."""
    (job / "p.yaml").write_text(RECIPE)
    report = onnxslim.compress("p.yaml")
    macs = [s.summary["after"]["macs"] for s in report.stages if s.kind == "prune"]
    whole = cost(read("student.onnx")).macs
    assert [s.summary["macs_left"] for s in report.stages if s.kind == "prune"] == [round(m / whole, 4) for m in macs]
    assert macs[0] <= 0.8 * whole
    assert macs[1] <= 0.5 * whole
    assert report.rows[-1].bytes < report.rows[0].bytes
    model = read(job / "runs" / "pruned" / "model.onnx")
    assert not any(n.op == "FakeQuant" for n in model.nodes())
    stored = json.loads((job / "runs" / "pruned" / "report.json").read_text())
    assert stored["stages"][0]["summary"]["groups"][0]["name"] == "conv1"
    assert onnxslim.compress("p.yaml", resume=True) == report


def test_a_quantity_that_is_not_wanted_is_not_counted() -> None:
    """A free axis beside the batch: how many products there are is found where it matters."""
    graph = Graph("tokens")
    x = graph.add_input("x", DType.FLOAT, ("n", "t", 8))
    rng = np.random.default_rng(0)
    w, v = (graph.add_constant("w", rng.random(s, np.float32), role=Role.PARAMETER) for s in ((8, 32), (32, 3)))
    graph.add_output(graph.op("MatMul", graph.op("Relu", graph.op("MatMul", x, w, name="a")), v, name="b"))
    counted = onnxslim.plan_pruning(graph, macs=0.5)
    assert counted.counted_at == "x [2, 224, 8]"
    assert 0.4 <= counted.left["macs"] <= 0.5
    plan = onnxslim.plan_pruning(graph, params=0.5)
    assert plan.counted_at is None
    assert set(plan.left) == {"params", "bytes"}
    assert 0.4 <= plan.left["params"] <= 0.5
    assert onnxslim.prune(graph, params=0.5).graph.value("w").static_shape == (8, 16)


def test_a_quantity_that_cannot_be_counted_is_no_target() -> None:
    """No op of a foreign domain is counted."""
    graph = Graph("odd")
    x = graph.add_input("x", DType.FLOAT, ("n", 8))
    w, v = (graph.add_constant("w", np.ones(s, np.float32), role=Role.PARAMETER) for s in ((32, 8), (3, 32)))
    y = graph.op("Relu", graph.op("FusedLinear", x, w, name="a", domain="com.example"), name="r")
    graph.add_output(graph.op("FusedLinear", y, v, name="b", domain="com.example"))
    with pytest.raises(UnsupportedError, match="no channels that a weight makes|none that can be counted"):
        onnxslim.plan_pruning(graph, macs=0.5)


def test_a_plan_by_sensitivity_leaves_no_file(job: Path) -> None:
    (job / "a_metric_of_plans.py").write_text("def one(graph, dataset, preprocess):\n    return 1.0\n")
    before = sorted(job.iterdir())
    data = {**DATA, "val": {"path": Path("data.npz"), "split": "train"}}
    options = {"metric": "a_metric_of_plans:one", "ratios": [0.5], "strategy": "sensitivity", "macs": 0.6}
    options |= {"multiple": 1, "samples": 16}
    onnxslim.plan_pruning("student.onnx", data, **options)
    assert [path for path in sorted(job.iterdir()) if path.name != "__pycache__"] == before
    onnxslim.plan_pruning("student.onnx", data, sensitivities=Path("s.json"), **options)
    assert (job / "s.json").exists()


def test_wrong_arguments_from_python(job: Path) -> None:
    with pytest.raises(OptionError, match="data: expected keys and values such as"):
        onnxslim.prune("student.onnx", "data.npz", macs=0.5)
    with pytest.raises(OptionError, match="sensitivity: unknown option 'macs'; it takes criterion"):
        onnxslim.sensitivity("student.onnx", DATA, macs=0.5)
    unlabelled = {"image": np.zeros((4, 8, 8, 1), np.uint8)}
    data = {**DATA, "train": unlabelled, "val": {"path": "data.npz", "split": "train"}}
    with pytest.raises(OptionError, match="criterion: taylor needs labels"):
        onnxslim.sensitivity("student.onnx", data, criterion="taylor")


def test_a_pruned_model_notes_its_preprocessing(job: Path) -> None:
    found = noted_preprocess(onnxslim.prune("student.onnx", DATA, macs=0.8, multiple=1).graph)
    assert found == Preprocess((100.0,), (50.0,))


def test_sensitivities_lie_beside_the_recipe(job: Path) -> None:
    (job / "deep").mkdir()
    (job / "deep" / "p.yaml").write_text(
        "model: ../student.onnx\nstages: [{prune: {macs: 0.5, sensitivities: s.json}}]\n"
    )
    stage = onnxslim.recipe.load_recipe(job / "deep" / "p.yaml").stages[0].stage
    assert isinstance(stage, Prune)
    assert stage.sensitivities == str((job / "deep" / "s.json").resolve())


def test_stages_behind_the_last_export_are_refused(job: Path) -> None:
    lines = RECIPE.splitlines(keepends=True)
    export = lines.index("  - export:\n")
    lines[export - 1], lines[export] = lines[export], lines[export - 1]
    (job / "p.yaml").write_text("".join(lines))
    with pytest.raises(RecipeError, match=r"stages\.5\.train stands behind the last export"):
        onnxslim.compress("p.yaml")
    assert not (job / "runs").exists()


def _between(middle: list[onnx.NodeProto], constants: dict[str, np.ndarray], out: int = 16) -> Graph:
    """conv a (16 filters) → middle, which makes m of a → conv b."""
    rng = np.random.default_rng(0)
    arrays = {
        "a.w": rng.normal(size=(16, 3, 1, 1)).astype(np.float32),
        "b.w": rng.normal(size=(8, out, 1, 1)).astype(np.float32),
        **constants,
    }
    nodes = [
        helper.make_node("Conv", ["x", "a.w"], ["a"], "conv_a"),
        *middle,
        helper.make_node("Conv", ["m", "b.w"], ["b"], "conv_b"),
        helper.make_node("ReduceSum", ["b"], ["y"], "sum", keepdims=0),
    ]
    given = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])]
    made = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [])]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", given, made, tensors)
    return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def _pad(*pads: int, axes: tuple[int, ...] = ()) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    names = ["a", "pads", *(["", "axes"] if axes else [])]
    constants = {"pads": np.array(pads, np.int64), **({"axes": np.array(axes, np.int64)} if axes else {})}
    return [helper.make_node("Pad", names, ["m"], "odd")], constants


def _grouped(op: str, group: int, *weight: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    return [helper.make_node(op, ["a", "w"], ["m"], "odd", group=group)], {"w": np.ones(weight, np.float32)}


def _normed(groups: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    node = helper.make_node("GroupNormalization", ["a", "s", "s"], ["m"], "odd", num_groups=groups)
    return [node], {"s": np.ones(groups, np.float32)}


@pytest.mark.parametrize(
    ("middle", "says"),
    [
        (_grouped("Conv", 3, 16, 4, 1, 1), r"\(Conv\).*'group' to divide 16.*got 3"),
        (_grouped("Conv", 16, 24, 1, 1, 1), r"\(Conv\).*'group' to divide 24.*got 16"),  # depthwise
        (_grouped("ConvTranspose", 5, 16, 4, 1, 1), r"\(ConvTranspose\).*'group' to divide 16.*got 5"),
        (_normed(3), r"\(GroupNormalization\).*num_groups to divide the 16 channels.*got 3"),
        (_pad(0, 1), r"\(Pad\).*expected 8 pads, two for each of 4 axes, got 2"),
        (_pad(0, 1, axes=(1, 2)), r"\(Pad\).*expected 4 pads.*got 2"),
        (_pad(0, 1, axes=(9,)), r"\(Pad\).*expected axes of 4, each once, got \[9\]"),
        (_pad(0, 1, 0, 1, axes=(1, -3)), r"\(Pad\).*expected axes of 4, each once, got \[1, -3\]"),
    ],
)
def test_what_does_not_fit_is_said_of_the_model(
    middle: tuple[list[onnx.NodeProto], dict[str, np.ndarray]], says: str
) -> None:
    with pytest.raises(ModelError, match=f"^node 'odd' {says}"):
        onnxslim.prune(_between(*middle), params=0.9, multiple=1)


def test_large_sparse_weights_are_pinned() -> None:
    """Of 2⁴⁰ filters nothing is followed index by index; what else the model has is cut."""
    graph = _between([helper.make_node("Relu", ["a"], ["m"])], {})
    x = graph.inputs[0]
    values = numpy_helper.from_array(np.ones(1, np.float32), "huge")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "huge.at")
    weight = graph.add_value("huge", DType.FLOAT, (1 << 40, 3, 1, 1))
    weight.sparse = helper.make_sparse_tensor(values, indices, [1 << 40, 3, 1, 1])
    graph.add_output(graph.op("Conv", x, weight, name="large"))
    found = onnxslim.plan_pruning(graph, params=0.9, multiple=1)
    assert set(found.cuts) == {"conv_a", "conv_b"}


def checked_recipe(**options: object) -> dict[str, object]:
    """A cut of a network whose batch norms are folded, checked pass by pass where `compress` is told to."""
    write(small_cnn((4, 8), classes=6, batchnorm=False), "folded.onnx")
    return {
        "model": "folded.onnx", "data": DATA, "run": {"name": "mine", "workers": 1},
        "stages": [{"prune": {"macs": 0.5, "multiple": 1, "samples": 64, **options}}, {"export": {"ort": False}}],
        "evaluate": {"latency_repeats": 0},
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["physical", "masked"])
def test_a_cut_that_is_checked_is_found_to_be_right(job: Path, mode: str) -> None:
    report = onnxslim.compress(checked_recipe(mode=mode), check=True)
    assert report.stages[0].summary["units"] > 0


@pytest.mark.parametrize(
    ("spoiled", "named"),
    [(CutChannels, "cut_channels"), (RestoreBatchnorm, "restore_batchnorm"), (FoldBatchnorm, "fold_batchnorm")],
)
def test_a_recipe_that_is_checked_names_the_pass_of_a_cut(
    job: Path, monkeypatch: pytest.MonkeyPatch, spoiled: type[Pass], named: str
) -> None:
    """One pass halves the logits too; a cut is held to what the same units masked give."""
    run = spoiled.run

    def halved(self: Pass, graph: Graph, context: Context) -> Outcome:
        outcome = run(self, graph, context)
        weight = graph.value("head.weight")
        assert weight.array is not None
        graph.set_array(weight, weight.array / 2)
        return Outcome(outcome.rewrites + 1)

    monkeypatch.setattr(spoiled, "run", halved)
    with pytest.raises(VerifyError, match=f"After pass '{named}': '{named}' changed output 'logits'"):
        onnxslim.compress(checked_recipe(), check=True)
    assert not (job / "runs" / "mine").exists()
