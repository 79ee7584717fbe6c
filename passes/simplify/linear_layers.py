"""What folding and restoring a batch norm have in common: a linear layer, its weight, and its FakeQuant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim.ir.dialect import FakeQuant, is_fake_quant
from onnxslim.ir.graph import Array, DType, Graph, Node, Role, Value
from onnxslim.ir.op_facts import channel_axes, facts_of
from onnxslim.spill import Spill

__all__ = ["Linear", "grid_obstacle", "linear_layer", "may_be_linear", "per_channel", "scaled_weight", "set_bias"]


@dataclass(frozen=True)
class Linear:
    """A layer that is linear in its constant weights and bias: Conv, ConvTranspose, Gemm.

    axis: of the weight, along which its output channels lie. fake_quant: the node between weight and
    layer, if any. bias: [C] or [1, C], if any; bias_slot: where it is read.
    """

    node: Node
    weight: Value
    axis: int
    fake_quant: Node | None
    bias: Value | None
    bias_slot: int
    channels: int

    @property
    def weight_array(self) -> Array:
        assert self.weight.array is not None
        return self.weight.array

    @property
    def bias_array(self) -> Array:
        """float64 [C]; zeros where there is no bias."""
        if self.bias is None or self.bias.array is None:
            return np.zeros(self.channels)
        return self.bias.array.reshape(-1).astype(np.float64)


def may_be_linear(node: Node) -> bool:
    """Whether the op is linear in weights and bias."""
    facts = facts_of(node)
    return facts.linear and bool(facts.biases)


def linear_layer(graph: Graph, node: Node) -> Linear | str:
    """The linear layer of a node, or why it is none that can be rewritten."""
    facts = facts_of(node)
    if not may_be_linear(node):
        return f"{node.op} is no convolution or Gemm"
    if facts.window and facts.outs == 1 and int(node.attr("group", 1)) != 1:
        return f"a grouped {node.op} spreads its output channels over two axes"
    if node.op == "Gemm" and (node.attr("alpha", 1.0), node.attr("beta", 1.0)) != (1.0, 1.0):
        return "its alpha or beta is not 1"
    weight = graph.operand(node, facts.weights[0])
    fake_quant = graph.producer(weight)
    if fake_quant is not None:
        if not is_fake_quant(fake_quant):
            return f"its weight is computed by {fake_quant}"
        if len(graph.uses(weight)) > 1 or graph.is_output(weight):
            return "its fake-quantised weight is shared"
        weight = graph.operand(fake_quant, 0)
    if graph.constant_of(weight) is None:
        return f"its weight '{weight.name}' is not constant"
    if len(graph.uses(weight)) > 1 or graph.is_output(weight):
        return f"its weight '{weight.name}' is shared"
    if weight.dtype is not DType.FLOAT:
        return f"its weight '{weight.name}' is {weight.dtype.name}, not FLOAT"
    bias = graph.input(node, facts.biases[0])
    if bias is not None and graph.constant_of(bias) is None:
        return f"its bias '{bias.name}' is not constant"
    axes = channel_axes(node, len(weight.static_shape))
    if axes is None:
        return f"its weight has the shape {weight.static_shape}"
    axis = axes[0]
    channels = weight.static_shape[axis]
    if bias is not None and bias.static_shape not in ((channels,), (1, channels)):
        return f"its bias has the shape {bias.static_shape}, not one value a channel"
    return Linear(node, weight, axis, fake_quant, bias, facts.biases[0], channels)


def grid_obstacle(graph: Graph, layer: Linear) -> str | None:
    """Why the grid of the weight cannot be scaled channel by channel; None where it can, or there is none."""
    node = layer.fake_quant
    if node is None:
        return None
    scale, zero_point = graph.operand(node, 1), graph.operand(node, 2)
    offset = graph.constant_of(zero_point)
    if graph.constant_of(scale) is None or offset is None:
        return f"the scale of {node} is computed"
    if scale.static_shape != (layer.channels,) or node.attr("axis", 0) % len(layer.weight.static_shape) != layer.axis:
        return f"{node} has no scale of its own for each output channel"
    grid = FakeQuant.of(node)
    if offset.any() or not grid.signed or not grid.narrow:
        return f"the grid of {node} is not symmetric"
    return None


def per_channel(array: Array, rank: int, axis: int) -> Array:
    """[C] in the shape that broadcasts along `axis`."""
    shape = [1] * rank
    shape[axis] = -1
    return array.reshape(shape)


def scaled_weight(layer: Linear, factor: Array, room: Spill) -> Array | None:
    """The weight times a factor a channel, rounded from float64 once, float32; None where float32 has no such
    number. numpy works through it piece by piece: nothing of the weight's size is held in memory."""
    weight = layer.weight_array
    result = room.empty(weight.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        factor = per_channel(factor, weight.ndim, layer.axis)
        np.multiply(weight, factor, out=result, dtype=np.float64, casting="same_kind")
    if not np.isfinite((result.max(initial=0), result.min(initial=0))).all():  # a NaN is both
        return None
    return result


def set_bias(graph: Graph, layer: Linear, bias: Array) -> None:
    """Gives the layer a bias of its own, float32 [C], under the old one's name where that is free."""
    old = layer.bias
    base = layer.node.name or layer.weight.name
    new = graph.add_constant(f"{base}.bias", bias.astype(np.float32), role=Role.PARAMETER)
    graph.set_input(layer.node, layer.bias_slot, new)
    if old is not None and not graph.is_used(old) and not graph.is_input(old):
        name = old.name
        graph.remove_value(old)
        graph.rename(new, name)
