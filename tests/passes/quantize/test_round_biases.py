"""RoundBiases: biases on the int32 grid, so that the fake-quant graph computes with what ships."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxslim.ir.graph import Graph
from onnxslim.ir.rewrite import Context
from onnxslim.targets import load_target
from passes.quantize import InsertFakeQuant, LowerToQdq, RoundBiases
from tests.fixed_range import FixedRange

X64 = Context(target=load_target("x64"))


def fake_quantised(net: Any) -> Graph:
    graph: Graph = net.finish(net.gemm(net.conv(net.x, 4)))
    InsertFakeQuant(calibrator=FixedRange(-1.0, 3.0))(graph, X64)
    return graph


def test_biases_move_to_their_grid_and_stay(net: Any) -> None:
    graph = fake_quantised(net)
    before, steps = graph.value("conv.bias").array, graph.value("conv.weight.scale").array
    x_scale = graph.operand(graph.node_named("x.fake_quant"), 1).array
    assert RoundBiases()(graph, X64).rewrites == 2
    after = graph.value("conv.bias").array
    assert before is not None
    assert after is not None
    assert steps is not None
    assert x_scale is not None
    units = after.astype(np.float64) / (x_scale * steps)
    np.testing.assert_allclose(units, np.rint(units), atol=1e-3)
    assert (np.abs(after - before) <= 0.5001 * x_scale * steps).all()
    assert RoundBiases()(graph, X64).rewrites == 0


def test_lowering_gives_the_same_integers_with_and_without(net: Any) -> None:
    graph = fake_quantised(net)
    rounded = graph.copy()
    RoundBiases()(rounded, X64)
    for g in (graph, rounded):
        LowerToQdq()(g, X64)
    pairs = list(zip(graph.initializers(), rounded.initializers()))
    assert pairs
    for a, b in pairs:
        np.testing.assert_array_equal(a.array, b.array)


def test_shared_bias_is_rounded_for_each_layer(net: Any) -> None:
    a = net.conv(net.x, 4)
    b = net.graph.op("Conv", a, net.constant("w", 4, 4, 1, 1), net.graph.value("conv.bias"), name="again")
    net.channels[b.id] = 4
    graph = net.finish(net.gemm(b))
    InsertFakeQuant(calibrator=FixedRange(-1.0, 3.0))(graph, X64)
    RoundBiases()(graph, X64)
    convs = [n for n in graph.nodes() if n.op == "Conv"]
    assert graph.operand(convs[0], 2).id != graph.operand(convs[1], 2).id


def test_float_graph_is_left_alone(net: Any) -> None:
    assert RoundBiases()(net.finish(net.gemm(net.conv(net.x, 4))), X64).rewrites == 0


def test_layers_that_stay_float_are_refused(net: Any) -> None:
    graph = net.finish(net.gemm(net.conv(net.x, 4)))
    InsertFakeQuant(skip=("fc",), calibrator=FixedRange(-1.0, 3.0))(graph, X64)
    before = graph.value("fc.bias").array
    outcome = RoundBiases()(graph, X64)
    assert [r.where for r in outcome.refused] == ["node 'fc' (Gemm)"]
    assert graph.value("fc.bias").array is before
