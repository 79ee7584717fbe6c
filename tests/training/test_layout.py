from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxslim.graph import Array, Graph
from onnxslim.onnx_io import read
from onnxslim.rewrite import Context
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.session import Session
from onnxslim.runtime.statistics import gather
from onnxslim.stages.base import prepared
from onnxslim.stages.train import mark_roles
from onnxslim.training import layout as layout_module
from onnxslim.training.layout import Plan, choose_layout
from onnxslim.training.optimizers import Sgd
from onnxslim.training.state import State
from onnxslim.training.step import LAYOUTS, Layout, Step, StepOptions, build_step
from passes.distill import CrossEntropy
from passes.simplify import RestoreBatchnorm

LANES = capabilities().lanes
needs_lanes = pytest.mark.skipif(not LANES, reason="no blocked kernels")
Made = tuple[Callable[[Layout], Step], dict[str, Array]]


def student(path: Path) -> Graph:
    """A network with its batch norms restored, as training has it."""
    graph = prepared(read(path))
    images = np.random.default_rng(0).normal(size=(16, *graph.inputs[0].shape[1:])).astype(np.float32)
    restore = RestoreBatchnorm()
    found = gather(graph, restore.requests(graph, Context()), [{graph.inputs[0].name: images}])
    restore(graph, Context(statistics=found))
    mark_roles(graph)
    return graph


def made(path: Path, batch: int, frozen: bool = False) -> Made:
    graph, options = student(path), StepOptions((CrossEntropy(),), frozen_batchnorm=frozen)
    arrays = State.of(graph, Sgd()).arrays
    return lambda layout: build_step(graph, batch, dataclasses.replace(options, layout=layout)), arrays


@needs_lanes
@pytest.mark.parametrize("frozen", [False, True], ids=["training", "frozen"])
def test_every_layout_gives_the_same_step(trained_path: Path, frozen: bool) -> None:
    """Loss, gradients and batch statistics, against the plain layout: ‖Δ‖ ≤ 1e-3 of the norm of all of a kind."""
    build, arrays = made(trained_path, LANES, frozen)
    steps = {layout: build(layout) for layout in LAYOUTS}
    plain = steps["plain"]
    rng = np.random.default_rng(1)
    images, label = plain.data
    feeds = {images: rng.normal(size=plain.graph.value(images).static_shape).astype(np.float32)}
    feeds[label] = rng.integers(0, 10, LANES)
    found = {layout: Session(step.graph).run(feeds | step.fed_from(arrays)) for layout, step in steps.items()}
    for layout in ("blocked", "lanes"):
        assert steps[layout].data == plain.data
        assert set(found[layout]) == set(found["plain"])
        for kind in ("loss", "grad.", "batch_mean.", "batch_var.", "correct"):
            names = [n for n in found["plain"] if n.startswith(kind)]
            expected, got = (np.concatenate([found[which][n].reshape(-1) for n in names] or [np.zeros(1)])
                             for which in ("plain", layout))  # fmt: skip
            assert np.linalg.norm(got - expected) <= 1e-3 * np.linalg.norm(expected), (layout, kind)
    assert steps["lanes"].laid > 20


@needs_lanes
def test_images_fill_the_lanes_or_stand_all_side_by_side(mobilenet: Path, teacher: Path) -> None:
    """The runtime's blocked kernels, which depthwise convolutions are, have their own width."""
    for path, width in ((mobilenet, LANES), (teacher, 3 * LANES)):
        step = made(path, 3 * LANES)[0]("lanes")
        assert step.graph.value(f"{step.data[0]}/blocks").static_shape[1] == width


@needs_lanes
def test_auto_chooses_among_those_that_are_right(mobilenet: Path) -> None:
    plan = choose_layout(*made(mobilenet, LANES))
    assert set(plan.seconds) == {"plain", "lanes"}
    assert plan.layout == min(plan.seconds, key=lambda name: plan.seconds[name])
    assert plan.refused == {"blocked": "nothing in this network gains by it"}
    assert "lanes" in str(plan)


@needs_lanes
def test_a_wrong_layout_is_refused(mobilenet: Path) -> None:
    """Gradients that are half as large again."""
    build, arrays = made(mobilenet, LANES)

    def wrong(layout: Layout) -> Step:
        step = build(layout)
        for value in step.graph.outputs if layout == "lanes" else []:
            if value.name.startswith("grad."):
                factor = step.graph.add_constant("factor", np.float32(1.5))
                larger = step.graph.op("Mul", value, factor)
                step.graph.set_type(larger, value.dtype, value.shape)
                name = value.name
                step.graph.remove_output(value)
                step.graph.rename(value, f"{name}/right")
                step.graph.rename(larger, name)
                step.graph.add_output(larger)
        return step

    plan = choose_layout(wrong, arrays)
    assert plan.layout == "plain"
    assert "gradients differ" in plan.refused["lanes"]


@needs_lanes
def test_an_odd_batch_falls_back_and_says_so(mobilenet: Path) -> None:
    plan = choose_layout(*made(mobilenet, 3))
    assert plan.layout == "plain"
    assert plan.refused["lanes"] == f"a worker's 3 images are no multiple of {LANES}"


def test_without_blocked_kernels_nothing_is_tried(mobilenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = dataclasses.replace(capabilities(), lanes=0)
    monkeypatch.setattr(layout_module, "capabilities", lambda: none)
    plan = choose_layout(*made(mobilenet, 16))
    assert (plan.layout, set(plan.refused)) == ("plain", {"blocked", "lanes"})


def test_what_is_wanted_is_taken_unmeasured(mobilenet: Path) -> None:
    plan = choose_layout(*made(mobilenet, 3), wanted="blocked")
    assert (plan.layout, plan.seconds) == ("blocked", {})


def test_plans_of_several_stages_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    found = capabilities()
    here = Plan("lanes", found.cpu, f"{found.distribution} {found.version}", {"lanes": 0.1})
    here.save(path, "1-train")
    dataclasses.replace(here, layout="plain", cpu="another").save(path, "3-train")
    first, second = Plan.load(path, "1-train"), Plan.load(path, "3-train")
    assert first == here
    assert first.holds_here()
    assert second is not None
    assert not second.holds_here()
    path.write_text(path.read_text().replace('"plain"', '"lanes"'))  # not as it was written: chosen anew
    assert Plan.load(path, "3-train") is None
    here.save(path, "1-train")
    assert Plan.load(path, "2-train") is None


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"a": {"layout": "round"}}), json.dumps({"a": 3})])
def test_a_plan_that_cannot_be_read_is_made_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    assert Plan.load(path, "a") is None
