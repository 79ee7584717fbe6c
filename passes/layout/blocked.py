"""`ToBlocked` and `ExpandBlocked`: dense convolutions with the channels in the vector lanes (NCHWc)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxslim.ir.dialect import BLOCKED
from onnxslim.ir.graph import DType, Graph, Node, Value
from onnxslim.ir.ops import window
from onnxslim.ir.rewrite import Context, Outcome, Pass, Refusal
from passes.layout.builder import TypedBuilder, is_static
from passes.layout.geometry import Geometry, geometry_attributes

__all__ = ["ExpandBlocked", "ToBlocked"]

RUNTIME = "com.microsoft.nchwc"
_LONGEST = 2**14
"""Products that the kernel adds up one after the other: beyond, the sum is cut into parts, which keep more digits."""


@dataclass(frozen=True)
class ToBlocked(Pass):
    """Conv(x, w, b) → onnxslim.blocked.Conv(x, w) + b, where the runtime's blocked kernel is the faster one.

    Of two-dimensional convolutions of stride 1 with kernels over several pixels and full blocks of
    channels; others stay. `nodes`: ids of the nodes that may change (None: all). A constant weight stays
    too: ONNX Runtime arranges those by itself. Each that stays is refused by name. Exact: the op means Conv.
    """

    lanes: int = 16
    nodes: frozenset[int] | None = None
    name: ClassVar[str] = "to_blocked"

    def run(self, graph: Graph, context: Context) -> Outcome:
        convolutions = [n for n in graph.nodes() if n.op == "Conv" and not n.domain and self._may_change(n)]
        reasons = {node.id: self._obstacle(graph, node) for node in convolutions}
        chosen = [node for node in convolutions if reasons[node.id] is None]
        builder = TypedBuilder(graph)
        for node in chosen:
            x, w, y = graph.operand(node, 0), graph.operand(node, 1), graph.result(node)
            bias, shape = graph.input(node, 2), y.static_shape
            attributes = geometry_attributes(graph, node, self.lanes)
            made = builder.op("Conv", x, w, shape=shape, name=f"{y.name}/blocked", domain=BLOCKED, **attributes)
            if bias is not None:
                column = builder.reshape(bias, -1, 1, 1, name=f"{y.name}/column")
                made = builder.op("Add", made, column, shape=shape, name=f"{y.name}/biased")
            graph.replace_uses(y, made)
            graph.remove_node(node)
        stay = [(str(node), reasons[node.id]) for node in convolutions]
        return Outcome(len(chosen), tuple(Refusal(where, f"stays as it is: {why}") for where, why in stay if why))

    def _may_change(self, node: Node) -> bool:
        return self.nodes is None or node.id in self.nodes

    def _obstacle(self, graph: Graph, node: Node) -> str | None:
        """Why a convolution does not run in blocks; None where it does."""
        x, w, y = graph.operand(node, 0), graph.operand(node, 1), graph.result(node)
        if not all(is_static(value) for value in (x, w, y)):
            return "its shapes are not known"
        if len(w.static_shape) != 4 or x.dtype is not DType.FLOAT:
            return "it is not over two axes in float32"
        if w.array is not None:
            return "its weight is constant"
        geometry, (outs, inside, *kernel) = window(graph, node), w.static_shape
        if geometry.group != 1 or set(geometry.strides) != {1} or max(kernel) == 1:
            return "blocks are for dense kernels over several pixels, with stride 1"
        if outs % self.lanes or inside % self.lanes:
            return f"{inside} to {outs} channels are no full blocks of {self.lanes}"
        reaches = [(k - 1) * d for k, d in zip(geometry.kernel, geometry.dilations)] * 2
        if not all(0 <= p <= r for p, r in zip(geometry.pads, reaches)):
            return "some of its windows read nothing but padding"
        return None


@dataclass(frozen=True)
class ExpandBlocked(Pass):
    """blocked.Conv, ConvInputGrad, ConvWeightGrad → ReorderInput, nchwc.Conv, ReorderOutput.

    An image or gradient is rearranged once for all that read it. The weights' gradient is a blocked
    convolution too: of X with dY for its kernel, where the images, which are summed over, take the place of
    the channels.

    Contract: what reordering float32 sums explains.
    """

    name: ClassVar[str] = "expand_blocked"

    def run(self, graph: Graph, context: Context) -> Outcome:
        expansion = _Expansion(graph)
        nodes = [n for n in graph.nodes() if n.domain == BLOCKED]
        for node in nodes:
            value = graph.result(node)
            made = expansion.of(node)
            graph.set_type(made, value.dtype, value.shape)
            graph.replace_uses(value, made)
            graph.remove_node(node)
        if nodes:
            graph.opsets.pop(BLOCKED, None)
        return Outcome(len(nodes))


class _Expansion(TypedBuilder):
    def of(self, node: Node) -> Value:
        rules: dict[str, Callable[..., Value]] = {
            "Conv": self._conv,
            "ConvInputGrad": self._input_grad,
            "ConvWeightGrad": self._weight_grad,
        }
        self.base = self.graph.result(node).name
        return rules[node.op](Geometry.of(node), *(v for v in self.graph.node_inputs(node) if v is not None))

    def blocks(self, x: Value) -> Value:
        """[N, C, H, W] whose memory is [N, C/lanes, H, W, lanes]."""
        return self.once(("blocks", x.id), lambda: self.op("ReorderInput", x, shape=x.static_shape, domain=RUNTIME))

    def _run(self, g: Geometry, x: Value, w: Value, pads: list[int], shape: list[int]) -> Value:
        y = self.op("Conv", self.blocks(x), w, shape=shape, domain=RUNTIME, pads=pads, dilations=list(g.dilations),
                    kernel_shape=list(g.kernel))  # fmt: skip
        batch, outs, height, width = shape
        if outs > g.lanes:
            return self.op("ReorderOutput", y, shape=shape, domain=RUNTIME, channels=outs)
        # One block of channels is one transposition an image, for which ONNX Runtime has a faster op.
        rows = self.reshape(y, batch, height * width, outs)
        return self.reshape(self.transpose(rows, [0, 2, 1]), *shape)

    def _kernel(self, w: Value, cut: list[int], table: Any, shape: list[int]) -> Value:
        """The weights, cut into matrices, as the kernel reads them: the columns of each, `lanes` numbers, are gathered.
        Two moves that ONNX Runtime has fast ways for, where a transposition of all axes takes a time a number."""
        columns = self.transpose(self.reshape(w, *cut), [0, 2, 1])
        rows = self.reshape(columns, -1, cut[1])
        return self.reshape(self.gather(rows, table), *shape)

    def _conv(self, g: Geometry, x: Value, w: Value) -> Value:
        outs, inside = w.static_shape[:2]
        rows = np.arange(outs * inside * g.taps // g.lanes).reshape(outs // g.lanes, -1, g.lanes, g.taps)
        cut = [outs // g.lanes, g.lanes, inside * g.taps]
        kernel = self._kernel(w, cut, rows.transpose(0, 1, 3, 2), [outs, inside, *g.kernel])
        return self._run(g, x, kernel, list(g.pads), [g.batch, outs, *g.out_size])

    def _input_grad(self, g: Geometry, dy: Value, w: Value) -> Value:
        """The convolution of dY with the kernel turned round, inputs and outputs exchanged."""
        outs, inside = w.static_shape[:2]
        rows = np.arange(outs * inside * g.taps // g.lanes).reshape(outs // g.lanes, g.lanes, -1, g.taps)
        cut = [outs * inside // g.lanes, g.lanes, g.taps]
        kernel = self._kernel(w, cut, rows.transpose(2, 0, 3, 1)[:, :, ::-1], [inside, outs, *g.kernel])
        return self._run(g, dy, kernel, g.pads_back(), [g.batch, inside, *g.size])

    def _weight_grad(self, g: Geometry, x: Value, dy: Value, w: Value) -> Value:
        """The convolution of X with dY as its kernel, images for channels, strides and dilations exchanged."""
        (outs, inside), height = w.static_shape[:2], g.out_size[0]
        images = -(-g.batch // g.lanes) * g.lanes
        image = self._by_channel(x, images)
        kernel = self._by_channel(dy, images)
        # [O/lanes, lanes, ...] → [O/lanes, ..., lanes]
        kernel = self.transpose(self.reshape(kernel, outs // g.lanes, g.lanes, -1), [0, 2, 1])
        step = max(1, _LONGEST // (g.lanes * g.out_size[1]))
        parts = [
            self._weight_grad_of(g, image, kernel, images, (outs, inside), range(start, min(start + step, height)))
            for start in range(0, height, step)
        ]
        # [I, O/lanes, taps, lanes] → [O/lanes, lanes, I, taps]
        taps = self.reshape(self.total(parts), inside, outs // g.lanes, g.taps * g.lanes)
        rows = self.reshape(self.transpose(taps, [1, 0, 2]), outs // g.lanes, inside * g.taps, g.lanes)
        return self.reshape(self.transpose(rows, [0, 2, 1]), *w.static_shape)

    def _weight_grad_of(
        self, g: Geometry, image: Value, kernel: Value, images: int, channels: tuple[int, int], rows: range
    ) -> Value:
        """What some rows of dY add to it: [I, O, kh, kw] in blocks of O."""
        outs, inside = channels
        (h, width), (ho, wo), lanes = g.size, g.out_size, g.lanes
        if len(rows) < ho:
            cut = self.reshape(kernel, outs // lanes * images // lanes, ho, wo * lanes * lanes)
            bounds = [self.const([at]) for at in (rows.start, rows.stop, 1)]
            kernel = self.op("Slice", cut, *bounds, shape=[cut.static_shape[0], len(rows), wo * lanes * lanes])
        # X's rows that these meet, and its columns with their padding, so that no output stands alone at a border.
        top, left, bottom, right = g.pads_across()
        top -= rows.start * g.strides[0]
        bottom -= (ho - rows.stop) * g.strides[0]
        ends = [0, min(top, 0), left * lanes, 0, min(bottom, 0), right * lanes]
        if any(ends):
            image = self.pad(self.reshape(image, inside * images // lanes, h, width * lanes), ends)
        size = [h + ends[1] + ends[4], width + left + right]
        return self.op(
            "Conv", self.reshape(image, inside, images, *size), self.reshape(kernel, outs, images, len(rows), wo),
            shape=[inside, outs, *g.kernel], domain=RUNTIME, pads=[max(top, 0), 0, max(bottom, 0), 0],
            strides=list(g.dilations), dilations=list(g.strides), kernel_shape=[len(rows), wo],
        )  # fmt: skip

    def _by_channel(self, x: Value, images: int) -> Value:
        """[N, C, H, W] → [C, images, H, W] whose memory is [C, images/lanes, H, W, lanes]; images beyond N are 0."""

        def make() -> Value:
            batch = x.static_shape[0]
            padded = x if batch == images else self.pad(x, [0] * 4 + [images - batch, 0, 0, 0])
            turned = self.transpose(padded, [1, 0, 2, 3])
            return self.op("ReorderInput", turned, shape=turned.static_shape, domain=RUNTIME)

        return self.once(("by channel", x.id), make)
