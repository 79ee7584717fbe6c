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
    """blocked.Conv and ConvInputGrad → ReorderInput, nchwc.Conv, ReorderOutput; blocked.ConvWeightGrad → Gemm.

    An image or gradient is rearranged once for all that read it. The weights' gradient separates the
    kernel: X under its taps along W, dY under those along H, gathered as rows of one block of channels
    (with a row of zeros for the padding); one product then holds every pair of taps, none of it in vain.

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

    def _kernel(self, g: Geometry, w: Value, outs: int, inside: int, perm: list[int]) -> Value:
        """The weights as the kernel reads them: [to/lanes, from/lanes, kh, kw, from, to], `perm` says from where."""
        cut = [outs // g.lanes, g.lanes, inside // g.lanes, g.lanes, *g.kernel]
        turned = self.op("Transpose", self.op("Reshape", w, self.const(cut)), perm=perm)
        ends = [outs, inside] if perm[0] == 0 else [inside, outs]
        return self.op("Reshape", turned, self.const([*ends, *g.kernel]))

    def _conv(self, g: Geometry, x: Value, w: Value) -> Value:
        outs, inside = w.static_shape[:2]
        kernel = self._kernel(g, w, outs, inside, [0, 2, 4, 5, 3, 1])
        return self._run(g, x, kernel, list(g.pads), [g.batch, outs, *g.out_size])

    def _input_grad(self, g: Geometry, dy: Value, w: Value) -> Value:
        """The convolution of dY with the kernel turned round, inputs and outputs exchanged."""
        outs, inside = w.static_shape[:2]
        flat = self.op("Reshape", w, self.const([outs, inside, g.taps]))
        turned = self.op("Gather", flat, self.const(np.arange(g.taps)[::-1]), axis=2)
        kernel = self._kernel(g, turned, outs, inside, [2, 0, 4, 5, 1, 3])
        return self._run(g, dy, kernel, g.pads_back(), [g.batch, inside, *g.size])

    def _weight_grad(self, g: Geometry, x: Value, dy: Value, w: Value) -> Value:
        (outs, inside), (kh, kw) = w.static_shape[:2], g.kernel
        (h, width), (ho, wo) = g.size, g.out_size
        # Rows of memory of X [n, block, y, x] and of dY, for each pixel (n, y, x') of X's height and dY's width.
        across = np.arange(wo)[:, None] - g.pads[1] + np.arange(kw) * g.dilations[1]
        down = np.arange(h)[:, None] + g.pads[0] - np.arange(kh) * g.dilations[0]
        n = np.arange(g.batch)[:, None, None, None, None]
        y, x_ = np.arange(h)[None, :, None, None, None], across[None, None, :, :, None]
        blocks = np.arange(inside // g.lanes)
        rows = g.batch * (inside // g.lanes) * h * width
        table = ((n * len(blocks) + blocks) * h + y) * width + x_
        columns = self._rows(g, x, np.where((x_ >= 0) & (x_ < width), table, rows), rows, kw * inside)
        y_, x_ = down[None, :, None, :, None], np.arange(wo)[None, None, :, None, None]
        blocks = np.arange(outs // g.lanes)
        rows = g.batch * (outs // g.lanes) * ho * wo
        table = ((n * len(blocks) + blocks) * ho + y_) * wo + x_
        gradients = self._rows(g, dy, np.where((y_ >= 0) & (y_ < ho), table, rows), rows, kh * outs)
        product = self.op("Gemm", gradients, columns, transA=1)
        return self.op("Transpose", self.op("Reshape", product, self.const([kh, outs, kw, inside])), perm=[1, 3, 0, 2])

    def _rows(self, g: Geometry, x: Value, table: Any, rows: int, width: int) -> Value:
        cut = self.op("Reshape", self.blocks(x), self.const([rows, g.lanes]))
        padded = self.op("Pad", cut, self.const([0, 0, 1, 0]))
        return self.op(
            "Reshape", self.op("Gather", padded, self.const(table.reshape(-1)), axis=0), self.const([-1, width])
        )
