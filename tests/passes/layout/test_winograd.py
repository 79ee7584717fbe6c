"""Winograd's convolutions against ONNX Runtime's, forward and both gradients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.ir.graph import Array, DType, Graph
from onnxslim.runtime.session import Session
from passes.gradient import differentiate
from passes.layout import ExpandLanes, ToLanes
from passes.layout.geometry import Geometry
from passes.layout.winograd import Winograd

LANES = 8


def convolution(
    inside: int, outs: int, size: tuple[int, int], pads: tuple[int, int, int, int], lanes: int = 0, batch: int = 16
) -> Graph:
    """y and the gradients of Σ r·y; in the lanes layout where `lanes` are given."""
    out = (size[0] + pads[0] + pads[2] - 2, size[1] + pads[1] + pads[3] - 2)
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (batch, inside, *size))
    w = graph.add_input("w", DType.FLOAT, (outs, inside, 3, 3))
    r = graph.add_input("r", DType.FLOAT, (batch, outs, *out))
    y = graph.op("Conv", x, w, name="y", pads=list(pads), kernel_shape=[3, 3])
    graph.set_type(y, DType.FLOAT, (batch, outs, *out))
    z = graph.op("Mul", y, r, name="z")
    graph.set_type(z, DType.FLOAT, y.shape)
    loss = graph.op("ReduceSum", z, name="loss", keepdims=0)
    graph.set_type(loss, DType.FLOAT, ())
    graph.add_output(z)
    if lanes:
        ToLanes(lanes)(graph)
    gradients = differentiate(graph, loss, [x, w])
    for name, value in gradients.items():
        graph.add_output(value)
        graph.rename(value, f"d{name}")
    ExpandLanes(blocked=False)(graph)
    return graph


def difference(plain: Graph, laid: Graph, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {v.name: rng.normal(size=v.static_shape).astype(np.float32) for v in plain.inputs}
    expected, found = Session(plain).run(feeds), Session(laid).run(feeds)
    return {name: float(np.abs(found[name] - array).max() / np.abs(array).max()) for name, array in expected.items()}


@settings(max_examples=25)
@given(
    inside=st.sampled_from([16, 19, 32]),
    outs=st.sampled_from([16, 21, 32]),
    size=st.tuples(st.integers(3, 13), st.integers(3, 13)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    seed=st.integers(0, 9),
)
def test_as_the_convolution_that_it_is(
    inside: int, outs: int, size: tuple[int, int], pads: tuple[int, int, int, int], seed: int
) -> None:
    arguments = (inside, outs, size, pads)
    laid = convolution(*arguments, lanes=LANES)
    for name, error in difference(convolution(*arguments), laid, seed).items():
        assert error <= 2e-5, (name, error)


@pytest.mark.parametrize("size, places", [((8, 8), 36), ((16, 8), 36), ((4, 4), 16), ((10, 8), 16)])
def test_tiles_are_large_where_the_image_is(size: tuple[int, int], places: int) -> None:
    """And fewer products are made than a convolution needs: 36 for 16 pixels, 16 for 4, instead of 144 and 36."""
    laid = convolution(16, 16, size, (1, 1, 1, 1), lanes=LANES)
    targets = [laid.constant_of(laid.input(n, 1)) for n in laid.nodes() if n.op == "Reshape"]
    assert [places, 16, 16] in [target.tolist() for target in targets if target is not None]
    assert max(difference(convolution(16, 16, size, (1, 1, 1, 1)), laid, 0).values()) <= 2e-5


@pytest.mark.parametrize(
    "changes, fits",
    [({}, True), ({"strides": (2, 2)}, False), ({"dilations": (2, 2)}, False), ({"kernel": (1, 3)}, False),
     ({"group": 2}, False), ({"pads": (3, 0, 0, 0)}, False)],
)  # fmt: skip
def test_what_it_takes(changes: dict[str, object], fits: bool) -> None:
    fields = {
        "batch": 8, "lanes": 8, "size": (8, 8), "out_size": (8, 8), "kernel": (3, 3), "strides": (1, 1),
        "dilations": (1, 1), "pads": (1, 1, 1, 1), "group": 1,
    }  # fmt: skip
    geometry = Geometry(**(fields | changes))  # type: ignore[arg-type]
    assert Winograd.fits(geometry, 16, 16) is fits
    assert not Winograd.fits(geometry, 8, 64)
