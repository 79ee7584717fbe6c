"""FreezeInitializers: the light models of the onnx package are files of IR 3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxslim.ir.graph import DType
from onnxslim.ir.onnx_io import read
from passes.simplify import FreezeInitializers, simplify

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda p: p.stem)
def test_light_models(path: Path, largest_error) -> None:
    graph = read(path)
    before = graph.copy()
    assert graph.ir_version == 3
    assert FreezeInitializers()(graph).rewrites == len(before.inputs) - 1
    assert [v.name for v in graph.inputs if v.array is not None] == []
    assert FreezeInitializers()(graph).rewrites == 0
    simplify()(graph)
    assert len(graph.nodes()) < len(before.nodes())
    feeds = {graph.inputs[0].name: np.random.default_rng(0).random(graph.inputs[0].static_shape, np.float32)}
    assert largest_error(before, graph, feeds) <= 1e-5


def test_a_default_of_a_newer_file_is_retained(build) -> None:
    b = build("N", 3)
    default = b.graph.add_input("scale", DType.FLOAT, (1,))
    b.graph.set_array(default, np.ones(1, np.float32))
    graph = b.finish(b.graph.op("Mul", b.x, default))
    assert FreezeInitializers()(graph).rewrites == 0
    assert [v.name for v in graph.inputs] == ["x", "scale"]
