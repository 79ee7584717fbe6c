"""`MeanToPool`: a mean over all spatial axes, written as the op that has an integer kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.ir.graph import DType, Graph, Node
from onnxslim.ir.ops import axes_of
from onnxslim.ir.rewrite import Context, LocalPass

__all__ = ["MeanToPool"]


@dataclass(frozen=True)
class MeanToPool(LocalPass):
    """ReduceMean(x, all axes but 0 and 1) → GlobalAveragePool(x) [→ Reshape(·, [0, −1]) without keepdims].

    ONNX Runtime's CPU provider has integer kernels for the pool and none for the mean. Retained: means over
    other axes, over axes that are not constant, of values of unknown rank or below rank 3, of other types than float32.

    Exact.
    """

    name: ClassVar[str] = "mean_to_pool"
    ops: ClassVar[frozenset[str]] = frozenset({"ReduceMean"})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        if not _is_pool(graph, node):
            return 0
        _rewrite(graph, node)
        return 1


def _is_pool(graph: Graph, node: Node) -> bool:
    value = graph.operand(node, 0)
    if value.dtype is not DType.FLOAT or value.shape is None or len(value.shape) < 3:
        return False
    rank = len(value.shape)
    axes = axes_of(graph, node, rank)
    return axes is not None and sorted(axes) == list(range(2, rank))


def _rewrite(graph: Graph, node: Node) -> None:
    value, result = graph.operand(node, 0), graph.result(node)
    keep, name = bool(node.attr("keepdims", 1)), node.name
    shape = None if value.shape is None else [*value.shape[:2], *(1 for _ in value.shape[2:])]
    axes = graph.input(node, 1)
    graph.detach(node)
    if axes is not None and not graph.is_used(axes) and not graph.is_output(axes):
        graph.remove_value(axes)
    if keep:
        graph.add_node("GlobalAveragePool", [value], [result], name=name)
        return
    pooled = graph.op("GlobalAveragePool", value, name=name)
    graph.set_type(pooled, DType.FLOAT, shape)
    target = graph.add_constant(f"{result.name}.shape", np.array([0, -1], np.int64))
    graph.add_node("Reshape", [pooled, target], [result], name=f"{name}.flat" if name else "")
