"""Layers of a FakeQuant graph that run on integers, and the scales their biases need.

y = s_x · s_w · (Σ (q_x − z_x) · q_w + q_b),   q_b = round(b / (s_x · s_w)) as int32
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.regions import bias_fits, weight_axis
from onnxslim.analysis.scope import place
from onnxslim.ir.dialect import FakeQuant, is_fake_quant
from onnxslim.ir.graph import Array, Graph, Node
from onnxslim.ir.op_facts import bias_slot, weight_slot
from onnxslim.ir.quant_math import fitting_weight_scale
from onnxslim.ir.rewrite import Refusal
from onnxslim.targets import Target
from passes.quantize.grids import Grid, Grids

__all__ = ["Layer", "bias_scale", "fitting_scale", "quantized_layers"]


@dataclass(frozen=True)
class Layer:
    """A compute node whose input and weight have grids. `weight` is the weight's FakeQuant node;
    `bias`, float32 [C] in the slot `bias_slot`, is None where the node has none."""

    node: Node
    input: Grid
    weight: Node
    bias: Array | None
    bias_slot: int | None


def quantized_layers(graph: Graph, grids: Grids, target: Target) -> tuple[list[Layer], list[Refusal]]:
    """The layers with a quantised input and a quantised weight, and per other compute node why it is none."""
    layers: list[Layer] = []
    refused: list[Refusal] = []
    for node in graph.nodes():
        if node.kind in target.quantized_ops:
            found = _layer(graph, node, grids)
            if isinstance(found, Refusal):
                refused.append(found)
            elif found is not None:
                layers.append(found)
                refused += _unfolded(graph, node)
    return layers, refused


def fitting_scale(scale: Array, layers: Sequence[Layer]) -> Array:
    """A weight's trained scale, raised where a bias of the layers that share the weight would not fit an int32."""
    for layer in layers:
        scale = fitting_weight_scale(scale, float(layer.input.scale), layer.bias)
    return scale


def bias_scale(layer: Layer, weight_scale: Array) -> Array:
    """s_x · s_w, float32: [C], or [] where the weight has one scale."""
    return np.asarray(layer.input.scale * weight_scale, np.float32)


def _layer(graph: Graph, node: Node, grids: Grids) -> Layer | Refusal | None:
    inputs = graph.node_inputs(node)
    values = [v for v in inputs[:2] if v is not None]
    producers = [graph.producer(v) for v in values]
    weights = [p for p in producers if p is not None and is_fake_quant(p) and FakeQuant.of(p).is_weight]
    data = [grids.of(v) for v, p in zip(values, producers) if p not in weights]
    if not weights and len(data) == 2 and None not in data:
        return None  # a product of two activations: nothing stored
    if len(weights) != 1 or len(data) != 1 or data[0] is None:
        return Refusal(place(graph, node), "its input or its weight has no grid: it stays in float")
    slot = bias_slot(node)
    value = None if slot is None else graph.input(node, slot)
    if slot is None or value is None:
        return Layer(node, data[0], weights[0], None, None)
    bias, channels = graph.constant_of(value), _channels(graph, node)
    if bias is None or not bias_fits(graph, node):
        return Refusal(place(graph, node), f"its bias '{value.name}' {value.shape} is not a constant of [{channels}]")
    return Layer(node, data[0], weights[0], np.broadcast_to(bias.reshape(-1), (channels,)), slot)


def _channels(graph: Graph, node: Node) -> int:
    weight = graph.operand(node, weight_slot(node))
    axis = weight_axis(node, weight)
    return weight.static_shape[-1 if axis is None else axis]


def _unfolded(graph: Graph, node: Node) -> list[Refusal]:
    return [
        Refusal(
            place(graph, use.node), f"batch norm after {place(graph, node)} is not folded: run fold_batchnorm first"
        )
        for use in graph.uses(graph.result(node))
        if use.node.op == "BatchNormalization"
    ]
