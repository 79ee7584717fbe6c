"""Convolutions.

With the training wheel, dW comes from its ConvGrad kernel; dX is a convolution of dY wherever that
is exact, which is faster than ConvGrad's. Without, dW is a convolution too: the images become the
channels that are summed over, and dY the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxslim.errors import GradientError
from onnxslim.ir.graph import Value
from onnxslim.ir.ops import Window, window
from passes.gradient.tape import Rule, Tape

__all__ = ["RULES"]

Gradients = Sequence[Value | None]


def _conv(t: Tape) -> Gradients:
    """Y = X ∗ W + b."""
    geometry = window(t.graph, t.node)
    spatial = list(range(2, len(t.shape())))
    db = t.sum(t.sum(t.dy, spatial), [0]) if t.wants(2) else None
    dx = dw = None
    if t.options.training_kernels and len(spatial) == 2:
        if t.wants(0) and set(geometry.strides) == {1}:
            dx = _input_gradient(t, t.dy, t.x(1), geometry, t.shape())
        wanted = [t.wants(0) and dx is None, t.wants(1), False]
        if any(wanted):
            names = [name if want else None for name, want in zip(("dx", "dw"), wanted)]
            attributes = geometry.attributes() | {"group": geometry.group}
            made = t.node_of("ConvGrad", [t.dy, t.x(0), t.x(1)], names, "com.microsoft", **attributes)
            t.graph.opsets.setdefault("com.microsoft", 1)
            found = t.graph.node_outputs(made)
            dx, dw = dx or found[0], found[1]
        return [dx, dw, db]
    if t.wants(0):
        dx = _input_gradient(t, t.dy, t.x(1), geometry, t.shape())
    if t.wants(1):
        dw = _weight_gradient(t, t.x(0), t.dy, geometry, t.shape(1))
    return [dx, dw, db]


def _input_gradient(t: Tape, dy: Value, w: Value, geometry: Window, shape: Sequence[int]) -> Value:
    """dX = ConvTranspose(dY, W); at stride 1 the convolution with the kernel turned round, which ONNX
    Runtime runs faster."""
    size, out = shape[2:], dy.static_shape[2:]
    rank, group = len(size), geometry.group
    begins, ends = geometry.pads[:rank], geometry.pads[rank:]
    reach = [(k - 1) * d for k, d in zip(geometry.kernel, geometry.dilations)]
    if set(geometry.strides) == {1}:
        turned = _turned(t, w, group, rank)
        new_begins = [r - b for r, b in zip(reach, begins)]
        new_ends = [s - o - nb + r for s, o, nb, r in zip(size, out, new_begins, reach)]
        if min(*new_begins, *new_ends) >= 0:
            return t.op(
                "Conv", dy, turned, pads=[*new_begins, *new_ends], dilations=list(geometry.dilations),
                group=group, kernel_shape=list(geometry.kernel), strides=[1] * rank,
            )  # fmt: skip
    padding = [
        s - ((o - 1) * st + r + 1 - b - e)
        for s, o, st, r, b, e in zip(size, out, geometry.strides, reach, begins, ends)
    ]
    attributes: dict[str, Any] = {"group": group, "output_padding": padding, **geometry.attributes()}
    return t.op("ConvTranspose", dy, w, **attributes)


def _turned(t: Tape, w: Value, group: int, rank: int) -> Value:
    """W [O, I/g, k…] as the kernel of the way back: [I, O/g, k reversed]."""
    out, inside, *kernel = w.static_shape
    if any(k > 1 for k in kernel):
        axes = [2 + i for i, k in enumerate(kernel) if k > 1]
        w = t.op(
            "Slice",
            w,
            t.ints(*[-1] * len(axes)),
            t.ints(*[-(2**31)] * len(axes)),
            t.ints(*axes),
            t.ints(*[-1] * len(axes)),
        )
    if group > 1 and inside == 1 and out == group:
        return w  # depthwise: input and output channels are the same
    spatial = list(range(rank))
    if group == 1:
        return t.op("Transpose", w, perm=[1, 0, *(2 + s for s in spatial)])
    blocks = t.reshape(w, [group, out // group, inside, *kernel])
    swapped = t.op("Transpose", blocks, perm=[0, 2, 1, *(3 + s for s in spatial)])
    return t.reshape(swapped, [group * inside, out // group, *kernel])


def _weight_gradient(t: Tape, x: Value, dy: Value, geometry: Window, w_shape: Sequence[int]) -> Value:
    """dW[o, i] = Σₙ X[n, i] ∗ dY[n, o]: a convolution whose batch is the input channels, whose summed
    channels are the images, with strides and dilations exchanged. Grouped: one group a group."""
    n, channels, *size = x.static_shape
    outs, out_size = dy.static_shape[1], dy.static_shape[2:]
    group, rank = geometry.group, len(size)
    begins, ends = geometry.pads[:rank], geometry.pads[rank:]
    inside, outside = channels // group, outs // group
    # What the forward pass left unread at the end must stay unread: negative padding is a Slice.
    reach = [(k - 1) * d for k, d in zip(geometry.kernel, geometry.dilations)]
    used = [(o - 1) * s + r + 1 - b for o, s, r, b in zip(out_size, geometry.strides, reach, begins)]
    if min(used) <= 0:  # nothing but padding was read
        return t.const(np.zeros(w_shape))
    # [N, g, I, …] → [I, g·N, …] and [N, g, O, …] → [g·O, N, …]
    space = list(range(3, 3 + rank))
    images = t.op("Transpose", t.reshape(x, [n, group, inside, *size]), perm=[2, 1, 0, *space])
    kernels = t.op("Transpose", t.reshape(dy, [n, group, outside, *out_size]), perm=[1, 2, 0, *space])
    new_ends = [u - s for u, s in zip(used, size)]
    flat = t.reshape(images, [inside, group * n, *size])
    if any(e < 0 for e in new_ends):
        axes = list(range(2, 2 + rank))
        flat = t.op("Slice", flat, t.ints(*[0] * rank), t.ints(*[min(u, s) for u, s in zip(used, size)]), t.ints(*axes))
        new_ends = [max(e, 0) for e in new_ends]
    del ends
    product = t.op(
        "Conv", flat, t.reshape(kernels, [group * outside, n, *out_size]),
        group=group, pads=[*begins, *new_ends], strides=list(geometry.dilations),
        dilations=list(geometry.strides), kernel_shape=list(out_size),
    )  # fmt: skip
    perm = [1, 0, *range(2, 2 + rank)]
    return t.reshape(t.op("Transpose", product, perm=perm), w_shape)


def _conv_transpose(t: Tape) -> Gradients:
    """Y = ConvTranspose(X, W) + b is the way back of a convolution: its way back is that convolution."""
    geometry = window(t.graph, t.node)
    shape, out = t.shape(), t.y().static_shape
    spatial = list(range(2, len(shape)))
    rank = len(spatial)
    reach = [(k - 1) * d for k, d in zip(geometry.kernel, geometry.dilations)]
    if t.node.attr("output_shape") is not None or t.node.attr("auto_pad", "NOTSET") != "NOTSET":
        raise GradientError(f"{t.node}: output_shape and auto_pad have no gradient rule; give its pads instead")
    begins = geometry.pads[:rank]
    # Pads of the convolution from Y's size to X's: what reaches past the last window is left unread.
    ends = [
        max((i - 1) * s + r + 1 - b - o, 0)
        for i, s, r, b, o in zip(shape[2:], geometry.strides, reach, begins, out[2:])
    ]
    flat = Window(geometry.kernel, geometry.strides, (*begins, *ends), geometry.dilations, geometry.group)
    dx = dw = None
    if t.wants(0):
        attributes: dict[str, Any] = {"group": geometry.group, **flat.attributes()}
        dx = t.op("Conv", t.dy, t.x(1), **attributes)
    if t.wants(1):
        dw = _weight_gradient(t, t.dy, t.x(0), flat, t.shape(1))
    db = t.sum(t.sum(t.dy, spatial), [0]) if t.wants(2) else None
    return [dx, dw, db]


RULES: dict[str, Rule] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
