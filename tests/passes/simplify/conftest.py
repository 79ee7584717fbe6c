"""What the tests of the simplifying passes share: comparison by running, and small networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from onnxslim.data import Preprocess, open_dataset
from onnxslim.ir.graph import Array, DType, Graph, Role, Value
from onnxslim.ir.onnx_io import read
from onnxslim.ir.rewrite import Outcome, Pass
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.checker import random_feeds, relative_error
from onnxslim.runtime.session import Session


def largest_error(before: Graph, after: Graph, feeds: Mapping[str, Array] | None = None) -> float:
    """The largest difference of any output, relative to its largest value; random feeds by default."""
    feeds = random_feeds(before, seed=5) if feeds is None else feeds
    old, new = Session(before).run(feeds), Session(after).run(feeds)
    assert list(old) == list(new)
    return max(relative_error(old[name], new[name]) for name in old)


@pytest.fixture(name="largest_error")
def largest_error_fixture() -> Callable[..., float]:
    return largest_error


@pytest.fixture
def run_on_file() -> Callable[[Pass, Path], tuple[Graph, Graph, Outcome]]:
    """run_on_file(pass, path) → the graph before and after, and the outcome; the pass verifies."""

    def run(step: Pass, path: Path) -> tuple[Graph, Graph, Outcome]:
        graph = read(path)
        before = graph.copy()
        return before, graph, step(graph)

    return run


@pytest.fixture
def images(shared: Path) -> Array:
    """64 real images, normalised as the CIFAR models want them: float32 [64, 3, 32, 32]."""
    val = open_dataset(shared / "data" / "cifar10.zip", "val")
    chosen = val.read(np.arange(0, len(val), len(val) // 64)[:64])["image"]
    return Preprocess((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))(chosen)


class Builder:
    """Writes a small graph with input x; weights are seeded."""

    def __init__(self, *shape: int | str, opset: int = 18, seed: int = 3) -> None:
        self.graph = Graph("small", opset)
        self.rng = np.random.default_rng(seed)
        self.x = self.graph.add_input("x", DType.FLOAT, shape)

    def constant(self, array: object, name: str = "c", role: Role = Role.CONSTANT) -> Value:
        return self.graph.add_constant(name, np.asarray(array), role=role)

    def weight(self, *shape: int, name: str = "w") -> Value:
        return self.constant(self.rng.normal(0, 0.5, shape).astype(np.float32), name, Role.PARAMETER)

    def batchnorm(self, x: Value, channels: int, name: str = "bn", **attributes: object) -> Value:
        """With γ of both signs."""
        gamma = self.rng.uniform(0.5, 2, channels) * np.where(np.arange(channels) % 3 == 1, -1, 1)
        arrays = (
            gamma,
            self.rng.normal(size=channels),
            self.rng.normal(size=channels),
            self.rng.uniform(0.2, 3, channels),
        )
        values = [self.constant(a.astype(np.float32), f"{name}.{k}") for a, k in zip(arrays, ("g", "b", "m", "v"))]
        return self.graph.op("BatchNormalization", x, *values, name=name, **attributes)

    def fake_quant(self, weight: Value, axis: int | None, bits: int = 8) -> Value:
        """The weight behind a symmetric grid, one scale a channel (or one for all)."""
        array = weight.array
        assert array is not None
        others = None if axis is None else tuple(a for a in range(array.ndim) if a != axis)
        scale = np.asarray(np.abs(array).max(axis=others) / (2 ** (bits - 1) - 1), np.float32)
        grid = [
            self.graph.add_constant(f"{weight.name}.{name}", a, role=Role.SCALE, owner=weight.name)
            for name, a in (("scale", scale), ("zero_point", np.zeros_like(scale)))
        ]
        attributes = {"bits": bits, "signed": 1, "narrow": 1, "kind": "weight", "axis": axis}
        node = self.graph.add_node("FakeQuant", [weight, *grid], 1, attributes, domain="onnxslim", name="fq")
        return self.graph.result(node)

    def finish(self, *outputs: Value, infer: bool = True) -> Graph:
        for value in outputs:
            if value.dtype is DType.UNDEFINED:
                self.graph.set_type(value, DType.FLOAT)
            self.graph.add_output(value)
        if infer:
            infer_shapes(self.graph)
        return self.graph


@pytest.fixture
def build() -> type[Builder]:
    """build(*shape of x, opset=18) → a Builder."""
    return Builder


@pytest.fixture
def ops() -> Callable[[Graph], list[str]]:
    """ops(graph) → the op of each node, in order."""
    return lambda graph: [node.op for node in graph.nodes()]
