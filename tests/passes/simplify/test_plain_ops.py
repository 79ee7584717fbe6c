"""PlainOps: what ONNX's own definitions write, as runtimes know it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.graph import DType
from onnxslim.runtime.session import Session
from passes.simplify import PlainOps, canonicalize


def test_cast_like_becomes_a_cast(build, ops, largest_error) -> None:
    b = build("N", 4)
    y = b.graph.op("CastLike", b.graph.op("Abs", b.x), b.constant(np.array([1], np.int32)))
    b.graph.set_type(y, DType.INT32)
    graph = b.finish(y)
    before = graph.copy()
    assert PlainOps()(graph).rewrites == 1
    assert ops(graph) == ["Abs", "Cast"]
    assert largest_error(before, graph) == 0


def test_a_sum_of_two_becomes_an_add(build, ops, largest_error) -> None:
    b = build("N", 4)
    y = b.graph.op("Sum", b.x, b.graph.op("Abs", b.x))
    graph = b.finish(b.graph.op("Sum", y, b.x, y))
    before = graph.copy()
    assert PlainOps()(graph).rewrites == 1
    assert ops(graph) == ["Abs", "Add", "Sum"]
    assert largest_error(before, graph) == 0


def test_a_cast_to_an_unknown_type_is_retained(build) -> None:
    b = build("N", 4)
    like = b.graph.add_input("like", DType.UNDEFINED, None)
    y = b.graph.op("CastLike", b.x, like)
    graph = b.finish(y, infer=False)
    assert PlainOps().run(graph, None).rewrites == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_gelu_is_written_out_as_onnx_runtime_fuses_it(approximate: str, build, ops, largest_error) -> None:
    b = build("N", 4, opset=20)
    graph = b.finish(b.graph.op("Gelu", b.x, approximate=approximate))
    before = graph.copy()
    canonicalize()(graph)
    assert not {"CastLike", "Sum", "Sqrt"} & set(ops(graph))
    assert len(ops(graph)) == {"none": 5, "tanh": 8}[approximate]
    assert largest_error(before, graph) <= 1e-5
    assert Session(graph).inputs[0].name == "x"
