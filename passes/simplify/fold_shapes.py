"""`FoldShapes`: shape arithmetic around a dynamic batch becomes constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxslim.ir.graph import Array, DType, Graph, Node, Value
from onnxslim.ir.rewrite import Context, Outcome, Pass
from onnxslim.ir.shape_values import evaluate

__all__ = ["FoldShapes"]


@dataclass(frozen=True)
class FoldShapes(Pass):
    """What exporters compute from Shape(x), where x's shape says it already:

        Gather(Shape(x [N, 116, 8, 8]), 1)              → 116
        Reshape(x, Concat(Gather(Shape(x), 0), 2, 58))  → Reshape(x, [-1, 2, 58])

    Of a Reshape's target one element may be unknown (-1), besides axes that are x's own in that
    place (0). Retained: results that are graph outputs, targets with more unknowns.

    Exact.
    """

    name: ClassVar[str] = "fold_shapes"

    def run(self, graph: Graph, context: Context) -> Outcome:
        known: dict[int, Array] = {}
        count = 0
        for node in graph.nodes():
            count += _fix_target(graph, node, known)
            elements = evaluate(graph, node, known)
            if elements is None:
                continue
            result = graph.result(node)
            known[result.id] = elements
            array = _array(elements, result.dtype)
            if array is not None and not graph.is_output(result):
                graph.detach(node)
                graph.set_array(result, array)
                count += 1
        return Outcome(count)


def _array(elements: Array, dtype: DType) -> Array | None:
    """The elements as a tensor of that type; None where one is not a number."""
    if dtype not in (DType.INT64, DType.INT32, DType.BOOL) or not all(_is_number(e) for e in elements.flat):
        return None
    return elements.astype(dtype.numpy)


def _is_number(element: Any) -> bool:
    return isinstance(element, (int, np.integer))


def _fix_target(graph: Graph, node: Node, known: dict[int, Array]) -> int:
    """A Reshape's computed target as a constant."""
    if node.op != "Reshape" or node.domain or node.attr("allowzero", 0):
        return 0
    target = graph.operand(node, 1)
    elements = known.get(target.id)
    if elements is None or target.array is not None or elements.ndim != 1:
        return 0
    fixed = _fixed(list(elements), graph.operand(node, 0))
    if fixed is None:
        return 0
    name = f"{node.name or graph.result(node).name}.shape"
    graph.set_input(node, 1, graph.add_constant(name, np.array(fixed, np.int64)))
    return 1


def _fixed(elements: list[Any], x: Value) -> list[int] | None:
    """The target with at most one -1, and 0 where x's own axis stands; None where that does not say it."""
    axes = x.shape or ()
    if not _is_sayable(elements):
        elements = [0 if isinstance(e, str) and axes[i : i + 1] == (e,) else e for i, e in enumerate(elements)]
    if not _is_sayable(elements):
        return None
    return [int(e) if _is_number(e) else -1 for e in elements]


def _is_sayable(elements: list[Any]) -> bool:
    return sum(1 for e in elements if not _is_number(e) or e == -1) <= 1
