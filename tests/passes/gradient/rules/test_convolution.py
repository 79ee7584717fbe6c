from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import DType, Graph
from onnxslim.runtime.capabilities import capabilities
from passes.gradient import differentiate
from passes.gradient.rules import convolution

KERNELS = pytest.mark.parametrize(
    "kernels",
    [
        pytest.param(True, marks=pytest.mark.skipif(not capabilities().has_training_kernels, reason="plain runtime")),
        False,
    ],
    ids=["kernels", "plain"],
)


def conv(x: np.ndarray, w: np.ndarray, pads: Any, strides: Any, dilations: Any, group: int) -> np.ndarray:
    """Y = X ∗ W in float64, tap by tap."""
    rank = w.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:])])
    sizes = [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], w.shape[2:], strides, dilations)]
    y = np.zeros((len(x), group, len(w) // group, *sizes))
    blocks = w.reshape(group, len(w) // group, *w.shape[1:])
    for tap in np.ndindex(*w.shape[2:]):
        cut = [slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, dilations, sizes, strides)]
        part = x[(slice(None), slice(None), *cut)].reshape(len(x), group, w.shape[1], *sizes)
        y += np.einsum("ngi...,goi->ngo...", part, blocks[(..., *tap)])
    return y.reshape(len(x), len(w), *sizes)


def conv_transpose(
    x: np.ndarray, w: np.ndarray, shape: Any, pads: Any, strides: Any, dilations: Any, group: int
) -> np.ndarray:
    """The transpose of `conv` as a linear map, in float64, tap by tap; `shape` is Y's."""
    rank = w.ndim - 2
    y = np.zeros((len(x), group, w.shape[1], *[n + a + b for n, a, b in zip(shape[2:], pads[:rank], pads[rank:])]))
    y = np.pad(y, [(0, 0)] * 3 + [(0, s + k * d) for s, k, d in zip(strides, w.shape[2:], dilations)])  # unread rest
    blocks = w.reshape(group, len(w) // group, *w.shape[1:])
    images = x.reshape(len(x), group, -1, *x.shape[2:])
    for tap in np.ndindex(*w.shape[2:]):
        cut = [slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, dilations, x.shape[2:], strides)]
        y[(slice(None), slice(None), slice(None), *cut)] += np.einsum("ngi...,gio->ngo...", images, blocks[(..., *tap)])
    inner = [slice(a, a + n) for a, n in zip(pads[:rank], shape[2:])]
    return y[(slice(None), slice(None), slice(None), *inner)].reshape(shape)


def test_every_rule_has_a_case() -> None:
    assert sorted(convolution.RULES) == ["Conv", "ConvTranspose"]


@st.composite
def geometries(draw: st.DrawFn, rank: int = 2) -> dict[str, Any]:
    def each(low: int, high: int, count: int = rank) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    return {"kernel": each(1, 3), "strides": each(1, 3), "dilations": each(1, 2), "pads": each(0, 2, 2 * rank)}


def run_conv(
    check: Callable, spaced: Callable, size: Any, geometry: dict[str, Any], *, kernels: bool,
    group: int = 1, inside: int = 2, outside: int = 2, bias: bool = True, batch: int = 2, wrt: Any = None,
) -> None:  # fmt: skip
    kernel = geometry["kernel"]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, geometry["dilations"])]
    rank = len(kernel)
    size = [max(n, r - a - b) for n, r, a, b in zip(size, reach, geometry["pads"][:rank], geometry["pads"][rank:])]
    x = spaced((batch, group * inside, *size), 1)
    w = spaced((group * outside, inside, *kernel), 2)
    inputs = [x, w] + ([spaced((group * outside,), 3)] if bias else [])
    attributes = {k: geometry[k] for k in ("pads", "strides", "dilations")}

    def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        y = conv(x, w, group=group, **attributes)
        return (y if b is None else y + b.reshape(-1, *[1] * rank)).reshape(-1)

    slots = list(range(len(inputs))) if wrt is None else wrt
    check("Conv", inputs, slots, forward=forward, kernels=kernels, group=group, **attributes)


@KERNELS
@settings(max_examples=40)
@given(
    geometry=geometries(),
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
    channels=st.sampled_from([(1, 2, 3), (2, 2, 1), (3, 1, 1), (2, 1, 2), (1, 1, 1), (4, 1, 1)]),
    bias=st.booleans(),
)
def test_conv(
    kernels: bool, geometry: dict[str, Any], size: Any, channels: Any, bias: bool, check: Callable, spaced: Callable
) -> None:
    group, inside, outside = channels
    run_conv(
        check, spaced, size, geometry, kernels=kernels, group=group, inside=inside, outside=outside, bias=bias
    )  # fmt: skip


def geometry(kernel: int, stride: int = 1, pad: int = 0, dilation: int = 1) -> dict[str, Any]:
    return {"kernel": [kernel] * 2, "strides": [stride] * 2, "dilations": [dilation] * 2, "pads": [pad] * 4}


@KERNELS
@pytest.mark.parametrize("wrt", [[0], [1], [2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize(
    "shape, group",
    [
        (geometry(1), 1),
        (geometry(1, stride=2), 1),
        (geometry(1, pad=1), 1),
        (geometry(3, pad=1), 1),
        (geometry(3, stride=2, pad=1), 1),
        (geometry(3, pad=1), 4),
        (geometry(3, stride=2, pad=1), 4),
        (geometry(5, pad=2), 4),
        (geometry(3, pad=2, dilation=2), 4),
        (geometry(3, pad=0), 1),
        (geometry(2, stride=2), 2),
    ],
    ids=str,
)
def test_usual_layers(
    shape: dict[str, Any], group: int, wrt: list[int], kernels: bool, check: Callable, spaced: Callable
) -> None:
    """Shapes that have a faster way of their own; odd sizes leave pixels unread at the end."""
    for size in ((8, 8), (7, 6)):
        channels = 1 if group == 4 else 3
        run_conv(
            check, spaced, size, shape,
            kernels=kernels, group=group, inside=channels, outside=channels, batch=3, wrt=wrt,
        )  # fmt: skip


@KERNELS
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("group", [1, 2])
def test_other_ranks(rank: int, group: int, kernels: bool, check: Callable, spaced: Callable) -> None:
    for stride in (1, 2):
        shape = {
            "kernel": [3, 2, 1][:rank],
            "strides": [stride] * rank,
            "dilations": [1] * rank,
            "pads": [1, 0, 0][:rank] * 2,
        }
        run_conv(check, spaced, (5, 4, 3)[:rank], shape, kernels=kernels, group=group)


@KERNELS
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_auto_pad(auto_pad: str, stride: int, kernels: bool, check: Callable, spaced: Callable) -> None:
    pads = {"SAME_UPPER": [0, 0, 1, 1], "SAME_LOWER": [1, 1, 0, 0], "VALID": [0] * 4}[auto_pad]
    kernel = 2 if stride == 1 else 3  # one pixel of padding either way: on the side that auto_pad chooses

    def forward(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return conv(x, w, pads, [stride] * 2, [1, 1], 1).reshape(-1)

    inputs = [spaced((2, 2, 6, 6), 1), spaced((3, 2, kernel, kernel), 2)]
    check("Conv", inputs, [0, 1], forward=forward, kernels=kernels, auto_pad=auto_pad, strides=[stride] * 2)


@KERNELS
@settings(max_examples=30)
@given(
    geometry=geometries(),
    size=st.tuples(st.integers(2, 4), st.integers(2, 4)),
    channels=st.sampled_from([(1, 2, 3), (2, 2, 1), (3, 1, 1), (2, 1, 2)]),
    extra=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_conv_transpose(
    kernels: bool, geometry: dict[str, Any], size: Any, channels: Any, extra: Any, check: Callable, spaced: Callable
) -> None:
    group, inside, outside = channels
    kernel, strides, dilations, pads = (geometry[k] for k in ("kernel", "strides", "dilations", "pads"))
    extra = [min(e, s - 1) for e, s in zip(extra, strides)]  # a whole stride would be another pixel of input
    full = [(n - 1) * s + (k - 1) * d + 1 + e for n, s, k, d, e in zip(size, strides, kernel, dilations, extra)]
    pads = [min(p, (f - 1) // 2) for p, f in zip(pads, full * 2)]
    shape = (2, group * outside, *[f - a - b for f, a, b in zip(full, pads[:2], pads[2:])])

    def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        y = conv_transpose(x, w, shape, pads, strides, dilations, group)
        return (y + b.reshape(-1, 1, 1)).reshape(-1)

    inputs = [
        spaced((2, group * inside, *size), 1),
        spaced((group * inside, outside, *kernel), 2),
        spaced((group * outside,), 3),
    ]
    check(
        "ConvTranspose", inputs, [0, 1, 2], forward=forward, kernels=kernels, group=group,
        pads=pads, strides=strides, dilations=dilations, output_padding=extra,
    )  # fmt: skip


def test_conv_transpose_with_derived_pads_is_refused() -> None:
    graph = Graph()
    x, w = graph.add_input("x", DType.FLOAT, (1, 1, 3, 3)), graph.add_input("w", DType.FLOAT, (1, 1, 3, 3))
    y = graph.op("ConvTranspose", x, w, name="up", output_shape=[6, 6], strides=[2, 2])
    graph.set_type(y, DType.FLOAT, (1, 1, 6, 6))
    loss = graph.op("ReduceSum", y, keepdims=0)
    graph.set_type(loss, DType.FLOAT, ())
    with pytest.raises(UnsupportedError, match=r"'up' \(ConvTranspose\).*output_shape"):
        differentiate(graph, loss, [x])
