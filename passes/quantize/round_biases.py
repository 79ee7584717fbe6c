"""`RoundBiases`: biases on their int32 grid, in the FakeQuant graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.ir.graph import Graph
from onnxslim.ir.rewrite import Context, Outcome, Pass
from onnxslim.targets import load_target
from passes.quantize.grids import Grid, Grids, fake_quants
from passes.quantize.layers import bias_scale, fitting_scale, quantized_layers

__all__ = ["RoundBiases"]


@dataclass(frozen=True)
class RoundBiases(Pass):
    """b → round(b / (s_x · s_w)) · (s_x · s_w), for every layer with quantised input and weight.

    Runs after fold_batchnorm and before evaluation or LowerToQdq: then the FakeQuant graph computes
    with the biases that ship. Without it the two differ by up to half of s_x · s_w a channel, about a
    thousandth of the output's step, which a deep network turns into other answers for one image in
    a hundred. Weight scales too small for an int32 bias are raised as in LowerToQdq.

    A layer whose bias another node also reads gets its own copy. Refuses what LowerToQdq leaves in float.
    """

    name: ClassVar[str] = "round_biases"

    def run(self, graph: Graph, context: Context) -> Outcome:
        if not fake_quants(graph):
            return Outcome()
        target = context.target or load_target("x64")
        layers, refused = quantized_layers(graph, Grids(graph, target), target)
        scales = {}
        count = 0
        for weight in dict.fromkeys(layer.weight for layer in layers):
            trained = Grid.of(graph, weight).scale
            scales[weight.id] = fitting_scale(trained, [layer for layer in layers if layer.weight is weight])
            if not np.array_equal(scales[weight.id], trained):
                graph.set_array(graph.operand(weight, 1), scales[weight.id])
                count += 1
        for layer in layers:
            if layer.bias is None or layer.bias_slot is None:
                continue
            step = bias_scale(layer, scales[layer.weight.id]).astype(np.float64)
            rounded = (np.rint(layer.bias / step) * step).astype(np.float32)
            if np.array_equal(rounded, layer.bias):
                continue
            count += 1
            bias = graph.operand(layer.node, layer.bias_slot)
            if len(graph.uses(bias)) == 1 and bias.static_shape == rounded.shape:
                graph.set_array(bias, rounded)
            else:
                graph.set_input(layer.node, layer.bias_slot, graph.add_constant(bias.name, rounded, role=bias.role))
        return Outcome(count, tuple(refused))
