"""Whether the operands of a node fit one another where neither onnx's inference nor the attributes say: parameters of
norms and biases of convolutions, groups of channels, matrices, pads. ONNX Runtime refuses what does not; a pass that
relied on it would fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnxslim.errors import ModelError
from onnxslim.ir.dialect import DIALECT
from onnxslim.ir.graph import Dim, Graph, Node, Shape, Value
from onnxslim.ir.op_facts import channel_counts, facts_of
from onnxslim.ir.ops import padding
from onnxslim.ir.shapes import Types

__all__ = ["misfit"]


def misfit(graph: Graph, node: Node, found: Types) -> str | None:
    """What does not fit, in words that follow the node's name; None where nothing is wrong, or known. found: shapes
    that values do not know themselves."""
    own, facts = DIALECT.get((node.domain, node.op)), facts_of(node)
    if own is not None:
        values = graph.node_inputs(node)
        return own.misfit(node, values, [_shape(value, found) for value in values])
    if facts.window and facts.weights:
        return _a_number_each(graph, node, found)
    rule = None if node.domain else _RULES.get(node.op)
    return None if rule is None else rule(graph, node, found)


def _a_number_each(graph: Graph, node: Node, found: Types) -> str | None:
    """Norms and biases have one a channel."""
    if not node.attr("spatial", 1):
        return None
    channels = _channels(graph, node, found)
    if channels is None:
        return None
    facts = facts_of(node)
    for slot in (*facts.scales, *facts.biases, *facts.statistics):
        value = graph.input(node, slot)
        shape = _shape(value, found)
        if value is not None and shape is not None and not (len(shape) == 1 and _same(shape[0], channels)):
            return f"expected '{value.name}' to have one number for each of {channels} channels, got {list(shape)}"
    return None


def _group_norm(graph: Graph, node: Node, found: Types) -> str | None:
    x, groups = _shape(graph.input(node, 0), found), int(node.attr("num_groups", 1))
    channels = x[1] if x is not None and len(x) > 1 else None
    if not isinstance(channels, int) or channels % groups == 0:
        return None
    return f"expected num_groups to divide the {channels} channels of its input, got {groups}"


def _gemm(graph: Graph, node: Node, found: Types) -> str | None:
    shapes = [_shape(graph.input(node, slot), found) for slot in (0, 1)]
    wrong = next((shape for shape in shapes if shape is not None and len(shape) != 2), None)
    return None if wrong is None else f"expected two matrices, got a shape {list(wrong)}"


def _pad(graph: Graph, node: Node, found: Types) -> str | None:
    shape = _shape(graph.input(node, 0), found)
    try:
        padding(graph, node, None if shape is None else len(shape))
    except ModelError as error:
        return str(error).removeprefix(f"{node}: ")
    return None


def _channels(graph: Graph, node: Node, found: Types) -> Dim:
    """Of the input of a norm, or of what a convolution makes; None where that is not known."""
    facts, group = facts_of(node), node.attr("group", 1)
    if not facts.window:
        x = _shape(graph.input(node, 0), found)
        return x[1] if x is not None and len(x) > 1 else None
    weight = _shape(graph.input(node, facts.weights[0]), found)
    if weight is None or len(weight) < 3 or not isinstance(group, int):
        return None
    return channel_counts(facts, weight, group)[0]


def _shape(value: Value | None, found: Types) -> Shape | None:
    if value is None:
        return None
    return found.get(value.name, (value.dtype, None))[1] if value.shape is None else value.shape


def _same(a: Dim, b: Dim) -> bool:
    return not isinstance(a, int) or not isinstance(b, int) or a == b


def _squeeze(graph: Graph, node: Node, found: Types) -> str | None:
    axes = graph.constant_of(graph.input(node, 1))
    if axes is None or axes.size:
        return None
    return "expected axes to take away, got an empty list, by which ONNX means none and ONNX Runtime all of size 1"


_RULES: Mapping[str, Callable[[Graph, Node, Types], str | None]] = {
    "BatchNormalization": _a_number_each,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _a_number_each,
    "Pad": _pad,
    "Squeeze": _squeeze,
}
