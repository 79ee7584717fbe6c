"""FoldPad: zeros into the convolution, every other Pad named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from passes.simplify import FoldConstants, FoldPad


def test_every_model_file(model_path: Path, run_on_file, largest_error) -> None:
    before, after, _ = run_on_file(FoldPad(), model_path)
    assert largest_error(before, after) <= 1e-5


def test_the_tensorflow_file_has_some(shared: Path, run_on_file) -> None:
    graph, after, _ = run_on_file(FoldConstants(), shared / "models" / "structures" / "tf_mobilenet_v2_x035.onnx")
    assert FoldPad()(after).rewrites == sum(n.op == "Pad" for n in graph.nodes()) > 0


def padded(build, operands, conv=None, **attributes):
    b = build("N", 3, 8, 7)
    y = b.graph.op("Pad", b.x, *(o if o is None else b.constant(o) for o in operands), name="pad", **attributes)
    return b.finish(b.graph.op("Conv", y, b.weight(4, 3, 3, 3), strides=[2, 2], **(conv or {})))


SPATIAL = np.array([0, 0, 0, 1, 0, 0, 1, 2])


@pytest.mark.parametrize("own", [{}, {"pads": [1, 0, 2, 1]}, {"auto_pad": "VALID"}])
@pytest.mark.parametrize(
    "operands",
    [
        [SPATIAL],
        [SPATIAL, np.float32(0)],
        [np.array([1, 2, 3, 0]), None, np.array([-1, 2])],
    ],
)
def test_fires(operands, own, build, ops, largest_error) -> None:
    graph = padded(build, operands, own)
    before = graph.copy()
    assert FoldPad()(graph).rewrites == 1
    assert ops(graph) == ["Conv"]
    assert largest_error(before, graph) <= 1e-5


@pytest.mark.parametrize(
    ("operands", "conv", "attributes", "why"),
    [
        ([SPATIAL], {}, {"mode": "reflect"}, "its mode is reflect"),
        ([SPATIAL, np.float32(1)], {}, {}, "something else than 0"),
        ([np.array([0, 0, 0, -1, 0, 0, 1, 0])], {}, {}, "it cuts"),
        ([SPATIAL], {"auto_pad": "SAME_UPPER"}, {}, "pads by itself"),
        ([np.array([1, 0, 0, 0, 0, 0, 0, 0])], {}, {}, "the batch or the channels"),
    ],
)
def test_refused(operands, conv, attributes, why, build) -> None:
    outcome = FoldPad()(padded(build, operands, conv, **attributes))
    assert outcome.rewrites == 0
    assert len(outcome.refused) == 1
    assert why in outcome.refused[0].why
    assert "'pad'" in outcome.refused[0].where


def test_a_pad_that_others_read_stays_for_them(build, ops, largest_error) -> None:
    b = build("N", 3, 8, 7)
    y = b.graph.op("Pad", b.x, b.constant(SPATIAL))
    graph = b.finish(b.graph.op("Conv", y, b.weight(4, 3, 3, 3)), b.graph.op("Relu", y))
    before = graph.copy()
    assert FoldPad()(graph).rewrites == 1
    assert sorted(ops(graph)) == ["Conv", "Pad", "Relu"]
    assert largest_error(before, graph) <= 1e-5
