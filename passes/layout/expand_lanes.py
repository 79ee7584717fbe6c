"""`ExpandLanes`: the ops of the lanes layout → what ONNX Runtime runs fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.ir.dialect import LANES
from onnxslim.ir.graph import Array, DType, Graph, Node, Value
from onnxslim.ir.rewrite import Context, Outcome, Pass
from passes.layout.builder import TypedBuilder
from passes.layout.geometry import Geometry
from passes.layout.winograd import Winograd

__all__ = ["ExpandLanes"]

RUNTIME = "com.microsoft.nchwc"


@dataclass(frozen=True)
class ExpandLanes(Pass):
    """lanes.Conv, ConvInputGrad, ConvWeightGrad, MaxPool, MaxPoolGrad → Gemm, Gather, nchwc.Conv, elementwise.

    A pixel of `lanes` images is a row of memory. Convolutions gather the rows that meet each tap, with
    a row of zeros for the padding, and are then one matrix product (one a group); what the way back
    gathers again is gathered once. Pointwise ones need no gathering. Depthwise ones are ONNX Runtime's
    blocked convolution, whose block of channels is here one of images: `blocked` says that the runtime
    has it, else they are products too.

    Contract: what reordering float32 sums explains.
    """

    blocked: bool = True
    name: ClassVar[str] = "expand_lanes"

    def run(self, graph: Graph, context: Context) -> Outcome:
        expansion = _Expansion(graph, self.blocked)
        nodes = [n for n in graph.nodes() if n.domain == LANES]
        for node in nodes:
            value = graph.result(node)
            made = expansion.of(node)
            graph.set_type(made, value.dtype, value.shape)
            graph.replace_uses(value, made)
            graph.remove_node(node)
        if nodes:
            graph.opsets.pop(LANES, None)
        return Outcome(len(nodes))


class _Expansion(TypedBuilder):
    """The new nodes; what several ops gather alike is gathered once."""

    def __init__(self, graph: Graph, blocked: bool) -> None:
        super().__init__(graph)
        self.blocked = blocked

    def of(self, node: Node) -> Value:
        """What the node computes."""
        rules: dict[str, Callable[..., Value]] = {
            "Conv": self._conv,
            "ConvInputGrad": self._input_grad,
            "ConvWeightGrad": self._weight_grad,
            "MaxPool": self._max_pool,
            "MaxPoolGrad": self._max_pool_grad,
        }
        self.base = self.graph.result(node).name
        inputs = [v for v in self.graph.node_inputs(node) if v is not None]
        return rules[node.op](Geometry.of(node), *inputs)

    # ------------------------------------------------------------------ rows of memory

    def rows_of(self, x: Value, table: Array, lanes: int, rows: int, fill: float = 0.0) -> Value:
        """x [channels, rows·lanes] → [channels, table.size·lanes]; the row number `rows` is one of `fill`."""
        padded = bool((table == rows).any())

        def cut() -> Value:
            made = self.reshape(x, -1, rows, lanes)
            return self.pad(made, [0, 0, 0, 0, 1, 0], fill) if padded else made

        source = self.once(("rows", x.id, rows, lanes, padded, fill), cut)

        def gathered() -> Value:
            found = self.gather(source, table, axis=1)
            return self.reshape(found, source.static_shape[0], table.size * lanes)

        return self.once(("gather", source.id, table.tobytes()), gathered)

    def scatter(self, taps: Value, g: Geometry) -> Value:
        """[channels, taps·P'], a value a tap and output pixel, added up at the input pixels they read."""
        back, nothing = g.table_back(), g.taps * g.out_rows
        reads = np.where(back == g.out_rows, nothing, back + np.arange(g.taps)[:, None] * g.out_rows)
        reads = np.sort(reads, axis=0)  # those of an input row come first, whichever taps they are
        rows = [row for row in reads if (row < nothing).any()] or reads[:1]
        return self.total([self.rows_of(taps, row, g.lanes, nothing) for row in rows])

    # ------------------------------------------------------------------ convolutions

    def _conv(self, g: Geometry, x: Value, w: Value) -> Value:
        outs, inside = w.static_shape[:2]
        if self._is_depthwise(g, w):
            return self._blocked(g, x, self._over_images(g, w), g.pads, g.strides, g.dilations, g.kernel)
        if Winograd.fits(g, outs, inside):
            return Winograd(self, g, outs, inside).forward(x, w)
        columns = self._columns(g, x)
        if g.group == 1:
            return self.matmul(self.reshape(w, outs, inside * g.taps), columns)
        product = self.matmul(
            self.reshape(w, g.group, outs // g.group, inside * g.taps),
            self.reshape(columns, g.group, inside * g.taps, -1),
        )
        return self.reshape(product, outs, -1)

    def _input_grad(self, g: Geometry, dy: Value, w: Value) -> Value:
        outs, inside = w.static_shape[:2]
        if self._is_depthwise(g, w):
            return self._depthwise_input_grad(g, dy, w)
        if Winograd.fits(g, outs, inside):
            return Winograd(self, g, outs, inside).input_grad(dy, w)
        if g.group == 1 and (g.taps == 1 or set(g.strides) != {1}):
            taps = self.gemm(self.reshape(w, outs, inside * g.taps), dy, trans_a=True)
            if g.is_pointwise:
                return taps
            return self.scatter(self.reshape(taps, inside, -1), g)
        columns = self.rows_of(dy, g.table_back(), g.lanes, g.out_rows)
        columns = self.reshape(columns, outs * g.taps, g.rows * g.lanes)
        cut = self.reshape(w, g.group, outs // g.group, inside, g.taps)
        turned = self.transpose(cut, [0, 2, 1, 3])
        if g.group == 1:
            return self.matmul(self.reshape(turned, inside, outs * g.taps), columns)
        per_group = outs // g.group * g.taps
        product = self.matmul(
            self.reshape(turned, g.group, inside, per_group), self.reshape(columns, g.group, per_group, -1)
        )
        return self.reshape(product, g.group * inside, -1)

    def _weight_grad(self, g: Geometry, x: Value, dy: Value, w: Value) -> Value:
        outs, inside = w.static_shape[:2]
        if self._is_depthwise(g, w):
            return self._depthwise_weight_grad(g, x, dy, w)
        if Winograd.fits(g, outs, inside):
            return Winograd(self, g, outs, inside).weight_grad(x, dy)
        columns = self._columns(g, x)
        if g.group == 1:
            product = self.gemm(dy, columns, trans_b=True)
        else:
            turned = self.transpose(self.reshape(columns, g.group, inside * g.taps, -1), [0, 2, 1])
            product = self.matmul(self.reshape(dy, g.group, outs // g.group, -1), turned)
        return self.reshape(product, *w.static_shape)

    def _columns(self, g: Geometry, x: Value) -> Value:
        """[I·taps, P']: under each channel its taps."""
        if g.is_pointwise:
            return x
        gathered = self.rows_of(x, g.table(), g.lanes, g.rows)
        return self.reshape(gathered, x.static_shape[0] * g.taps, g.out_rows * g.lanes)

    # ------------------------------------------------------------------ depthwise: a block of channels is one of images

    def _is_depthwise(self, g: Geometry, w: Value) -> bool:
        whole = min(*g.pads_back(), *g.pads_across()) >= 0
        return self.blocked and whole and g.group > 1 and w.static_shape[:2] == (g.group, 1)

    def _blocked(
        self,
        g: Geometry,
        x: Value,
        w: Value,
        pads: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int],
        kernel: Sequence[int],
        size: Sequence[int] | None = None,
    ) -> Value:
        """The depthwise convolution of [C, P]; w holds [C·N, 1, kernel] with images in the lanes."""
        planes = g.group * g.batch
        image = self.reshape(x, 1, planes, *(size or g.size))
        spans = zip(size or g.size, kernel, strides, dilations, pads[:2], pads[2:])
        made = [(d + begin + end - (k - 1) * apart - 1) // stride + 1 for d, k, stride, apart, begin, end in spans]
        y = self.op(
            "Conv", image, w, shape=[1, planes, *made], domain=RUNTIME, group=planes, pads=list(pads),
            strides=list(strides), dilations=list(dilations), kernel_shape=list(kernel),
        )  # fmt: skip
        return self.reshape(y, g.group, -1)

    def _over_images(self, g: Geometry, w: Value, turned: bool = False) -> Value:
        """[C, 1, kh, kw] → [C·N, 1, kh, kw] whose memory is [C, N/lanes, taps, lanes]: every image its copy."""

        def make() -> Value:
            copies = self._each_tap_to_its_images(g)
            table = self.const(copies[::-1] if turned else copies, np.float32)
            made = self.matmul(self.reshape(w, g.group, g.taps), table)
            return self.reshape(made, g.group * g.batch, 1, *g.kernel)

        return self.once(("images", w.id, turned, g.blocks), make)

    def _each_tap_to_its_images(self, g: Geometry) -> Array:
        """[taps, N/lanes · taps · lanes] of ones and zeros: a product with it copies a row, exactly."""
        one = np.eye(g.taps, dtype=np.float32)[:, None, :, None]
        return np.broadcast_to(one, (g.taps, g.blocks, g.taps, g.lanes)).reshape(g.taps, -1)

    def _depthwise_input_grad(self, g: Geometry, dy: Value, w: Value) -> Value:
        """The convolution of dY, zeros between its pixels where the stride left some out, with the kernel turned."""
        weights, pads, size = self._over_images(g, w, turned=True), g.pads_back(), list(g.out_size)
        if set(g.strides) != {1}:
            after = [stride - 1 for stride in g.strides]
            pixels = self.reshape(dy, g.group * g.blocks * size[0], 1, size[1], g.lanes)
            dy = self.pad(pixels, [0] * 5 + [after[0], 0, after[1] * g.lanes])
            size = [o * stride for o, stride in zip(size, g.strides)]
            # Zeros after the last pixel are of the padding, as far as there is any.
            extra = [min(end - a, 0) for end, a in zip(pads[2:], after)]
            pads = [*pads[:2], *(max(end - a, 0) for end, a in zip(pads[2:], after))]
            if any(extra):
                rows = self.reshape(dy, g.group * g.blocks, size[0], size[1] * g.lanes)
                dy = self.pad(rows, [0] * 4 + [extra[0], extra[1] * g.lanes])
                size = [a + b for a, b in zip(size, extra)]
        return self._blocked(g, dy, weights, pads, (1, 1), g.dilations, g.kernel, size)

    def _depthwise_weight_grad(self, g: Geometry, x: Value, dy: Value, w: Value) -> Value:
        """The convolution of X with dY as its kernel, strides and dilations exchanged, summed over images."""
        kernel = self.reshape(dy, g.group * g.batch, 1, *g.out_size)
        made = self._blocked(g, x, kernel, g.pads_across(), g.dilations, g.strides, g.out_size)
        parts = self.reshape(made, g.group, g.blocks * g.taps * g.lanes)
        over_images = self.const(self._each_tap_to_its_images(g).T, np.float32)
        return self.reshape(self.matmul(parts, over_images), *w.static_shape)

    # ------------------------------------------------------------------ pools

    def _taps(self, g: Geometry, x: Value) -> list[Value]:
        """What each tap of the window reads, [C, P']; the padding is below every number."""
        table, lowest = g.table(), float(np.finfo(np.float32).min)
        return [self.rows_of(x, row, g.lanes, g.rows, lowest) for row in table]

    def _max_pool(self, g: Geometry, x: Value) -> Value:
        taps = self._taps(g, x)
        return self.each("Max", *taps) if len(taps) > 1 else taps[0]

    def _max_pool_grad(self, g: Geometry, x: Value, y: Value, dy: Value) -> Value:
        """Tap by tap: the first that is the maximum takes the gradient; what is left goes on."""
        left, parts = dy, []
        for number, tap in enumerate(self._taps(g, x)):
            hit = self.each("Cast", self.each("Equal", tap, y, dtype=DType.BOOL), to=int(DType.FLOAT))
            parts.append(self.each("Mul", left, hit))
            if number + 1 < g.taps:
                left = self.each("Sub", left, parts[-1])
        channels, pixels = y.static_shape
        return self.scatter(self.op("Concat", *parts, shape=[channels, g.taps * pixels], axis=1), g)
