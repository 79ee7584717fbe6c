"""`ToBlocked` and `ExpandBlocked`: dense convolutions with the channels in the vector lanes (NCHWc)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxslim.graph import DType, Graph, Node, Value
from onnxslim.ops import window
from onnxslim.rewrite import Context, Outcome, Pass
from passes.layout.geometry import Geometry, geometry_attributes

__all__ = ["ExpandBlocked", "ToBlocked"]

DOMAIN, RUNTIME = "onnxslim.blocked", "com.microsoft.nchwc"
_LONGEST = 2**14
"""Products that the kernel adds up one after the other: beyond, the sum is cut into parts, which keep more digits."""


@dataclass(frozen=True)
class ToBlocked(Pass):
    """Conv(x, w, b) → onnxslim.blocked.Conv(x, w) + b, where the runtime's blocked kernel is the faster one.

    Of two-dimensional convolutions of stride 1 with kernels over several pixels and full blocks of
    channels; others stay. `nodes`: ids of the nodes that may change (None: all). A constant weight stays
    too: ONNX Runtime arranges those by itself. Exact: the op means Conv.
    """

    lanes: int = 16
    nodes: frozenset[int] | None = None
    name: ClassVar[str] = "to_blocked"

    def run(self, graph: Graph, context: Context) -> Outcome:
        chosen = [n for n in graph.nodes() if n.op == "Conv" and not n.domain and self._fits(graph, n)]
        for node in chosen:
            x, w, y = graph.operand(node, 0), graph.operand(node, 1), graph.result(node)
            bias = graph.input(node, 2)
            attributes = geometry_attributes(graph, node, self.lanes)
            made = graph.op("Conv", x, w, name=f"{y.name}/blocked", domain=DOMAIN, **attributes)
            graph.set_type(made, DType.FLOAT, y.shape)
            if bias is not None:
                column = graph.op("Unsqueeze", bias, graph.add_constant("blocked/axes", np.array([1, 2])))
                made = graph.op("Add", made, column, name=f"{y.name}/biased")
                graph.set_type(made, DType.FLOAT, y.shape)
            graph.replace_uses(y, made)
            graph.remove_node(node)
        return Outcome(len(chosen))

    def _fits(self, graph: Graph, node: Node) -> bool:
        if self.nodes is not None and node.id not in self.nodes:
            return False
        x, w = graph.operand(node, 0), graph.operand(node, 1)
        if len(w.static_shape) != 4 or w.array is not None or x.dtype is not DType.FLOAT:
            return False
        geometry, (outs, inside, *kernel) = window(graph, node), w.static_shape
        reaches = [(k - 1) * d for k, d in zip(geometry.kernel, geometry.dilations)] * 2
        return (
            geometry.group == 1
            and set(geometry.strides) == {1}
            and max(kernel) > 1
            and outs % self.lanes == inside % self.lanes == 0
            and all(0 <= p <= r for p, r in zip(geometry.pads, reaches))
        )


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
        nodes = [n for n in graph.nodes() if n.domain == DOMAIN]
        for node in nodes:
            value = graph.result(node)
            made = expansion.of(node)
            graph.set_type(made, value.dtype, value.shape)
            graph.replace_uses(value, made)
            graph.remove_node(node)
        if nodes:
            graph.opsets.pop(DOMAIN, None)
        return Outcome(len(nodes))


class _Expansion:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.memo: dict[Any, Value] = {}
        self.base = ""

    def of(self, node: Node) -> Value:
        rules: dict[str, Callable[..., Value]] = {
            "Conv": self._conv,
            "ConvInputGrad": self._input_grad,
            "ConvWeightGrad": self._weight_grad,
        }
        self.base = self.graph.result(node).name
        return rules[node.op](Geometry.of(node), *(v for v in self.graph.node_inputs(node) if v is not None))

    def op(self, op: str, *inputs: Value, domain: str = "", **attributes: Any) -> Value:
        return self.graph.op(op, *inputs, name=f"{self.base}/{op}", domain=domain, **attributes)

    def const(self, array: Any) -> Value:
        return self.graph.add_constant("blocked/const", np.asarray(array, np.int64))

    def blocks(self, x: Value) -> Value:
        """[N, C, H, W] whose memory is [N, C/lanes, H, W, lanes]."""
        if x.id not in self.memo:
            self.memo[x.id] = self.op("ReorderInput", x, domain=RUNTIME)
        return self.memo[x.id]

    def _run(self, g: Geometry, x: Value, w: Value, pads: list[int], shape: list[int]) -> Value:
        y = self.op("Conv", self.blocks(x), w, domain=RUNTIME, pads=pads, dilations=list(g.dilations),
                    kernel_shape=list(g.kernel))  # fmt: skip
        batch, outs, height, width = shape
        if outs > g.lanes:
            return self.op("ReorderOutput", y, domain=RUNTIME, channels=outs)
        # One block of channels is one transposition an image, for which ONNX Runtime has a faster op.
        rows = self.op("Reshape", y, self.const([batch, height * width, outs]))
        return self.op("Reshape", self.op("Transpose", rows, perm=[0, 2, 1]), self.const(shape))

    def _kernel(self, w: Value, cut: list[int], table: Any, shape: list[int]) -> Value:
        """The weights, cut into matrices, as the kernel reads them: the columns of each, `lanes` numbers, are gathered.
        Two moves that ONNX Runtime has fast ways for, where a transposition of all axes takes a time a number."""
        columns = self.op("Transpose", self.op("Reshape", w, self.const(cut)), perm=[0, 2, 1])
        rows = self.op("Reshape", columns, self.const([-1, cut[1]]))
        return self.op("Reshape", self.op("Gather", rows, self.const(table.reshape(-1)), axis=0), self.const(shape))

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
        rows = self.op("Reshape", kernel, self.const([outs // g.lanes, g.lanes, -1]))
        kernel = self.op("Transpose", rows, perm=[0, 2, 1])
        step = max(1, _LONGEST // (g.lanes * g.out_size[1]))
        parts = [
            self._weight_grad_of(g, image, kernel, images, (outs, inside), range(start, min(start + step, height)))
            for start in range(0, height, step)
        ]
        summed = self.op("Sum", *parts) if len(parts) > 1 else parts[0]
        # [I, O/lanes, taps, lanes] → [O/lanes, lanes, I, taps]
        taps = self.op("Reshape", summed, self.const([inside, outs // g.lanes, g.taps * g.lanes]))
        rows = self.op("Transpose", taps, perm=[1, 0, 2])
        rows = self.op("Reshape", rows, self.const([outs // g.lanes, inside * g.taps, g.lanes]))
        return self.op("Reshape", self.op("Transpose", rows, perm=[0, 2, 1]), self.const(w.static_shape))

    def _weight_grad_of(
        self, g: Geometry, image: Value, kernel: Value, images: int, channels: tuple[int, int], rows: range
    ) -> Value:
        """What some rows of dY add to it: [I, O, kh, kw] in blocks of O."""
        outs, inside = channels
        (h, width), (ho, wo), lanes = g.size, g.out_size, g.lanes
        if len(rows) < ho:
            cut = self.op("Reshape", kernel, self.const([outs // lanes * images // lanes, ho, wo * lanes * lanes]))
            kernel = self.op("Slice", cut, self.const([rows.start]), self.const([rows.stop]), self.const([1]))
        # X's rows that these meet, and its columns with their padding, so that no output stands alone at a border.
        top, left, bottom, right = g.pads_across()
        top -= rows.start * g.strides[0]
        bottom -= (ho - rows.stop) * g.strides[0]
        ends = [0, min(top, 0), left * lanes, 0, min(bottom, 0), right * lanes]
        if any(ends):
            cut = self.op("Reshape", image, self.const([inside * images // lanes, h, width * lanes]))
            image = self.op("Pad", cut, self.const(ends))
        size = [h + ends[1] + ends[4], width + left + right]
        return self.op(
            "Conv", self.op("Reshape", image, self.const([inside, images, *size])),
            self.op("Reshape", kernel, self.const([outs, images, len(rows), wo])), domain=RUNTIME,
            pads=[max(top, 0), 0, max(bottom, 0), 0], strides=list(g.dilations), dilations=list(g.strides),
            kernel_shape=[len(rows), wo],
        )  # fmt: skip

    def _by_channel(self, x: Value, images: int) -> Value:
        """[N, C, H, W] → [C, images, H, W] whose memory is [C, images/lanes, H, W, lanes]; images beyond N are 0."""
        key = ("by channel", x.id)
        if key not in self.memo:
            batch = x.static_shape[0]
            padded = x if batch == images else self.op("Pad", x, self.const([0] * 4 + [images - batch, 0, 0, 0]))
            self.memo[key] = self.op("ReorderInput", self.op("Transpose", padded, perm=[1, 0, 2, 3]), domain=RUNTIME)
        return self.memo[key]
