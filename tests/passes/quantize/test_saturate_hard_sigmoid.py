"""SaturateHardSigmoid: a HardSigmoid between integers is an integer sum; SplitHardSwish makes room for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxslim.errors import OptionError
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.rewrite import Context
from onnxslim.runtime.integer import run_integer
from onnxslim.runtime.session import Session
from onnxslim.targets import load_target
from passes.quantize import SaturateHardSigmoid, SplitHardSwish


def between_pairs(
    alpha: float = 1 / 6, beta: float = 0.5, high: float = 1.0, signed: bool = False, bits: int = 8
) -> Graph:
    """x → Q → DQ → HardSigmoid → Q → DQ, the second grid from 0 to `high`."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ["N", 256])
    kind, low = (np.int8, -128) if signed else (np.uint8, 0)
    for name, scale, zero in (("in", 7.93 / 255, low + 128), ("out", high / (2**bits - 1), low)):
        grid = [graph.add_constant(f"{name}.scale", np.float32(scale)), graph.add_constant(f"{name}.zero", kind(zero))]
        x = graph.op("DequantizeLinear", graph.op("QuantizeLinear", x, *grid), *grid)
        graph.set_type(x, DType.FLOAT, ["N", 256])
        if name == "in":
            x = graph.op("HardSigmoid", x, alpha=alpha, beta=beta, name="gate")
            graph.set_type(x, DType.FLOAT, ["N", 256])
    graph.add_output(x)
    return graph


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1 / 6, 0.5), (0.2, 0.5), (0.3, -0.2), (1.5, 0.25)])
@pytest.mark.parametrize("high", [1.0, 0.7])
def test_it_is_a_sum_that_saturates(alpha: float, beta: float, high: float, signed: bool) -> None:
    graph = between_pairs(alpha, beta, high, signed)
    x = {"x": np.linspace(-4, 4, 512, dtype=np.float32).reshape(2, 256)}
    (expected,) = Session(graph, fuse_qdq=False).run(x).values()
    assert SaturateHardSigmoid()(graph).rewrites == 1
    assert [node.op for node in graph.nodes()].count("Add") == 1
    step = high / 255
    for found in (*Session(graph).run(x).values(), *run_integer(graph, x).values()):
        # at most one step: α·s is rounded to float32, and what is near a tie may fall to the other side
        assert np.abs(found - expected).max() <= 1.01 * step
        assert np.mean(np.abs(found - expected) > 0.01 * step) <= 0.02
    assert SaturateHardSigmoid()(graph).rewrites == 0


@pytest.mark.parametrize(
    "options", [{"high": 1.2}, {"bits": 4}, {"alpha": -0.5}, {"beta": 0.0}], ids=["wider", "4 bits", "falling", "odd"]
)
def test_retained(options: dict[str, float]) -> None:
    graph = between_pairs(**options)  # type: ignore[arg-type]
    assert SaturateHardSigmoid()(graph).rewrites == 0
    assert "HardSigmoid" in [node.op for node in graph.nodes()]


def test_retained_where_the_target_has_a_kernel_for_it() -> None:
    kernel = replace(load_target("x64"), saturating_sums=())
    graph = between_pairs()
    assert SaturateHardSigmoid()(graph, Context(target=kernel)).rewrites == 0
    assert SaturateHardSigmoid()(graph, Context(target=load_target("arm"))).rewrites == 1


def test_a_gate_that_is_read_in_float_too_is_retained() -> None:
    graph = between_pairs()
    gate = graph.node_named("gate")
    graph.add_output(graph.result(gate))
    assert SaturateHardSigmoid()(graph).rewrites == 0


def swishes() -> Graph:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, ["N", 8])
    for name in ("one", "two"):
        x = graph.op("HardSwish", x, name=name)
        graph.set_type(x, DType.FLOAT, ["N", 8])
    graph.add_output(x)
    return graph


@pytest.mark.parametrize("target", ["x64", "arm"])
def test_hard_swish_is_split(target: str) -> None:
    graph = swishes()
    x = {"x": np.linspace(-5, 5, 16, dtype=np.float32).reshape(2, 8)}
    (expected,) = Session(graph).run(x).values()
    assert SplitHardSwish()(graph, Context(target=load_target(target))).rewrites == 2
    assert [node.op for node in graph.nodes()] == ["HardSigmoid", "Mul"] * 2
    (found,) = Session(graph).run(x).values()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)  # float32, the same formula


def test_what_is_skipped_stays_one_node() -> None:
    graph = swishes()
    assert SplitHardSwish(("two",))(graph).rewrites == 1
    assert [node.op for node in graph.nodes()] == ["HardSigmoid", "Mul", "HardSwish"]
    graph = swishes()
    assert SplitHardSwish(("HardSwish",))(graph).rewrites == 0
    with pytest.raises(OptionError, match="nothing"):
        SplitHardSwish(("nothing",))(graph)
