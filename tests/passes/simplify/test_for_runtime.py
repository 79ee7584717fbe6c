"""for_runtime: what the installed ONNX Runtime does not read is converted, or named."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim import simplify
from onnxslim.errors import UnsupportedError
from onnxslim.evaluation.models import open_session
from onnxslim.runtime.session import Session
from passes.simplify import for_runtime


def test_what_is_read_stays_the_graph_itself(build) -> None:
    graph = build("N", 3, opset=18).graph
    assert for_runtime(graph) is graph


def test_only_the_file_format_is_too_new(build, largest_error) -> None:
    b = build("N", 3)
    graph = b.finish(b.graph.op("Relu", b.x))
    graph.ir_version = 14
    found = for_runtime(graph, (18, 9))
    assert (found.opset, found.ir_version, graph.ir_version) == (18, 9, 14)


def test_a_new_opset_is_converted_for_an_old_runtime(build) -> None:
    b = build("N", 3, opset=24)
    graph = b.finish(b.graph.op("Swish", b.x, name="swish"))
    found = for_runtime(graph, (21, 10))
    assert (found.opset, graph.opset) == (18, 24)
    x = np.array([[-1, 0, 2]], np.float32)
    expected = x / (1 + np.exp(-x))
    for session in (Session(found), open_session(graph)):
        (y,) = session.run({"x": x}).values()
        np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_what_cannot_be_converted_is_named(build) -> None:
    b = build("N", 3, opset=26)
    graph = b.finish(b.graph.op("BitCast", b.x, name="bits", to=6))
    with pytest.raises(UnsupportedError, match=r"opsets up to 21.*node 'bits' \(BitCast\) of opset 26"):
        for_runtime(graph, (21, 10))


def test_simplify_keeps_a_new_opset_and_checks_it(build) -> None:
    """Also what is constant is folded, whether or not this runtime reads the opset."""
    b = build("N", 3, opset=28)
    half = b.graph.op("Sqrt", b.constant(np.float32(0.25)))
    graph = b.finish(b.graph.op("Add", b.graph.op("Identity", b.x), half))
    result = simplify(graph, check=True)
    assert (result.graph.opset, [n.op for n in result.graph.nodes()]) == (28, ["Add"])
