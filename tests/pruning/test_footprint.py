"""The size of a cut model is known before it is cut, to the last MAC and byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.analysis.channels import find_groups
from onnxslim.analysis.cost import cost
from onnxslim.builders import small_cnn
from onnxslim.ir.graph import Graph
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
