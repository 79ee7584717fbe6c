"""Models with free sizes beside the batch: their sizes come from the data, from an option, or from trying; a cost that
depends on them is never zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxslim
from onnxslim.cli import app
from onnxslim.errors import DataError, OptionError
from onnxslim.ir.graph import Dim, DType, Graph
from onnxslim.ir.onnx_io import write

CLASSES = 4


def classifier(*sizes: Dim, channels: int = 16) -> Graph:
    """Two convolutions over as many spatial axes as there are sizes, a mean, a linear layer."""
    rng = np.random.default_rng(0)
    graph = Graph("net")
    value = graph.add_input("x", DType.FLOAT, ["N", 3, *sizes])
    kernel = (3,) * len(sizes)
    width = 3
    for name in ("first", "second"):
        w = rng.standard_normal((channels, width, *kernel)).astype(np.float32) * 0.1
        bias = graph.add_constant(f"{name}/b", np.zeros(channels, np.float32))
        value = graph.op("Conv", value, graph.add_constant(f"{name}/w", w), bias, name=name, pads=[1] * 2 * len(sizes))
        value = graph.op("Relu", value, name=f"{name}/relu")
        width = channels
    value = graph.op("Flatten", graph.op("GlobalAveragePool", value, name="mean"), name="flat")
    head = graph.add_constant("head", rng.standard_normal((channels, CLASSES)).astype(np.float32))
    value = graph.op("Gemm", value, head, name="y")
    graph.set_type(value, DType.FLOAT, ["N", CLASSES])
    graph.add_output(value)
    return graph


def data(*sizes: int, count: int = 64) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    return {
        "x": rng.standard_normal((count, 3, *sizes)).astype(np.float32),
        "label": rng.integers(0, CLASSES, count),
    }


def test_a_cost_that_depends_on_sizes_is_unknown_without_them() -> None:
    graph = classifier("H", None)
    found = onnxslim.cost(graph)
    assert found.macs is None
    assert found.unknown == ("first", "second")
    assert [row.macs for row in found.by_node if row.op in ("Conv", "Gemm")] == [None, None, 16 * CLASSES]
    known = onnxslim.cost(graph, {"H": 8, "x[3]": 10})
    assert known.macs == 8 * 10 * 9 * (3 * 16 + 16 * 16) + 16 * CLASSES
    assert known.macs == onnxslim.cost(classifier(8, 10)).macs
    with pytest.raises(DataError, match=r"size W=3: no input has a free axis of that name; free are: N, H, x\[3\]"):
        onnxslim.cost(graph, {"W": 3})


def test_inspect_takes_sizes(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    write(classifier("H", "W"), tmp_path / "m.onnx")
    runner = CliRunner()
    unknown = runner.invoke(app, ["inspect", str(tmp_path / "m.onnx")])
    assert "unknown (2 nodes of unknown cost: give the sizes of free axes, --size AXIS=NUMBER)" in unknown.output
    known = runner.invoke(app, ["inspect", str(tmp_path / "m.onnx"), "--size", "H=8", "--size", "W=10"])
    assert "218,944" in known.output
    wrong = runner.invoke(app, ["inspect", str(tmp_path / "m.onnx"), "--size", "H"])
    assert wrong.exit_code == 2
    assert "--size: expected AXIS=NUMBER, each axis once, such as height=480, got 'H'" in wrong.output


def left(graph: Graph, *sizes: int) -> float:
    names = ("H", "W")[: len(sizes)]
    found = onnxslim.cost(graph, dict(zip(names, sizes))).macs
    whole = onnxslim.cost(classifier(*sizes)).macs
    assert found is not None
    assert whole is not None
    return found / whole


@pytest.mark.parametrize("names, sizes", [(("H", "W"), (32, 32)), (("H",), (50,))])
@pytest.mark.parametrize("target", [0.6, 0.4])
def test_a_fraction_of_macs_is_met_whatever_is_free(
    names: tuple[str, ...], sizes: tuple[int, ...], target: float
) -> None:
    """Within what one channel of 16 takes: each is at most a tenth of the MACs."""
    for given in (None, {"train": data(*sizes)}):
        found = onnxslim.prune(classifier(*names), given, macs=target, multiple=1, restore_batchnorm=False)
        assert target - 0.1 <= left(found.graph, *sizes) <= target + 0.001
        assert (found.plan.counted_at is None) == (given is not None)
    assert onnxslim.prune(classifier(*names), macs=target, sizes=dict.fromkeys(names, 9)).plan.counted_at is None


def test_a_size_that_is_given_goes_before_that_of_the_data() -> None:
    """Whichever way its axis is named, and whether or not the other one is given too."""
    whole = onnxslim.cost(classifier(20, 10)).macs
    for sizes in ({"H": 20}, {"x[2]": 20}, {"H": 20, "W": 10}):
        plan = onnxslim.plan_pruning(classifier("H", "W"), {"train": data(32, 10)}, macs=0.5, multiple=1, sizes=sizes)
        assert plan.before.macs == whole


def test_a_number_of_macs_needs_sizes() -> None:
    with pytest.raises(OptionError, match="macs: a number of MACs depends on the sizes of H, W"):
        onnxslim.prune(classifier("H", "W"), macs=100_000)
    whole = onnxslim.cost(classifier(8, 10)).macs
    assert whole is not None
    found = onnxslim.prune(classifier("H", "W"), macs=whole / 2, sizes={"H": 8, "W": 10}, multiple=1)
    assert 0.4 * whole <= found.plan.after.macs <= 0.5 * whole


@pytest.mark.parametrize("sizes", [(8, 6), (20,)])
def test_training_and_taylor_take_the_sizes_of_the_data(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    names = ("height", None)[: len(sizes)]
    other = ("h", "w")[: len(sizes)]
    found = onnxslim.prune(
        classifier(*names), {"train": data(*sizes)}, macs=0.5, multiple=1, criterion="taylor", samples=32
    )
    assert found.graph.value("x").shape == ("N", 3, *names)
    report = onnxslim.compress(
        {
            "model": found.graph,
            "teacher": classifier(*other),
            "data": {"train": data(*sizes), "val": data(*sizes)},
            "run": {"name": "free", "folder": str(tmp_path), "workers": 1},
            "stages": [
                {"train": {"epochs": 1, "batch": 32, "distill": {}, "layout": "plain"}},
                {"export": {"ort": False}},
            ],
            "evaluate": {"latency_repeats": 1},
        }
    )
    trained = onnxslim.read(tmp_path / "free" / "model.onnx")
    assert trained.value("x").shape == ("N", 3, *names)
    assert report.rows[0].accuracy is not None


def test_simplify_checks_where_the_model_runs(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    write(classifier("H", "W"), tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", x=data(9, 7, count=3)["x"])
    np.savez(tmp_path / "wrong.npz", z=data(9, 7, count=3)["x"])
    command = ["simplify", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "s.onnx"), "--force"]
    runner = CliRunner()
    for options, shape in (
        ([], "[2, 3, 32, 64]"),
        (["--size", "W=5"], "[2, 3, 32, 5]"),
        (["--inputs", str(tmp_path / "in.npz")], "[3, 3, 9, 7]"),
    ):
        said = runner.invoke(app, [*command, "--check", *options])
        assert said.exit_code == 0, said.output
        assert f"checked on x {shape}" in said.output
    missing = runner.invoke(app, [*command, "--check", "--inputs", str(tmp_path / "wrong.npz")])
    assert missing.exit_code == 2
    assert "needs input 'x', which was not fed; fed: z" in missing.output
    useless = runner.invoke(app, [*command, "--size", "W=5"])
    assert useless.exit_code == 2
    assert "ask for" in useless.output
