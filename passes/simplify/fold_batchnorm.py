"""`FoldBatchnorm`: a batch norm becomes part of the convolution before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.graph import DType, Graph, Node, Role
from onnxslim.rewrite import Context, Outcome, Pass, Refusal
from passes.simplify.linear_layers import Linear, linear_layer, per_channel, set_bias

__all__ = ["FoldBatchnorm"]


@dataclass(frozen=True)
class FoldBatchnorm(Pass):
    """BN(Conv(x, w, b); γ, β, μ, v)  →  Conv(x, w·k, β + (b − μ)·k),  k = γ / √(v + ε).

    Also for Gemm and ConvTranspose, and through a FakeQuant of the weight with one scale a channel:
    w → w·k, s → s·|k|, so that the integers of the grid stay what they were, up to k's sign.

    Refuses, naming the node: a batch norm in training mode or with computed parameters; a layer whose
    output is read elsewhere, whose weight is shared or computed, or whose weight grid has one scale for
    all channels or an asymmetric range (its integers would change).

    Contract: equal to 1e-5 of the largest output (float32 rounding of w·k).
    """

    name: ClassVar[str] = "fold_batchnorm"

    def run(self, graph: Graph, context: Context) -> Outcome:
        count, refused = 0, []
        for node in graph.nodes():
            if node.op != "BatchNormalization" or node.domain:
                continue
            why = _fold(graph, node)
            if why is None:
                count += 1
            else:
                refused.append(Refusal(str(node), why))
        return Outcome(count, tuple(refused))


def _fold(graph: Graph, node: Node) -> str | None:
    """Folds one batch norm, or says why not."""
    if node.attr("training_mode", 0):
        return "it is in training mode"
    x = graph.operand(node, 0)
    producer = graph.producer(x)
    if producer is None:
        return "it follows no layer"
    layer = linear_layer(graph, producer)
    if isinstance(layer, str):
        return f"{producer} before it cannot take it: {layer}"
    if len(graph.uses(x)) > 1 or graph.is_output(x):
        return f"the output of {producer} is read elsewhere too"
    arrays = [graph.constant_of(graph.operand(node, slot)) for slot in range(1, 5)]
    if layer.weight.dtype is not DType.FLOAT or any(a is None for a in arrays):
        return "its parameters are computed, or not float32"
    gamma, beta, mean, var = (a.astype(np.float64) for a in arrays if a is not None)
    factor = gamma / np.sqrt(var + node.attr("epsilon", 1e-5))
    if layer.fake_quant is not None:
        why = _rescale(graph, layer, factor)
        if why is not None:
            return why
    assert layer.weight.array is not None
    weight = layer.weight.array.astype(np.float64) * per_channel(factor, layer.weight.array.ndim, layer.axis)
    graph.set_array(layer.weight, weight.astype(np.float32))
    before = 0.0 if layer.bias is None or layer.bias.array is None else layer.bias.array.reshape(-1).astype(np.float64)
    set_bias(graph, layer, beta + (before - mean) * factor)
    spare = [graph.operand(node, slot) for slot in range(1, 5)]
    graph.replace_uses(graph.result(node), x)
    graph.remove_node(node)
    for value in dict.fromkeys(spare):
        if not graph.is_used(value) and not graph.is_input(value):
            graph.remove_value(value)
    return None


def _rescale(graph: Graph, layer: Linear, factor: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str | None:
    """s → s·|k| for the weight's grid, or why not."""
    node = layer.fake_quant
    assert node is not None
    scale, zero_point = graph.operand(node, 1), graph.operand(node, 2)
    if scale.array is None or zero_point.array is None:
        return f"the scale of {node} is computed"
    if scale.static_shape != (layer.channels,) or node.attr("axis", 0) % len(layer.weight.static_shape) != layer.axis:
        return f"{node} has no scale of its own for each output channel"
    if zero_point.array.any() or not node.attr("narrow", 0):
        return f"the grid of {node} is not symmetric"
    rescaled = scale.array.astype(np.float64) * np.abs(factor)
    if not rescaled.all():
        # A channel that the batch norm silences: any grid holds its zeros.
        rescaled = np.where(rescaled == 0, scale.array, rescaled)
    if len(graph.uses(scale)) > 1:
        scale = graph.add_constant(scale.name, rescaled.astype(np.float32), role=Role.SCALE, owner=layer.weight.name)
        graph.set_input(node, 1, scale)
    else:
        graph.set_array(scale, rescaled.astype(np.float32))
    return None
