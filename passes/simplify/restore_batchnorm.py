"""`RestoreBatchnorm`: batch norms put back behind folded convolutions, for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxslim.calibration import ChannelMoments
from onnxslim.ir.graph import Graph, Node, Role
from onnxslim.ir.rewrite import Context, LocalPass
from onnxslim.ir.statistics import Statistic
from passes.simplify.linear_layers import Linear, grid_obstacle, linear_layer

__all__ = ["RestoreBatchnorm"]


@dataclass(frozen=True)
class RestoreBatchnorm(LocalPass):
    """Conv(x, w, b)  →  BN(Conv(x, w); γ = √(v + ε), β = m, μ = m − b, v),  m and v measured.

    m and v are the mean and the biased variance of each channel of the convolution's output over
    calibration data. In evaluation mode the function is unchanged; in training mode it trains as if
    the batch norm had never been folded. Weights behind a FakeQuant keep their grid.

    A channel whose variance is below `variance_floor` is dead. It gets v = `variance_floor`, and so
    γ = √(floor + ε): its gain in training mode, γ / √(v_batch + ε), stays near 1 and cannot blow noise
    up, whatever its running variance becomes.

    Refuses, naming the node: a convolution that a batch norm follows already, whose output is a graph
    output or one number a channel and image (too few for statistics: a squeeze-excite gate), whose
    weight or bias is shared or computed, whose weight grid cannot be scaled channel by channel (the
    batch norm could not be folded again), or all of whose channels are dead; and one without
    statistics in the context.

    Contract: evaluation mode equal to 1e-5 of the largest output; `fold_batchnorm` undoes it.
    """

    epsilon: float = 1e-5
    variance_floor: float = 1e-8
    name: ClassVar[str] = "restore_batchnorm"
    ops: ClassVar[frozenset[str]] = frozenset({"Conv"})

    def requests(self, graph: Graph, context: Context) -> Sequence[Statistic[Any]]:
        found = (_candidate(graph, node) for node in graph.nodes() if node.op in self.ops)
        layers = [layer for layer in found if isinstance(layer, Linear)]
        return [ChannelMoments(graph.result(layer.node).name) for layer in layers]

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        layer = _candidate(graph, node)
        why = layer if isinstance(layer, str) else self._restore(graph, layer, context)
        return 1 if why is None else why

    def _restore(self, graph: Graph, layer: Linear, context: Context) -> str | None:
        old = graph.result(layer.node)
        moments = context.statistics.get(ChannelMoments(old.name))
        if moments is None:
            return f"the moments of '{old.name}' were not gathered"
        mean, var = moments.mean.astype(np.float64), moments.variance.astype(np.float64)
        if not moments.finite:
            return f"the moments of '{old.name}' are not finite"
        if (var < self.variance_floor).all():
            return "all its channels are dead (no variance)"
        var = np.maximum(var, self.variance_floor)
        base = layer.node.name or layer.weight.name
        gamma = np.sqrt(var + self.epsilon)
        arrays = {"scale": gamma, "bias": mean, "mean": mean - layer.bias_array, "var": var}
        roles = {"scale": Role.PARAMETER, "bias": Role.PARAMETER}
        values = []
        for key, array in arrays.items():
            role = roles.get(key, Role.STATISTIC)
            owner = "" if key in roles else layer.weight.name
            values.append(graph.add_constant(f"{base}.norm.{key}", array.astype(np.float32), role=role, owner=owner))
        _drop_bias(graph, layer)
        uses = graph.uses(old)
        normed = graph.op("BatchNormalization", old, *values, name=f"{base}.norm", epsilon=self.epsilon)
        graph.set_type(normed, old.dtype, old.shape)
        graph.replace_uses(old, normed, only=uses)
        return None


def _candidate(graph: Graph, node: Node) -> Linear | str:
    """The layer that can get a batch norm, or why not."""
    layer = linear_layer(graph, node)
    if isinstance(layer, str):
        return layer
    output = graph.result(node)
    if graph.is_output(output):
        return "its output is an output of the graph"
    if any(use.node.op == "BatchNormalization" for use in graph.uses(output)):
        return "a batch norm follows it already"
    if output.shape is not None and len(output.shape) > 2 and all(axis == 1 for axis in output.shape[2:]):
        return "it makes one number a channel and image, too few for batch statistics"
    obstacle = grid_obstacle(graph, layer)
    return layer if obstacle is None else obstacle


def _drop_bias(graph: Graph, layer: Linear) -> None:
    """The bias lives in β from here on."""
    if layer.bias is None:
        return
    graph.set_input(layer.node, layer.bias_slot, None)
    if not graph.is_used(layer.bias) and not graph.is_input(layer.bias):
        graph.remove_value(layer.bias)
