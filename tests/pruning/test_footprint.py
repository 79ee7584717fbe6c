"""The size of a cut model is known before it is cut, to the last MAC and byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.analysis.channels import find_groups
from onnxslim.analysis.cost import cost
from onnxslim.builders import small_cnn
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.onnx_io import read
from onnxslim.pruning.footprint import Footprint, Size
from onnxslim.stages.base import prepared
from passes.prune import CutChannels


def size_of(graph: Graph) -> Size:
    found = cost(graph)
    return Size(found.macs, found.params, found.bytes)


def test_hand_count(network: Callable[..., Graph]) -> None:
    graph = network((8, 16), batchnorm=False)
    groups = find_groups(graph)
    footprint = Footprint(graph, groups.by_name)
    first = 8 * 8 * 9 * 8  # 8×8 pixels, one input channel
    assert footprint.size.macs == first + 4 * 4 * 9 * 8 * 16 + 16 * 6
    footprint.set("conv1", 5)
    footprint.set("conv2", 7)
    assert footprint.size.macs == 8 * 8 * 9 * 5 + 4 * 4 * 9 * 5 * 7 + 7 * 6
    assert footprint.size.params == 9 * 5 + 5 + 9 * 5 * 7 + 7 + 7 * 6 + 6
    assert footprint.size.bytes == 4 * footprint.size.params
    assert footprint.macs_of(graph.node_named("conv2")) == 4 * 4 * 9 * 5 * 7
    footprint.with_left({"conv1": 8, "conv2": 16})
    assert footprint.size == size_of(graph)


def test_sizes_that_the_model_does_not_take_are_named() -> None:
    """Of 8×8 images, windows of 3 leave 6×6, and a Reshape to 8×8 does not fit."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (1, 1, "h", "w"))
    first = graph.add_constant("w1", np.ones((4, 1, 3, 3), np.float32))
    second = graph.add_constant("w2", np.ones((6, 4, 3, 3), np.float32))
    third = graph.add_constant("w3", np.ones((2, 6, 3, 3), np.float32))
    square = graph.add_constant("square", np.array([-1, 4, 8, 8], np.int64))
    inner = graph.op("Reshape", graph.op("Conv", x, first, name="conv1"), square, name="square")
    graph.add_output(graph.op("Conv", graph.op("Conv", inner, second, name="conv2"), third, name="conv3"))
    graph = prepared(graph)
    groups = find_groups(graph).by_name
    assert Footprint(graph, groups, {"h": 10, "w": 10}).size.params == 4 * 9 + 6 * 4 * 9 + 2 * 6 * 9
    with pytest.raises(UnsupportedError, match=r"shapes 'x' \[1, 1, 8, 8\], inference finds no shape of 'conv2'"):
        Footprint(graph, groups, {"h": 8, "w": 8})


@given(st.data())
def test_any_cut_of_a_small_network(data: st.DataObject) -> None:
    graph = prepared(small_cnn((6, 10, 4), classes=3, depthwise=data.draw(st.booleans())))
    groups = find_groups(graph)
    left = {g.name: data.draw(st.integers(1, g.units)) for g in groups.free}
    footprint = Footprint(graph, {g.name: g for g in groups.free})
    CutChannels({g.name: range(left[g.name], g.units) for g in groups.free})(graph)
    assert footprint.with_left(left) == size_of(graph)


def test_every_file(model_path: Path) -> None:
    graph = prepared(read(model_path))
    groups = find_groups(graph)
    free = {g.name: g for g in groups.free}
    footprint = Footprint(graph, free)
    assert footprint.size == size_of(graph)
    rng = np.random.default_rng(0)
    left = {name: int(rng.integers(1, g.units + 1)) for name, g in free.items()}
    predicted = footprint.with_left(left)
    CutChannels({name: range(left[name], g.units) for name, g in free.items()})(graph)
    found = size_of(graph)
    assert predicted[:2] == found[:2]
    # Nodes that shared a constant with a number of channels may get one of their own each.
    assert predicted.bytes <= found.bytes <= predicted.bytes + 1024
