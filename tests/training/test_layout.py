from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxslim.calibration import gather
from onnxslim.errors import ModelError
from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.onnx_io import read
from onnxslim.ir.rewrite import Context
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.session import Session
from onnxslim.stages.base import prepared
from onnxslim.stages.train import mark_roles
from onnxslim.training import layout as layout_module
from onnxslim.training.layout import Judge, Plan, choose_layout
from onnxslim.training.optimizers import Sgd
from onnxslim.training.ports import Kind, Port
from onnxslim.training.state import State
from onnxslim.training.step import LAYOUTS, Layout, Step, StepOptions, build_step
from passes.distill import CrossEntropy
from passes.simplify import RestoreBatchnorm

LANES = capabilities().lanes
needs_lanes = pytest.mark.skipif(not LANES, reason="no blocked kernels")
Made = tuple[Callable[[Layout], list[Step]], dict[Port, Array]]


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
    return lambda layout: [build_step(graph, batch, dataclasses.replace(options, layout=layout))], arrays


@needs_lanes
@pytest.mark.parametrize("frozen", [False, True], ids=["training", "frozen"])
def test_every_layout_gives_the_same_step(trained_path: Path, frozen: bool) -> None:
    """Of the same names and shapes; what the forward pass gives within 1e-3 of the norm of all of a kind, which is
    float32's rounding through all layers. Gradients jump where a ReLU turns over with the last bits, so they are held
    to what such bits do to the plain layout itself, measured on the same batches."""
    build, arrays = made(trained_path, LANES, frozen)
    steps = {layout: build(layout)[0] for layout in LAYOUTS}
    plain = steps["plain"]
    rng = np.random.default_rng(1)
    images, label = plain.data
    feeds = {images: rng.normal(size=plain.value(images).static_shape).astype(np.float32)}
    feeds[label] = rng.integers(0, 10, LANES)
    found = {layout: s.found(Session(s.graph).run(s.fed(feeds, arrays))) for layout, s in steps.items()}
    judge = Judge(plain, arrays, trials=1)
    for layout in ("blocked", "lanes"):
        assert steps[layout].data == plain.data
        assert set(found[layout]) == set(found["plain"])
        for kind in (Kind.LOSS, Kind.TERM, Kind.BATCH, Kind.CORRECT):
            ports = [port for port in found["plain"] if port.kind is kind]
            assert ports or (frozen and kind is Kind.BATCH)
            expected, got = (np.concatenate([found[which][p].reshape(-1) for p in ports] or [np.zeros(1)])
                             for which in ("plain", layout))  # fmt: skip
            assert np.linalg.norm(got - expected) <= 1e-3 * np.linalg.norm(expected), (layout, kind)
        assert judge.objection(steps[layout]) is None
    assert steps["lanes"].rewritten > 20


@needs_lanes
def test_images_fill_the_lanes_or_stand_all_side_by_side(mobilenet: Path, teacher: Path) -> None:
    """The runtime's blocked kernels, which depthwise convolutions are, have their own width."""
    for path, width in ((mobilenet, LANES), (teacher, 3 * LANES)):
        (step,) = made(path, 3 * LANES)[0]("lanes")
        assert step.graph.value(f"{step.ports[step.data[0]]}/blocks").static_shape[1] == width


@needs_lanes
def test_auto_takes_what_is_foreseen_to_be_fastest(mobilenet: Path) -> None:
    plan = choose_layout(*made(mobilenet, LANES))
    assert set(plan.foreseen) == {"plain", "lanes"}
    assert plan.layout == min(plan.foreseen, key=lambda name: plan.foreseen[name]) == "lanes"
    assert plan.refused == {"blocked": "nothing in this network gains by it"}
    assert str(plan).startswith("lanes layout (plain about ")


@needs_lanes
def test_equal_runs_choose_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed: a clock that runs wild changes nothing."""
    rng = np.random.default_rng(0)
    for clock in ("perf_counter", "monotonic", "process_time", "time"):
        monkeypatch.setattr(time, clock, lambda: float(rng.normal() * 1e3))
    plans = [choose_layout(*steps_of(conv_with_bias(), LANES)) for _ in range(2)]
    assert plans[0] == plans[1]
    assert set(plans[0].foreseen) == set(LAYOUTS)


def conv_with_bias(stride: int = 1) -> Graph:
    """Dense convolutions of full blocks of channels with a bias and no batch norm behind them."""
    rng = np.random.default_rng(0)
    graph, width = Graph("biased"), 2 * (LANES or 8)

    def const(name: str, *shape: int) -> Value:
        return graph.add_constant(name, rng.normal(size=shape, scale=0.2).astype(np.float32))

    x = graph.add_input("x", DType.FLOAT, ("N", 3, 8, 8))
    for number, inside in enumerate((3, width, width)):
        attributes = {"pads": [1] * 4, "strides": [stride if number == 1 else 1] * 2}
        w, b = const(f"w{number}", width, inside, 3, 3), const(f"b{number}", width)
        x = graph.op("Relu", graph.op("Conv", x, w, b, name=f"c{number}", **attributes), name=f"r{number}")
    flat = graph.op("Flatten", graph.op("GlobalAveragePool", x, name="mean"), name="flat")
    graph.add_output(graph.op("Gemm", flat, const("g", width, 10), const("gb", 10), name="y"))
    graph = prepared(graph)
    mark_roles(graph)
    return graph


def steps_of(graph: Graph, batch: int) -> Made:
    options = StepOptions((CrossEntropy(),))
    arrays = State.of(graph, Sgd()).arrays
    return lambda layout: [build_step(graph, batch, dataclasses.replace(options, layout=layout))], arrays


@needs_lanes
@pytest.mark.parametrize("wanted", ["blocked", "lanes"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_bias_without_batch_norm_is_laid_out(wanted: str, stride: int) -> None:
    """The way production goes: no shape is inferred between laying out and differentiating."""
    plan = choose_layout(*steps_of(conv_with_bias(stride), LANES), wanted)
    assert (plan.layout, plan.refused) == (wanted, {})


@needs_lanes
@pytest.mark.parametrize("wanted", ["auto", "blocked"])
@pytest.mark.parametrize("error", [ModelError("no shape"), IndexError()], ids=["ours", "foreign"])
def test_a_layout_that_cannot_be_built_is_refused_by_name(wanted: str, error: Exception) -> None:
    build, arrays = steps_of(conv_with_bias(), LANES)

    def broken(layout: Layout) -> list[Step]:
        if layout != "plain":
            raise error
        return build(layout)

    plan = choose_layout(broken, arrays, wanted)
    assert plan.layout == "plain"
    assert plan.refused["blocked"] == f"it cannot be built for this network: {str(error) or 'IndexError'}"


@needs_lanes
def test_a_layout_that_does_not_run_is_refused_by_name() -> None:
    build, arrays = steps_of(conv_with_bias(), LANES)

    def broken(layout: Layout) -> list[Step]:
        steps = build(layout)
        if layout == "lanes":
            graph = steps[0].graph
            node = graph.op("NoSuchOp", graph.inputs[0], domain="nowhere")
            graph.set_type(node, DType.FLOAT, graph.inputs[0].shape)
            graph.add_output(node)
        return steps

    plan = choose_layout(broken, arrays, "lanes")
    assert plan.layout == "plain"
    assert plan.refused["lanes"].startswith("it does not run here: ")


def test_what_the_plain_layout_raises_is_raised() -> None:
    def broken(layout: Layout) -> list[Step]:
        raise ModelError(layout)

    with pytest.raises(ModelError, match="plain"):
        choose_layout(broken, {})


@needs_lanes
def test_a_wrong_layout_is_refused(mobilenet: Path) -> None:
    """Gradients that are half as large again."""
    build, arrays = made(mobilenet, LANES)

    def wrong(layout: Layout) -> list[Step]:
        (step,) = build(layout)
        for port, value in step.outputs.items() if layout == "lanes" else ():
            if port.kind is Kind.GRADIENT:
                factor = step.graph.add_constant("factor", np.float32(1.5))
                larger = step.graph.op("Mul", value, factor)
                step.graph.set_type(larger, value.dtype, value.shape)
                name = value.name
                step.graph.remove_output(value)
                step.graph.rename(value, f"{name}/right")
                step.graph.rename(larger, name)
                step.graph.add_output(larger)
        return [step]

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


@needs_lanes
def test_what_is_wanted_is_taken_though_another_is_faster() -> None:
    build, arrays = steps_of(conv_with_bias(), LANES)
    for wanted in LAYOUTS:
        assert choose_layout(build, arrays, wanted).layout == wanted


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
