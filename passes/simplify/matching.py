"""What the fusions share: reading a region of nodes as one formula, and putting one node in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxslim.ir.graph import DType, Graph, Node, Value

__all__ = ["Region", "is_float", "near", "scalar"]

_DEEPEST = 8


def scalar(graph: Graph, value: Value | None) -> float | None:
    """The one number of a float constant of any rank; None for anything else."""
    array = graph.constant_of(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.dtype.kind == "f" else None


def near(a: float, b: float) -> bool:
    """Equal up to the rounding of a float32 constant."""
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b), 1e-3)


class Region:
    """The nodes that a formula was read from, gathered as it is read; `root` computes its result.

    A number of a formula may raise no rank: a constant of shape [1, 1] beside a vector makes a matrix.
    """

    def __init__(self, graph: Graph, root: Node) -> None:
        self.graph, self.root = graph, root
        self.nodes: dict[int, Node] = {root.id: root}

    def source(self, value: Value, *ops: str) -> Node | None:
        """The node that makes a value, counted to the region, where it is one of these."""
        node = self.graph.producer(value)
        if node is None or node.domain or node.op not in ops:
            return None
        self.nodes[node.id] = node
        return node

    def with_scalar(self, node: Node) -> tuple[Value, float, int] | None:
        """What a node of two inputs reads beside a number, the number, and in which slot the former stands."""
        if node.arity[0] != 2:
            return None
        for slot in (0, 1):
            value, other = self.graph.operand(node, slot), self.graph.operand(node, 1 - slot)
            number = scalar(self.graph, other)
            if number is not None and scalar(self.graph, value) is None and self._keeps_rank(value, other):
                return value, number, slot
        return None

    def affine(self, value: Value, *, shared: bool = False) -> tuple[Value, float, float]:
        """(x, a, b) with value = a·x + b, through sums and products with numbers, as far as nothing else reads them
        (`shared`: even then)."""
        a, b = 1.0, 0.0
        while True:
            node = self.graph.producer(value)
            if node is None or node.domain or node.op not in ("Add", "Div", "Mul", "Sub"):
                return value, a, b
            if not (shared or self.alone(value)):
                return value, a, b
            found = self.with_scalar(node)
            if found is None or (node.op == "Div" and (found[2] == 1 or not found[1])):
                return value, a, b
            inner, number, slot = found
            self.nodes[node.id] = node
            if node.op == "Add":
                b += a * number
            elif node.op == "Sub":
                b += -a * number if slot == 0 else a * number
                a = a if slot == 0 else -a
            else:
                a *= number if node.op == "Mul" else 1 / number
            value = inner

    def product(self, node: Node) -> tuple[float, list[Value]]:
        """(k, terms) with the node's result = k · the product of the terms, through factors that nothing else reads."""
        found = self.with_scalar(node)
        if found is not None and (node.op == "Mul" or (node.op == "Div" and found[2] == 0 and found[1])):
            factor, operands = (found[1] if node.op == "Mul" else 1 / found[1]), [found[0]]
        elif node.op == "Mul" and node.arity[0] == 2:
            factor, operands = 1.0, [self.graph.operand(node, slot) for slot in (0, 1)]
        else:
            return 1.0, [self.graph.result(node)]
        self.nodes[node.id] = node
        terms: list[Value] = []
        for operand in operands:
            inner = self.graph.producer(operand)
            if inner is None or inner.domain or inner.op not in ("Div", "Mul") or not self.alone(operand):
                terms.append(operand)
                continue
            k, more = self.product(inner)
            factor, terms = factor * k, terms + more
        return factor, terms

    def polynomial(self, value: Value, x: Value, depth: int = 0) -> list[float] | None:
        """The coefficients, lowest first, of a value that is a polynomial in x of degree 3 at most; else None."""
        if value is x:
            return [0.0, 1.0]
        number = scalar(self.graph, value)
        if number is not None:
            return [number] if self._keeps_rank(x, value) else None
        node = self.graph.producer(value)
        if node is None or node.domain or depth == _DEEPEST or node.op not in _POLYNOMIAL or node.arity[0] != 2:
            return None
        left, right = (self.polynomial(self.graph.operand(node, slot), x, depth + 1) for slot in (0, 1))
        if left is None or right is None:
            return None
        made = _combined(node.op, left, right)
        if made is None or len(made) > 4:
            return None
        self.nodes[node.id] = node
        return made

    def bounds(self, value: Value) -> tuple[Value, float, float] | None:
        """(x, low, high) where the value is x cut off at two numbers: Clip, Relu, Min and Max; None for anything else.

        What else than the next step reads a cut ends the walk, unless the root makes it.
        """
        low, high = -np.inf, np.inf
        while True:
            node = self.graph.producer(value)
            cut = None if node is None or node.domain else self._cut(node)
            if node is None or cut is None or not (node is self.root or self.alone(value)):
                return None if (low, high) == (-np.inf, np.inf) else (value, low, high)
            inner, least, most = cut
            low, high = min(max(least, low), high), min(max(most, low), high)
            self.nodes[node.id] = node
            value = inner

    def alone(self, value: Value) -> bool:
        """Whether one use reads the value and it is no output; a square reads it twice, which counts as one."""
        return not self.graph.is_output(value) and len(self.graph.consumers(value)) == 1

    @property
    def is_closed(self) -> bool:
        """Whether nothing outside reads what lies inside, so that all of it goes with the fusion."""
        for node in self.nodes.values():
            if node.id == self.root.id:
                continue
            for value in self.graph.node_outputs(node):
                if value is None:
                    continue
                readers = self.graph.consumers(value)
                if self.graph.is_output(value) or any(reader.id not in self.nodes for reader in readers):
                    return False
        return True

    def replace(self, op: str, inputs: Sequence[Value], attributes: Mapping[str, Any] | None = None) -> Node:
        """Puts one node in the place of the region."""
        graph, result, name = self.graph, self.graph.result(self.root), self.root.name
        graph.detach(self.root)
        left = [node for node in self.nodes.values() if node.id != self.root.id]
        while left:  # what is read goes after what reads it
            idle = [n for n in left if not any(v is not None and graph.is_used(v) for v in graph.node_outputs(n))]
            for node in idle:
                graph.remove_node(node)
            left = [node for node in left if node not in idle]
        return graph.add_node(op, inputs, [result], attributes, name=name)

    def _keeps_rank(self, value: Value, number: Value) -> bool:
        rank = len(number.shape or ())
        return rank == 0 or (value.shape is not None and len(value.shape) >= rank)

    def _cut(self, node: Node) -> tuple[Value, float, float] | None:
        """What one node cuts off, and where."""
        graph = self.graph
        if node.op == "Relu":
            return graph.operand(node, 0), 0.0, np.inf
        if node.op in ("Max", "Min"):
            found = self.with_scalar(node)
            if found is None:
                return None
            return (found[0], found[1], np.inf) if node.op == "Max" else (found[0], -np.inf, found[1])
        if node.op != "Clip":
            return None
        limits = []
        for slot, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
            given = graph.input(node, slot)
            limits.append(float(node.attr(name, default)) if given is None else scalar(graph, given))
        low, high = limits
        return None if low is None or high is None or low > high else (graph.operand(node, 0), low, high)


_POLYNOMIAL = ("Add", "Div", "Mul", "Pow", "Sub")


def _combined(op: str, left: list[float], right: list[float]) -> list[float] | None:
    """Two polynomials by an op; None where the result is none."""
    if op in ("Add", "Sub"):
        size, sign = max(len(left), len(right)), 1 if op == "Add" else -1
        padded = [p + [0.0] * (size - len(p)) for p in (left, right)]
        return [a + sign * b for a, b in zip(*padded)]
    if op == "Mul":
        return [float(c) for c in np.convolve(left, right)]
    if len(right) > 1:
        return None
    if op == "Div":
        return [c / right[0] for c in left] if right[0] else None
    made = [1.0]
    for _ in range(int(right[0]) if right[0] in (1.0, 2.0, 3.0) else 0):
        made = [float(c) for c in np.convolve(made, left)]
    return made if right[0] in (1.0, 2.0, 3.0) else None


def is_float(value: Value) -> bool:
    """Whether a value is float32, for which ONNX Runtime has kernels of every op."""
    return value.dtype is DType.FLOAT
