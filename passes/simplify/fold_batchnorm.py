"""`FoldBatchnorm`: a batch norm becomes part of the layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.ir.dialect import FakeQuant
from onnxslim.ir.graph import Array, Graph, Node, Role
from onnxslim.ir.ops import is_training
from onnxslim.ir.quant_math import dequantize, quantize
from onnxslim.ir.rewrite import Context, LocalPass
from onnxslim.spill import Spill
from passes.simplify.linear_layers import Linear, grid_obstacle, linear_layer, per_channel, scaled_weight, set_bias

__all__ = ["FoldBatchnorm"]

_SMALLEST_SCALE = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class FoldBatchnorm(LocalPass):
    """BN(Conv(x, w, b); γ, β, μ, v)  →  Conv(x, w·k, β + (b − μ)·k),  k = γ / √(v + ε).

    Also for Gemm and ConvTranspose, and through a FakeQuant of the weight with one scale a channel:
    w → w·k, s → s·|k|, so that the integers of the grid stay what they were, up to k's sign (where
    float32 would round a weight to the next integer, it moves onto its own).

    Refuses, naming the node: a batch norm in training mode, of single pixels, or with computed parameters;
    a layer whose output is read elsewhere, whose weight is shared or computed, or whose weight grid has one
    scale for all channels or is asymmetric (its integers would change); a factor that float32 weights cannot take.

    Contract: equal to 1e-5 of the largest output (float32 rounding of w·k).
    """

    name: ClassVar[str] = "fold_batchnorm"
    ops: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        return _fold(graph, node, context.room)


def _fold(graph: Graph, node: Node, room: Spill) -> int | str:
    """Folds one batch norm, or says why not."""
    if is_training(graph, node):
        return "it is in training mode"
    if not node.attr("spatial", 1):  # opsets 7 and 8
        return "it has statistics for every pixel"
    x = graph.operand(node, 0)
    producer = graph.producer(x)
    if producer is None:
        return "it follows no layer"
    layer = linear_layer(graph, producer)
    if isinstance(layer, str):
        return f"{producer} before it cannot take it: {layer}"
    if len(graph.uses(x)) > 1 or graph.is_output(x):
        return f"the output of {producer} is read elsewhere too"
    parameters = [graph.operand(node, slot) for slot in range(1, 5)]
    arrays = [graph.constant_of(value) for value in parameters]
    if any(array is None for array in arrays):
        return "its parameters are computed or fed"
    obstacle = grid_obstacle(graph, layer)
    if obstacle is not None:
        return obstacle
    if any(array is not None and array.shape != (layer.channels,) for array in arrays):
        return f"its parameters are not one number for each of {layer.channels} channels"
    if not all(np.isfinite(array).all() for array in arrays if array is not None):
        return "its parameters are not all finite"
    gamma, beta, mean, var = (a.astype(np.float64) for a in arrays if a is not None)
    with np.errstate(all="ignore"):
        factor = gamma / np.sqrt(var + node.attr("epsilon", 1e-5))
        bias = beta + (layer.bias_array - mean) * factor
    weight = scaled_weight(layer, factor, room)
    if weight is None or not (np.abs(bias) <= np.finfo(np.float32).max).all():
        return f"the weights of {producer} would overflow"
    if layer.fake_quant is not None:
        weight = _rescale(graph, layer, layer.fake_quant, factor, weight)
    graph.set_array(layer.weight, weight)
    set_bias(graph, layer, bias)
    graph.replace_uses(graph.result(node), x)
    graph.remove_node(node)
    for value in dict.fromkeys(parameters):
        if not graph.is_used(value) and not graph.is_input(value):
            graph.remove_value(value)
    return 1


def _rescale(graph: Graph, layer: Linear, node: Node, factor: Array, weight: Array) -> Array:
    """s → s·|k| for the weight's grid; returns the weight, float32, whose integers are ±the former ones."""
    scale = graph.operand(node, 1)
    assert scale.array is not None
    bits, axis = FakeQuant.of(node).bits, layer.axis
    before = quantize(layer.weight_array, scale.array, bits=bits, narrow=True, axis=axis)
    rescaled = (scale.array.astype(np.float64) * np.abs(factor)).astype(np.float32)
    # A channel that the batch norm silences: its weights are nothing on any grid.
    silent = rescaled < _SMALLEST_SCALE
    rescaled = np.where(silent, scale.array, rescaled)
    signs = per_channel(np.where(silent, 0, np.sign(factor)), weight.ndim, axis)
    wanted = (before * signs).astype(np.int8)
    moved = quantize(weight, rescaled, bits=bits, narrow=True, axis=axis) != wanted
    if len(graph.uses(scale)) > 1:
        scale = graph.add_constant(scale.name, rescaled, role=Role.SCALE, owner=layer.weight.name)
        graph.set_input(node, 1, scale)
    else:
        graph.set_array(scale, rescaled)
    return np.where(moved, dequantize(wanted, rescaled, axis=axis), weight).astype(np.float32)
