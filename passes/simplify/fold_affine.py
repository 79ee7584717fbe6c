"""`FoldAffine`: a factor or a summand for each channel becomes part of the layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.ir.graph import Array, Graph, Node
from onnxslim.ir.rewrite import Context, LocalPass
from onnxslim.spill import Spill
from passes.simplify.linear_layers import Linear, linear_layer, may_be_linear, scaled_weight, set_bias

__all__ = ["FoldAffine"]


@dataclass(frozen=True)
class FoldAffine(LocalPass):
    """Conv(x, w, b)·k  →  Conv(x, w·k, b·k)
    Conv(x, w, b) + c →  Conv(x, w, b + c)

    for constants with one value, or one a channel; so for Div and Sub, Gemm and ConvTranspose. Refuses, naming the
    node: a layer whose output is read elsewhere, whose weight is shared, computed or fake-quantised,
    and a factor that float32 weights cannot take.

    Contract: equal to 1e-5 of the largest output (float32 rounding of w·k).
    """

    name: ClassVar[str] = "fold_affine"
    ops: ClassVar[frozenset[str]] = frozenset({"Add", "Div", "Mul", "Sub"})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        found = _affine(graph, node)
        return 0 if found is None else _fold(graph, node, *found, context.room)


def _affine(graph: Graph, node: Node) -> tuple[Node, Array, int] | None:
    """The layer whose output the node reads, the constant beside it, and the layer's slot; None for anything else."""
    for slot in (0, 1):
        y, constant = graph.operand(node, slot), graph.constant_of(graph.operand(node, 1 - slot))
        producer = graph.producer(y)
        if producer is None or constant is None or constant.dtype.kind != "f":
            continue
        if not may_be_linear(producer):
            continue
        if node.op != "Div" or (slot == 0 and constant.all()):
            return producer, constant, slot
    return None


def _fold(graph: Graph, node: Node, producer: Node, constant: Array, slot: int, room: Spill) -> int | str:
    y = graph.result(producer)
    if len(graph.uses(y)) > 1 or graph.is_output(y):
        return f"the output of {producer} is read elsewhere too"
    layer = linear_layer(graph, producer)
    if isinstance(layer, str):
        return f"{producer} before it cannot take it: {layer}"
    if layer.fake_quant is not None:
        return f"the weight of {producer} is fake-quantised"
    number = _per_channel(layer, constant)
    if number is None:
        return "its constant has more than one value a channel"
    with np.errstate(all="ignore"):
        k, c = _factor_and_summand(node.op, number, slot)
        bias = layer.bias_array * k + c
    weight = layer.weight_array if (k == 1).all() else scaled_weight(layer, k, room)
    if weight is None or not (np.abs(bias) <= np.finfo(np.float32).max).all():
        return f"the weights of {producer} would overflow"
    if weight is not layer.weight_array:
        graph.set_array(layer.weight, weight)
    set_bias(graph, layer, bias)
    graph.replace_uses(graph.result(node), y)
    graph.remove_node(node)
    return 1


def _factor_and_summand(op: str, number: Array, slot: int) -> tuple[Array, Array]:
    """float64 [C] each: what y is multiplied with, and what is then added."""
    one, zero = np.ones_like(number), np.zeros_like(number)
    if op == "Mul":
        return number, zero
    if op == "Div":
        return 1 / number, zero
    if op == "Add":
        return one, number
    return (one, -number) if slot == 0 else (-one, number)


def _per_channel(layer: Linear, constant: Array) -> Array | None:
    """The constant as float64 [C]; None where it broadcasts otherwise."""
    rank = layer.weight_array.ndim
    axis = 1  # of the output, for a Conv and for a Gemm
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if len(shape) != rank or any(d != 1 for i, d in enumerate(shape) if i != axis):
        return None
    if shape[axis] not in (1, layer.channels):
        return None
    return np.broadcast_to(constant.reshape(-1).astype(np.float64), layer.channels)
