"""How single ops move between opsets 11 to 21, one rule an op whose definition changed in meaning or form.

A rule edits its node in place and returns None, or returns why the new opset cannot express it. It is
asked only where the op's definition differs between the two opsets. Spec: the change log of the
ONNX operators (onnx/docs/Changelog.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from onnxslim.graph import DType, Graph, Node, Value

__all__ = ["RULES", "Rule"]

Rule: TypeAlias = Callable[[Graph, Node, int, int], str | None]
"""(graph, node, old opset, new opset) → why not, or None."""


def _axes_to_input(since: int) -> Rule:
    """`axes` became an input."""

    def rule(graph: Graph, node: Node, old: int, new: int) -> str | None:
        if old < since <= new:
            _to_input(graph, node, "axes")
        return None

    return rule


def _to_input(graph: Graph, node: Node, attribute: str) -> None:
    numbers = node.attr(attribute)
    graph.set_attribute(node, attribute, None)
    if numbers:
        name = f"{node.name or graph.result(node).name}.{attribute}"
        graph.set_input(node, 1, graph.add_constant(name, np.array(numbers, np.int64)))


def _split(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """13: sizes became an input. 18: without sizes, the number of outputs must be said."""
    if old < 13:
        _to_input(graph, node, "split")
    if old < 18 <= new and graph.input(node, 1) is None:
        graph.set_attribute(node, "num_outputs", node.arity[1])
    return None


def _softmax(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """13: along one axis; before, over all axes from `axis` on together, by default from 1 on."""
    if old >= 13:
        return None
    x, y = graph.operand(node, 0), graph.result(node)
    axis = node.attr("axis", 1)
    graph.set_attribute(node, "axis", -1)
    if axis == -1 or (x.shape is not None and axis % max(len(x.shape), 1) == len(x.shape) - 1):
        return None
    base = node.name or y.name
    flat = graph.op("Flatten", x, name=f"{base}.flat", axis=axis)
    shape = graph.op("Shape", x, name=f"{base}.shape")
    op, attributes = node.op, dict(node.attributes)
    graph.detach(node)
    soft = graph.op(op, flat, name=node.name, **attributes)
    graph.add_node("Reshape", [soft, shape], [y], name=f"{base}.unflatten")
    return None


def _dropout(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """12: the ratio became an input; without `training_mode` it remains inference."""
    if old < 12:
        ratio = node.attr("ratio", 0.5)
        graph.set_attribute(node, "ratio", None)
        name = f"{node.name or graph.result(node).name}.ratio"
        graph.set_input(node, 1, graph.add_constant(name, np.array(ratio, np.float32)))
    return None


def _batch_normalization(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """14: `training_mode` instead of training by asking for five outputs."""
    if old < 14 and any(value is not None for value in graph.node_outputs(node)[1:]):
        return "writes batch normalisation in training mode differently"
    return None


def _roi_align(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """16: another default for where a pixel's centre lies."""
    if old < 16 and "coordinate_transformation_mode" not in node.attributes:
        graph.set_attribute(node, "coordinate_transformation_mode", "output_half_pixel")
    return None


def _resize(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """13 dropped one way to map coordinates, 19 has a new one."""
    mode = node.attr("coordinate_transformation_mode", "half_pixel")
    if (old < 13 and mode == "tf_half_pixel_for_nn") or (new < 19 and mode == "half_pixel_symmetric"):
        return f"has no coordinate_transformation_mode '{mode}'"
    return None


def _pad(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """18: optional axes. 19: mode 'wrap'."""
    if new < 19 and node.attr("mode", "constant") == "wrap":
        return "has no mode 'wrap'"
    return None


def _grid_sample(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """20: 'linear' and 'cubic' were 'bilinear' and 'bicubic', and any number of axes, not two."""
    names = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}
    if new < 20 <= old:
        shape = graph.operand(node, 0).shape
        if shape is None or len(shape) != 4:
            return "samples grids of two axes only"
        graph.set_attribute(node, "mode", names[node.attr("mode", "linear")])
    elif old < 20 <= new:
        back = {new_name: old_name for old_name, new_name in names.items()}
        graph.set_attribute(node, "mode", back[node.attr("mode", "bilinear")])
    return None


def _gelu(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """Hendrycks and Gimpel 2016 (arXiv:1606.08415); from 20 on an op."""
    x, y = graph.operand(node, 0), graph.result(node)
    base, approximate = node.name or y.name, node.attr("approximate", "none")
    kind = (DType.FLOAT if x.dtype is DType.UNDEFINED else x.dtype).numpy
    graph.detach(node)

    def op(name: str, *inputs: Value, suffix: str) -> Value:
        return graph.op(name, *inputs, name=f"{base}.{suffix}")

    def number(value: float, suffix: str) -> Value:
        return graph.add_constant(f"{base}.{suffix}", np.array(value, kind))

    if approximate == "tanh":
        cube = op("Mul", op("Mul", x, x, suffix="square"), x, suffix="cube")
        inner = op("Add", x, op("Mul", cube, number(0.044715, "c"), suffix="small"), suffix="inner")
        shape = op("Tanh", op("Mul", inner, number(np.sqrt(2 / np.pi), "k"), suffix="scaled"), suffix="tanh")
    else:
        shape = op("Erf", op("Mul", x, number(np.sqrt(0.5), "k"), suffix="scaled"), suffix="erf")
    half = op("Mul", x, number(0.5, "half"), suffix="halved")
    graph.add_node("Mul", [half, op("Add", shape, number(1.0, "one"), suffix="gate")], [y], name=base)
    return None


def _never(why: str) -> Rule:
    return lambda graph, node, old, new: why


_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSumSquare",
)  # fmt: skip

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_REDUCTIONS, _axes_to_input(18)),
    **dict.fromkeys(("ReduceSum", "Squeeze", "Unsqueeze"), _axes_to_input(13)),
    **dict.fromkeys(("Hardmax", "LogSoftmax", "Softmax"), _softmax),
    "BatchNormalization": _batch_normalization,
    "DFT": _never("gives its axis differently"),
    "Dropout": _dropout,
    "Gelu": _gelu,
    "GridSample": _grid_sample,
    "GroupNormalization": _never("scales groups where the other scales channels"),
    "Pad": _pad,
    "Resize": _resize,
    "RoiAlign": _roi_align,
    "Split": _split,
}
