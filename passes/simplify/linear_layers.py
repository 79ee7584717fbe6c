"""What folding and restoring a batch norm have in common: a linear layer, its weight, and its FakeQuant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim.graph import Array, Graph, Node, Role, Value

__all__ = ["Linear", "linear_layer", "per_channel"]


@dataclass(frozen=True)
class Linear:
    """A Conv, ConvTranspose or Gemm with constant weights.

    axis: of the weight, along which its output channels lie. fake_quant: the node between, if any.
    """

    node: Node
    weight: Value
    axis: int
    fake_quant: Node | None
    bias: Value | None
    channels: int


def linear_layer(graph: Graph, node: Node) -> Linear | str:
    """The linear layer of a node, or why it is none that can be rewritten."""
    if node.domain or node.op not in ("Conv", "ConvTranspose", "Gemm"):
        return f"{node.op} is no convolution or Gemm"
    if node.op == "ConvTranspose" and int(node.attr("group", 1)) != 1:
        return "a grouped ConvTranspose spreads its output channels over two axes"
    if node.op == "Gemm" and (node.attr("alpha", 1.0), node.attr("beta", 1.0)) != (1.0, 1.0):
        return "its alpha or beta is not 1"
    weight = graph.operand(node, 1)
    fake_quant = graph.producer(weight)
    if fake_quant is not None:
        if fake_quant.op != "FakeQuant":
            return f"its weight is computed by {fake_quant}"
        if len(graph.uses(weight)) > 1:
            return "its fake-quantised weight is shared"
        weight = graph.operand(fake_quant, 0)
    if graph.constant_of(weight) is None:
        return f"its weight '{weight.name}' is not constant"
    if len(graph.uses(weight)) > 1 or graph.is_output(weight):
        return f"its weight '{weight.name}' is shared"
    bias = graph.input(node, 2)
    if bias is not None and graph.constant_of(bias) is None:
        return f"its bias '{bias.name}' is not constant"
    axis = {"Conv": 0, "ConvTranspose": 1}.get(node.op, 0 if node.attr("transB", 0) else 1)
    channels = weight.static_shape[axis]
    if bias is not None and bias.static_shape not in ((channels,), (1, channels)):
        return f"its bias has the shape {bias.static_shape}, not one value a channel"
    return Linear(node, weight, axis, fake_quant, bias, channels)


def per_channel(array: Array, rank: int, axis: int) -> Array:
    """[C] in the shape that broadcasts along `axis`."""
    shape = [1] * rank
    shape[axis] = -1
    return array.reshape(shape)


def set_bias(graph: Graph, layer: Linear, bias: Array) -> None:
    """Gives the layer a bias of its own, float32 [C]."""
    old = layer.bias
    base = layer.node.name or layer.weight.name
    new = graph.add_constant(f"{base}.bias", bias.astype(np.float32), role=Role.PARAMETER)
    graph.set_input(layer.node, 2, new)
    if old is not None and not graph.is_used(old):
        name = old.name
        graph.remove_value(old)
        graph.rename(new, name)
