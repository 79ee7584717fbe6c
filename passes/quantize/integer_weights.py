"""Weights as int8 and biases as int32: the constant half of lowering."""

from __future__ import annotations

import numpy as np

from onnxslim.errors import ModelError
from onnxslim.ir.dialect import FakeQuant
from onnxslim.ir.graph import Array, DType, Graph, Node, Value
from onnxslim.ir.quant_math import quantize
from onnxslim.ir.rewrite import Refusal
from onnxslim.targets import Target
from passes.quantize.grids import Grid, Grids, fake_quants
from passes.quantize.layers import Layer, bias_scale, fitting_scale, quantized_layers

__all__ = ["lower_weights"]


def lower_weights(graph: Graph, grids: Grids, target: Target) -> list[Refusal]:
    """Replaces every weight FakeQuant by an int8 initialiser with a DequantizeLinear, and the biases
    of quantised layers by int32 ones."""
    layers, refused = quantized_layers(graph, grids, target)
    weights = [node for node in fake_quants(graph) if FakeQuant.of(node).is_weight]
    zeros = _Zeros(graph)
    scales = {
        node.id: fitting_scale(Grid.of(graph, node).scale, [layer for layer in layers if layer.weight is node])
        for node in weights
    }
    for layer in layers:
        _lower_bias(graph, layer, scales[layer.weight.id], zeros)
    for node in weights:
        _lower_weight(graph, node, scales[node.id], zeros)
    return refused


class _Zeros:
    """Zero points. They are written although 0 is the default, because ONNX Runtime's integer kernels and its
    ORT-format writer rely on the slot. Biases of one length share an initialiser. A weight has its own: where ONNX
    Runtime makes uint8 of weights (session.x64quantprecision, on CPUs without VNNI), it replaces the zero point with
    the weight, and does not find it for the next. (Such a session therefore refuses a weight that two layers share.)"""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.known: dict[tuple[str, tuple[int, ...]], Value] = {}

    def own(self, scale: Array, dtype: DType) -> Value:
        return self.graph.add_constant("zero", np.zeros(scale.shape, dtype.numpy))

    def shared(self, scale: Array, dtype: DType) -> Value:
        key = dtype.name, scale.shape
        if key not in self.known:
            self.known[key] = self.own(scale, dtype)
        return self.known[key]


def _lower_weight(graph: Graph, node: Node, scale: Array, zeros: _Zeros) -> None:
    grid, weight, result = Grid.of(graph, node), graph.operand(node, 0), graph.result(node)
    if weight.array is None or grid.zero_point.any():
        raise ModelError(f"{node}: a weight must be a constant on a symmetric grid")
    integers = quantize(weight.array, scale, bits=grid.bits, signed=True, narrow=grid.narrow, axis=grid.axis)
    trained = graph.operand(node, 1)
    kept = trained.array is not None and np.array_equal(trained.array, scale)
    parts = [
        graph.add_constant(f"{weight.name}.int8", integers),
        trained if kept else graph.add_constant(trained.name, scale),
        zeros.own(scale, DType.INT8),
    ]
    graph.detach(node)
    axis = {"axis": grid.axis} if grid.axis not in (None, 1) else {}
    graph.add_node("DequantizeLinear", parts, [result], axis, name=f"{weight.name}.dq")
    graph.set_type(result, DType.FLOAT, weight.shape)


def _lower_bias(graph: Graph, layer: Layer, weight_scale: Array, zeros: _Zeros) -> None:
    if layer.bias is None or layer.bias_slot is None:
        return
    name, scale = graph.operand(layer.node, layer.bias_slot).name, bias_scale(layer, weight_scale)
    integers = np.rint(layer.bias.astype(np.float64) / scale.astype(np.float64))
    if not np.abs(integers).max(initial=0) < 2.0**31:
        raise ModelError(f"{layer.node}: bias '{name}' does not fit int32 at scale {scale.min()}")
    parts = [
        graph.add_constant(f"{name}.int32", integers.astype(np.int32)),
        graph.add_constant(f"{name}.scale", scale),
        zeros.shared(scale, DType.INT32),
    ]
    axis = {"axis": 0} if scale.ndim else {}
    result = graph.fresh_name(f"{name}.dequantized")  # a bias may serve several layers, each at its own scale
    node = graph.add_node("DequantizeLinear", parts, [result], axis, name=result)
    graph.set_type(graph.result(node), DType.FLOAT, integers.shape)
    graph.set_input(layer.node, layer.bias_slot, graph.result(node))
