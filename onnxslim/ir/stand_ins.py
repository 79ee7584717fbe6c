"""Ops that ONNX's inference does not know, as ops that it does: what stands in for a node makes outputs of the same
types and shapes, and nothing more is asked of it.

One table, by domain and op. A rule that needs a rank that is not known yet gives nothing, and is asked again later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from onnx import NodeProto, helper

from onnxslim.ir.dialect import DIALECT, OwnOp
from onnxslim.ir.graph import DType, Graph, Node
from onnxslim.ir.op_facts import FACTS
from onnxslim.ir.ops import fused_order

__all__ = ["has_stand_in", "stand_in"]

_SPLIT_BY_INPUT, _SPLIT_BY_COUNT, _AXES_BY_INPUT = 13, 18, 18
"""The opsets from which Split's sizes are an input, the number of equal parts is an attribute, and the axes of ReduceL2
are an input."""
_BLOCK = 16
"""Channels side by side in ONNX Runtime's widest blocked kernels; the others' numbers divide it."""


@dataclass
class _StandIn:
    """A node, and the nodes that stand in for it."""

    graph: Graph
    node: Node
    nodes: list[NodeProto] = field(default_factory=list)

    def has(self, slot: int) -> bool:
        inputs = self.graph.node_inputs(self.node)
        return slot < len(inputs) and inputs[slot] is not None

    def x(self, slot: int = 0) -> str:
        """An input's name; "" where it is left out."""
        return self.graph.operand(self.node, slot).name if self.has(slot) else ""

    def rank(self, slot: int) -> int | None:
        shape = self.graph.operand(self.node, slot).shape
        return None if shape is None else len(shape)

    def op(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """Adds a node with outputs that nothing else is called."""
        base = next(v.name for v in self.graph.node_outputs(self.node) if v is not None)
        names = [f"{base}\n{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names

    def give(self, slot: int, value: str) -> None:
        """An output of the node has the type of a value; "" of one that is left out says nothing."""
        outputs = self.graph.node_outputs(self.node)
        target = outputs[slot] if slot < len(outputs) else None
        if target is not None and value:
            self.nodes.append(helper.make_node("Identity", [value], [target.name]))

    def kept(self, *names: str) -> dict[str, Any]:
        """Those attributes of the node that it has."""
        return {name: self.node.attr(name) for name in names if name in self.node.attributes}


Rule: TypeAlias = Callable[[_StandIn], None]


def _like_first(w: _StandIn) -> None:
    w.give(0, w.x())


def _quantized(w: _StandIn) -> None:
    """The first input's shape in the type of the zero point, which is uint8 where it is left out."""
    zero_point = w.graph.input(w.node, 2)
    dtype = DType.UINT8 if zero_point is None else zero_point.dtype
    if dtype is not DType.UNDEFINED:
        w.give(0, *w.op("Cast", w.x(), to=int(dtype)))


def _dequantized(w: _StandIn) -> None:
    """The first input's shape in the scale's type."""
    dtype = w.graph.operand(w.node, 1).dtype
    if dtype is not DType.UNDEFINED:
        w.give(0, *w.op("Cast", w.x(), to=int(dtype)))


def _skip_norm(w: _StandIn) -> None:
    """A norm of a sum; the sum is the fourth output. The statistics between them have one number a row."""
    row = w.op("ReduceL2", w.x(), keepdims=1, axes=[-1])[0] if w.graph.opset < _AXES_BY_INPUT else ""
    row = row or w.op("ReduceL2", w.x(), *w.op("Constant", value_ints=[-1]), keepdims=1)[0]
    for slot in (1, 2):
        w.give(slot, row)
    w.give(0, w.x())
    w.give(3, w.x())


def _biased(w: _StandIn) -> None:
    w.give(0, w.op("Add", w.x(), w.x(1))[0] if w.has(1) else w.x())


def _fused_conv(w: _StandIn) -> None:
    attributes = w.kept("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    w.give(0, w.op("Conv", w.x(), w.x(1), **attributes)[0])


def _reordered(w: _StandIn) -> None:
    """Into blocks of channels, and back: of as many channels as before, where they fill their blocks."""
    shape = w.graph.operand(w.node, 0).shape
    count = shape[1] if shape is not None and len(shape) == 4 else None
    full = isinstance(count, int) and not count % _BLOCK and w.node.attr("channels", count) == count
    if full and not w.node.attr("channels_last", 0):
        w.give(0, w.x())


def _conv_grad(w: _StandIn) -> None:
    """dX and dW of dY, X, W."""
    w.give(0, w.x(1))
    w.give(1, w.x(2))


def _fused_gemm(w: _StandIn) -> None:
    w.give(0, w.op("Gemm", w.x(), w.x(1), w.x(2), **w.kept("alpha", "beta", "transA", "transB"))[0])


def _fused_matmul(w: _StandIn) -> None:
    sides = []
    for slot in range(2):
        rank = w.rank(slot)
        if rank is None:
            return
        order = fused_order(w.node, slot, rank)
        sides.append(w.x(slot) if order == list(range(rank)) else w.op("Transpose", w.x(slot), perm=order)[0])
    w.give(0, w.op("MatMul", *sides)[0])


def _attention(w: _StandIn) -> None:
    """[B, S, I] times merged weights; a third of that, or as many as `qkv_hidden_sizes` says of V."""
    merged = w.op("MatMul", w.x(), w.x(1))[0]
    sizes = [int(size) for size in w.node.attr("qkv_hidden_sizes") or []]
    if sizes and w.graph.opset < _SPLIT_BY_INPUT:
        parts = w.op("Split", merged, outputs=3, axis=2, split=sizes)
    elif sizes:
        parts = w.op("Split", merged, *w.op("Constant", value_ints=sizes), outputs=3, axis=2)
    elif w.graph.opset < _SPLIT_BY_COUNT:
        parts = w.op("Split", merged, outputs=3, axis=2)
    else:
        parts = w.op("Split", merged, outputs=3, axis=2, num_outputs=3)
    w.give(0, parts[2])


def _own(own: OwnOp) -> Rule:
    """One of ours: the shape of one of its inputs, or the one that the dialect says."""

    def rule(w: _StandIn) -> None:
        if isinstance(own.result, int):
            w.give(0, w.x(own.result))
            return
        values = w.graph.node_inputs(w.node)
        shape = own.result_shape(w.node, [None if value is None else value.shape for value in values])
        if shape is not None:
            w.give(0, w.op("ConstantOfShape", *w.op("Constant", value_ints=list(shape)))[0])

    return rule


_RULES: Mapping[tuple[str, str], Rule] = {
    **{key: _own(own) for key, own in DIALECT.items()},
    **{key: _like_first for key, facts in FACTS.items() if key[0] and facts.is_like_first},
    **{key: _biased for key, facts in FACTS.items() if key[0] and facts.elementwise == "broadcast"},
    ("", "GroupNormalization"): _like_first,
    ("", "MeanVarianceNormalization"): _like_first,
    ("", "SimplifiedLayerNormalization"): _like_first,
    ("com.microsoft", "Attention"): _attention,
    ("com.microsoft", "ConvGrad"): _conv_grad,
    ("com.microsoft", "DequantizeLinear"): _dequantized,
    ("com.microsoft", "FusedConv"): _fused_conv,
    ("com.microsoft", "FusedGemm"): _fused_gemm,
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
    ("com.microsoft.nchwc", "Conv"): _fused_conv,
    ("com.microsoft.nchwc", "ReorderInput"): _reordered,
    ("com.microsoft.nchwc", "ReorderOutput"): _reordered,
    ("com.microsoft", "QuantizeLinear"): _quantized,
    ("com.microsoft", "SkipLayerNormalization"): _skip_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_norm,
}
"""What onnx infers nothing for, or by a definition that it does not follow to its end (ai.onnx's two norms)."""


def has_stand_in(domain: str, op: str) -> bool:
    """Whether the table has the op."""
    return (domain, op) in _RULES


def stand_in(graph: Graph, node: Node) -> Sequence[NodeProto]:
    """The nodes that stand in for one of the table; none where it cannot be known yet what it makes."""
    made = _StandIn(graph, node)
    _RULES[node.domain, node.op](made)
    return made.nodes
