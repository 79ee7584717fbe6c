"""How single ops move between opsets 7 to the newest, one rule an op whose definition changed in meaning or form.

A rule edits its node in place and returns None, or returns why the new opset cannot express it. It is
asked only where the op's definition differs between the two opsets. Spec: the change log of the
ONNX operators (onnx/docs/Changelog.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from onnxslim.ir.graph import DType, Graph, Node, Value

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


def _to_input(graph: Graph, node: Node, attribute: str, slot: int = 1, kind: npt.DTypeLike = np.int64) -> None:
    numbers = node.attr(attribute)
    graph.set_attribute(node, attribute, None)
    if numbers is not None and numbers != []:
        name = f"{node.name or graph.result(node).name}.{attribute}"
        graph.set_input(node, slot, graph.add_constant(name, np.array(numbers, kind)))


def _kind(graph: Graph, node: Node) -> npt.DTypeLike:
    """numpy's type of the first input; float32 where it is not known."""
    dtype = graph.operand(node, 0).dtype
    return (DType.FLOAT if dtype is DType.UNDEFINED else dtype).numpy


def _clip(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """11: the limits became inputs."""
    if old < 11:
        for slot, limit in enumerate(("min", "max"), 1):
            _to_input(graph, node, limit, slot, _kind(graph, node))
    return None


def _slice(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """10: everything became an input."""
    if old < 10:
        for slot, name in enumerate(("starts", "ends", "axes"), 1):
            _to_input(graph, node, name, slot)
    return None


def _top_k(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """10: k became an input."""
    if old < 10:
        graph.set_attribute(node, "k", [node.attr("k")])
        _to_input(graph, node, "k")
    return None


def _scan(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """9: no batch axis any more."""
    return "scans without a batch axis" if old < 9 else None


def _scatter(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """11: another name."""
    graph.set_op(node, "ScatterElements")
    return None


def _upsample(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """9: the scales became an input. 10: became Resize, whose first way this was."""
    if old < 9:
        scales = node.attr("scales")
        graph.set_attribute(node, "scales", None)
        name = f"{node.name or graph.result(node).name}.scales"
        scale: Value | None = graph.add_constant(name, np.array(scales, np.float32))
    else:
        scale = graph.operand(node, 1)
    graph.set_op(node, "Resize")
    _as_resize(graph, node, scale, "floor")
    return None


def _as_resize(graph: Graph, node: Node, scale: Value | None, rounding: str) -> None:
    graph.set_input(node, 1, None)
    graph.set_input(node, 2, scale)
    graph.set_attribute(node, "coordinate_transformation_mode", "asymmetric")
    if node.attr("mode", "nearest") == "nearest":
        graph.set_attribute(node, "nearest_mode", rounding)


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
    """12: the ratio became an input, and the mask of inference ones; without `training_mode` it remains inference."""
    if old < 12:
        y, *masks = graph.node_outputs(node)
        if any(mask is not None and graph.is_used(mask) for mask in masks):
            return "gives another mask in inference"
        ratio = node.attr("ratio", 0.5)
        name = f"{node.name or graph.result(node).name}.ratio"
        inputs = [graph.operand(node, 0), graph.add_constant(name, np.array(ratio, np.float32))]
        graph.detach(node)
        graph.add_node(node.op, inputs, [y], name=node.name)
        for mask in masks:
            if mask is not None:
                graph.remove_value(mask)
    return None


def _batch_normalization(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """9: statistics are of channels (`spatial`). 14: `training_mode` instead of training by asking for five outputs."""
    if old < 14 and any(value is not None for value in graph.node_outputs(node)[1:]):
        if any(value is not None and graph.is_used(value) for value in graph.node_outputs(node)[3:]):
            return "does not give the saved mean and variance of a batch normalisation in training mode"
        _train_by_attribute(graph, node)
    if old < 9:
        spatial = node.attr("spatial", 1)
        graph.set_attribute(node, "spatial", None)
        if not spatial:
            _normalize_each(graph, node)
    return None


def _train_by_attribute(graph: Graph, node: Node) -> None:
    """BN(…) → y, mean, variance, saved mean, saved variance  →  BN(…; training_mode=1) → y, mean, variance."""
    inputs, outputs = graph.node_inputs(node), graph.node_outputs(node)
    graph.detach(node)
    for value in outputs[3:]:
        if value is not None:
            graph.remove_value(value)
    for slot in (1, 2):  # which must both be there now
        if slot == len(outputs):
            outputs.append(None)
    attributes = {**node.attributes, "training_mode": 1}
    graph.add_node(node.op, inputs, outputs[:3], attributes, name=node.name)


def _normalize_each(graph: Graph, node: Node) -> None:
    """(x − mean)/√(variance + ε)·scale + bias, every position with statistics of its own."""
    x, scale, bias, mean, variance = (graph.operand(node, slot) for slot in range(5))
    y, base = graph.result(node), node.name or graph.result(node).name
    small = graph.add_constant(f"{base}.epsilon", np.array(node.attr("epsilon", 1e-5), _kind(graph, node)))
    graph.detach(node)
    centred = graph.op("Sub", x, mean, name=f"{base}.centred")
    spread = graph.op("Sqrt", graph.op("Add", variance, small, name=f"{base}.variance"), name=f"{base}.spread")
    scaled = graph.op("Mul", graph.op("Div", centred, spread, name=f"{base}.unit"), scale, name=f"{base}.scaled")
    graph.add_node("Add", [scaled, bias], [y], name=base)


def _roi_align(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """16: another default for where a pixel's centre lies."""
    if old < 16 and "coordinate_transformation_mode" not in node.attributes:
        graph.set_attribute(node, "coordinate_transformation_mode", "output_half_pixel")
    return None


def _resize(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """11: more ways to map coordinates; before, nearest took the pixel below where it enlarges, else the one above.
    13 dropped one way to map coordinates, 19 has a new one."""
    if old < 11:
        scale = graph.operand(node, 1)
        sizes = graph.constant_of(scale)
        enlarges = sizes is not None and bool((sizes >= 1).all())
        if node.attr("mode", "nearest") == "nearest" and not enlarges and (sizes is None or bool((sizes > 1).any())):
            return "rounds to the nearest pixel the same way on every axis, which depends on its scales here"
        _as_resize(graph, node, scale, "floor" if enlarges else "ceil")
        return None
    mode = node.attr("coordinate_transformation_mode", "half_pixel")
    if (old < 13 and mode == "tf_half_pixel_for_nn") or (new < 19 and mode == "half_pixel_symmetric"):
        return f"has no coordinate_transformation_mode '{mode}'"
    return None


def _pad(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """11: pads and value became inputs. 18: optional axes. 19: mode 'wrap'."""
    if old < 11:
        _to_input(graph, node, "pads")
        _to_input(graph, node, "value", 2, _kind(graph, node))
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


def _mod(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """28: the sign of the divisor for floats too."""
    if new < 28 and not node.attr("fmod", 0) and graph.operand(node, 0).dtype.is_float:
        return "takes fmod=0 of integers only"
    return None


def _quantize_linear(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """21: `output_dtype` instead of a zero point, and blocks. 23: a precision."""
    dtype = DType(node.attr("output_dtype", 0))
    if new < 21 and node.attr("block_size", 0):
        return "has no attribute 'block_size'"
    if new < 23 and node.attr("precision", 0) not in (0, graph.operand(node, 0).dtype):
        return "has no attribute 'precision'"
    if new < 21 and dtype not in (DType.UNDEFINED, DType.UINT8) and graph.input(node, 2) is None:
        scale = graph.operand(node, 1)
        if scale.shape is None or not all(isinstance(d, int) for d in scale.shape):
            return "has no attribute 'output_dtype'"
        zeros = np.zeros(scale.static_shape, dtype.numpy)
        graph.set_input(node, 2, graph.add_constant(f"{node.name or graph.result(node).name}.zero_point", zeros))
    _leave_out(graph, node, new, {"saturate": 19, "block_size": 21, "output_dtype": 21, "precision": 23})
    return None


def _dequantize_linear(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """21: blocks. 23: the output's type may be another than the scale's."""
    if new < 21 and node.attr("block_size", 0):
        return "has no attribute 'block_size'"
    if new < 23 and node.attr("output_dtype", 0) not in (0, graph.operand(node, 1).dtype):
        return "has no attribute 'output_dtype'"
    _leave_out(graph, node, new, {"block_size": 21, "output_dtype": 23})
    return None


def _group_normalization(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """21: scale and bias of each channel; before, of each group. They follow a normalisation that scales nothing."""
    x, y = graph.operand(node, 0), graph.result(node)
    kind, groups = _kind(graph, node), int(node.attr("num_groups", 0))
    if old < 21 or x.shape is None or node.attr("stash_type", 1) != 1 or kind not in (np.float32, np.float64):
        return "scales groups where the other scales channels"
    base = node.name or y.name
    per_channel = graph.add_constant(f"{base}.per_channel", np.array([-1, *[1] * (len(x.shape) - 2)], np.int64))
    scale, bias = (
        graph.op("Reshape", graph.operand(node, slot), per_channel, name=f"{base}.{name}")
        for slot, name in ((1, "scale"), (2, "bias"))
    )
    graph.set_attribute(node, "stash_type", None)
    attributes = dict(node.attributes)
    graph.detach(node)
    plain = [
        graph.add_constant(f"{base}.{n}", fill(groups, kind)) for n, fill in (("ones", np.ones), ("zeros", np.zeros))
    ]
    made = graph.add_node("GroupNormalization", [x, *plain], [f"{base}.normal"], attributes, name=node.name)
    normal = graph.result(made)
    graph.set_type(normal, x.dtype, x.shape)
    scaled = graph.op("Mul", normal, scale, name=f"{base}.scaled")
    graph.set_type(scaled, x.dtype, x.shape)
    graph.add_node("Add", [scaled, bias], [y], name=f"{base}.shifted")
    return None


def _rms_normalization(graph: Graph, node: Node, old: int, new: int) -> str | None:
    """23: new. Before, as ONNX Runtime's own fusion knows it: x / √(mean(x²) + ε) · γ, the square as a power."""
    x, scale, y = graph.operand(node, 0), graph.operand(node, 1), graph.result(node)
    axis = int(node.attr("axis", -1))
    plain = x.dtype is DType.FLOAT and scale.dtype is DType.FLOAT and node.attr("stash_type", 1) == 1
    if not plain or (axis >= 0 and x.shape is None):
        return "has no such op"
    axes = np.arange(axis, 0) if axis < 0 else np.arange(axis, len(x.shape or ()))
    base, epsilon = node.name or y.name, float(node.attr("epsilon", 1e-5))
    graph.detach(node)
    two = graph.add_constant(f"{base}.two", np.float32(2))
    mean = graph.op(
        "ReduceMean", graph.op("Pow", x, two, name=f"{base}.square"),
        graph.add_constant(f"{base}.axes", axes.astype(np.int64)), name=f"{base}.mean", keepdims=1,
    )  # fmt: skip
    variance = graph.op(
        "Add", mean, graph.add_constant(f"{base}.epsilon", np.float32(epsilon)), name=f"{base}.variance"
    )
    normal = graph.op("Div", x, graph.op("Sqrt", variance, name=f"{base}.root"), name=f"{base}.normal")
    graph.set_type(normal, x.dtype, x.shape)
    graph.add_node("Mul", [normal, scale], [y], name=node.name)
    return None


def _leave_out(graph: Graph, node: Node, new: int, since: Mapping[str, int]) -> None:
    """Leaves out attributes younger than the opset, which say what is meant without them."""
    for name, first in since.items():
        if new < first:
            graph.set_attribute(node, name, None)


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
    "Clip": _clip,
    "DFT": _never("gives its axis differently"),
    "DequantizeLinear": _dequantize_linear,
    "Dropout": _dropout,
    "GridSample": _grid_sample,
    "GroupNormalization": _group_normalization,
    "Mod": _mod,
    "Pad": _pad,
    "QuantizeLinear": _quantize_linear,
    "RMSNormalization": _rms_normalization,
    "Resize": _resize,
    "RoiAlign": _roi_align,
    "Scan": _scan,
    "Scatter": _scatter,
    "Slice": _slice,
    "Split": _split,
    "TopK": _top_k,
    "Upsample": _upsample,
}
