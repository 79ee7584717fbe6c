"""`SplitBatchnorm`: a batch norm that ONNX Runtime would fuse wrongly is written as what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.ir.graph import Graph, Node, Role
from onnxslim.ir.ops import is_training
from onnxslim.ir.rewrite import Context, LocalPass

__all__ = ["SplitBatchnorm"]


@dataclass(frozen=True)
class SplitBatchnorm(LocalPass):
    """BN(R(MatMul(a, w)); γ, β, μ, v)  →  R(MatMul(a, w)) · k + (β − μ·k),  k = γ / √(v + ε)

    where R is a chain of Reshape and Transpose, or nothing where a is no matrix. ONNX Runtime 1.19 folds such a batch
    norm into w as if its channels were w's columns, whatever R made of them: where the numbers of both are equal, it
    then computes something else, or refuses the model. Later releases do not.

    Retained: a batch norm in training mode, with computed parameters, of a type other than float32, or of unknown rank.

    Contract: equal to 1e-5 of the largest output (float32 rounding of k).
    """

    name: ClassVar[str] = "split_batchnorm"
    ops: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        return _is_misread(graph, node) and _split(graph, node)


def _is_misread(graph: Graph, node: Node) -> bool:
    """Whether a MatMul stands before a batch norm, and its columns need not be the channels."""
    value = graph.operand(node, 0)
    before, moved = graph.producer(value), False
    while before is not None and not before.domain and before.op in ("Reshape", "Transpose"):
        value, moved = graph.operand(before, 0), True
        before = graph.producer(value)
    if before is None or before.domain or before.op != "MatMul":
        return False
    shape = graph.operand(before, 0).shape
    return moved or shape is None or len(shape) != 2


def _split(graph: Graph, node: Node) -> bool:
    x, y = graph.operand(node, 0), graph.result(node)
    parameters = [graph.operand(node, slot) for slot in range(1, 5)]
    arrays = [graph.constant_of(value) for value in parameters]
    if is_training(graph, node) or not node.attr("spatial", 1) or x.shape is None:
        return False
    if any(array is None or array.dtype != np.float32 for array in arrays):
        return False
    gamma, beta, mean, variance = (array.astype(np.float64) for array in arrays if array is not None)
    factor = gamma / np.sqrt(variance + node.attr("epsilon", 1e-5))
    axes = [1] * (len(x.shape) - 2)
    name = node.name or y.name
    numbers = {"factor": factor, "summand": beta - mean * factor}
    k, c = (
        graph.add_constant(f"{name}.{what}", array.astype(np.float32).reshape(-1, *axes), role=Role.PARAMETER)
        for what, array in numbers.items()
    )
    graph.detach(node)
    scaled = graph.op("Mul", x, k, name=f"{name}.scaled")
    graph.set_type(scaled, x.dtype, x.shape)
    graph.add_node("Add", [scaled, c], [y], name=name)
    for value in dict.fromkeys(parameters):
        if not graph.is_used(value) and not graph.is_input(value):
            graph.remove_value(value)
    return True
