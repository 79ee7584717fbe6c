"""Small networks for quantisation, and their calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from onnxslim.calibration import Extremes
from onnxslim.ir.graph import Array, DType, Graph, Role, Value
from onnxslim.ir.rewrite import Context, Pass
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.statistics import Statistic, Statistics
from onnxslim.runtime.session import Session
from onnxslim.targets import load_target


class Net:
    """Writes a small network; weights are seeded."""

    def __init__(self, channels: int = 3, size: int = 8, seed: int = 0) -> None:
        self.graph = Graph("net")
        self.rng = np.random.default_rng(seed)
        self.x = self.graph.add_input("x", DType.FLOAT, ["N", channels, size, size])
        self.channels = {self.x.id: channels}

    def constant(self, name: str, *shape: int, scale: float = 1.0) -> Value:
        array = self.rng.normal(0, scale, shape).astype(np.float32)
        return self.graph.add_constant(name, array, role=Role.PARAMETER)

    def conv(
        self, x: Value, out: int, kernel: int = 3, *, relu: bool = True, group: int = 1, **attributes: object
    ) -> Value:
        """Conv with bias, and ReLU where asked for; padding keeps the size at stride 1."""
        inner = self.channels[x.id] // group
        name = self.graph.fresh_name("conv")
        w = self.constant(f"{name}.weight", out, inner, kernel, kernel, scale=(inner * kernel * kernel) ** -0.5)
        b = self.constant(f"{name}.bias", out, scale=0.1)
        attributes = {"pads": [kernel // 2] * 4, "group": group, **attributes}
        y = self.graph.op("Conv", x, w, b, name=name, **attributes)
        self.channels[y.id] = out
        return self.op("Relu", y) if relu else y

    def op(self, op: str, *inputs: Value, **attributes: object) -> Value:
        y = self.graph.op(op, *inputs, name=self.graph.fresh_name(op.lower()), **attributes)
        if op == "Concat":
            self.channels[y.id] = sum(self.channels[v.id] for v in inputs)
        else:
            self.channels[y.id] = self.channels.get(inputs[0].id, 0)
        return y

    def gemm(self, x: Value, out: int = 10, *, name: str = "fc") -> Value:
        """Global average pool, Flatten, Gemm."""
        channels = self.channels[x.id]
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x))
        w = self.constant(f"{name}.weight", out, channels, scale=channels**-0.5)
        return self.graph.op("Gemm", pooled, w, self.constant(f"{name}.bias", out), name=name, transB=1)

    def finish(self, output: Value, *shape: object) -> Graph:
        self.graph.rename(output, "y")
        self.graph.set_type(output, DType.FLOAT, shape or ("N", 10))
        self.graph.add_output(output)
        infer_shapes(self.graph)
        return self.graph


@pytest.fixture
def net() -> Net:
    return Net()


def residual_net(seed: int = 0) -> Graph:
    """Everything that shares or hands on grids: residual Add, MaxPool, Concat, pools, depthwise, Gemm."""
    net = Net(seed=seed)
    a = net.conv(net.x, 8)
    b = net.conv(net.conv(a, 8, group=8, relu=False), 8, 1, relu=False)
    c = net.op("Relu", net.op("Add", a, b))
    d = net.op("MaxPool", c, kernel_shape=[2, 2], strides=[2, 2])
    left, right = net.conv(d, 6, strides=[2, 2]), net.conv(d, 5, relu=False, strides=[2, 2])
    e = net.op("Concat", left, right, axis=1)
    return net.finish(net.gemm(net.conv(e, 12)))


@pytest.fixture(name="residual_net")
def residual_net_fixture() -> Callable[..., Graph]:
    return residual_net


def ranges(graph: Graph, requests: Sequence[Statistic[Any]], x: Array) -> Statistics:
    """The range of each requested value on one batch, by running the graph with all of them as outputs."""
    tapped = graph.copy()
    for request in requests:
        value = tapped.value(request.value)
        if not tapped.is_input(value) and not tapped.is_output(value):
            tapped.set_type(value, DType.FLOAT)
            tapped.add_output(value)
    found = {**Session(tapped).run({"x": x}), "x": x}
    return Statistics({r: Extremes(float(found[r.value].min()), float(found[r.value].max())) for r in requests})


@pytest.fixture
def calibrated() -> Callable[..., Context]:
    """calibrated(graph, pass, x, target) → the context with what the pass requests."""

    def calibrate(graph: Graph, step: Pass, x: Array, target: str = "x64") -> Context:
        context = Context(target=load_target(target))
        return Context(statistics=ranges(graph, step.requests(graph, context), x), target=load_target(target))

    return calibrate


@pytest.fixture
def images() -> Array:
    return np.random.default_rng(7).normal(size=(64, 3, 8, 8)).astype(np.float32)
