"""Norms, pools and resizing: what treats each channel by itself hands it on; what mixes channels pins them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from onnxslim.analysis.channels.couplings import Couplings, End
from onnxslim.analysis.channels.rules.elementwise import join_axes
from onnxslim.ir.graph import Node
from onnxslim.ir.ops import is_training

__all__ = ["PINNING", "RULES", "SILENT"]


def _channelwise(couplings: Couplings, node: Node) -> None:
    """Axes 0 and 1 stay as they are; the others are looked at through windows."""
    for output in range(node.arity[1]):
        join_axes(couplings, node, [(0, 0), (1, 1)], output=output)


def _max_pool(couplings: Couplings, node: Node) -> None:
    """Its second output says where a maximum stood among all channels."""
    graph = couplings.graph
    places = graph.node_outputs(node)[1] if node.arity[1] > 1 else None
    if places is not None and (graph.is_used(places) or graph.is_output(places)):
        for axis in (0, 1):
            couplings.pin(node, graph.operand(node, 0), axis, "counts places over all channels")
    _channelwise(couplings, node)


def _resize(couplings: Couplings, node: Node) -> None:
    """A scale other than 1 mixes channels, even where their number stays."""
    graph = couplings.graph
    x = graph.operand(node, 0)
    scales = graph.constant_of(graph.input(node, 2))
    axes = node.attr("axes") or range(len(x.shape or ()))
    for axis, scale in zip(axes, () if scales is None else scales.tolist()):
        if scale != 1:
            couplings.pin(node, x, axis % max(len(x.shape or ()), 1), "resizes it")
    _channelwise(couplings, node)


def _batchnorm(couplings: Couplings, node: Node) -> None:
    """One scale, shift, mean and variance a channel; its training outputs are statistics."""
    graph = couplings.graph
    x, y, *statistics = (graph.operand(node, 0), *graph.node_outputs(node))
    assert y is not None
    vectors = [End(graph.operand(node, slot), 0) for slot in range(1, node.arity[0])]
    couplings.join(node, [End(x, 1), End(y, 1), *vectors, *(End(s, 0) for s in statistics if s is not None)])
    for axis in range(len(x.shape or ())):
        if axis != 1 and is_training(graph, node):
            couplings.pin(node, x, axis, "normalises over it")
        elif axis != 1:
            couplings.join(node, [End(x, axis), End(y, axis)])


def _instance(couplings: Couplings, node: Node) -> None:
    graph = couplings.graph
    vectors = [End(graph.operand(node, slot), 0) for slot in (1, 2)]
    couplings.join(node, [End(graph.operand(node, 0), 1), End(graph.result(node), 1), *vectors])
    join_axes(couplings, node, [(0, 0)])


def _from_axis(default: int, why: str = "normalises over it") -> Callable[[Couplings, Node], None]:
    """Mixes `axis` and those after it."""

    def rule(couplings: Couplings, node: Node) -> None:
        x = couplings.graph.operand(node, 0)
        rank = len(x.shape or ())
        axis = int(node.attr("axis", default)) % max(rank, 1)
        for mixed in range(axis, rank):
            couplings.pin(node, x, mixed, why)
        for output in range(node.arity[1]):
            join_axes(couplings, node, [(a, a) for a in range(axis)], output=output)

    return rule


def _with_skip(couplings: Couplings, node: Node) -> None:
    """The sum of two inputs, normalised over the last axis, which its bias has too; a second output is the sum."""
    graph = couplings.graph
    x = graph.operand(node, 0)
    rank = len(x.shape or ())
    for value in graph.node_inputs(node):
        if value is not None and value.shape:
            couplings.pin(node, value, len(value.shape) - 1, "normalises over it")
    for axis in range(rank - 1):
        made = [End(v, axis) for v in graph.node_outputs(node) if v is not None and len(v.shape or ()) == rank]
        skip = graph.operand(node, 1)
        couplings.join(node, [End(x, axis), *([End(skip, axis)] if len(skip.shape or ()) == rank else []), *made])


def _one_axis(default: int) -> Callable[[Couplings, Node], None]:
    """Mixes `axis` alone."""

    def rule(couplings: Couplings, node: Node) -> None:
        x = couplings.graph.operand(node, 0)
        rank = len(x.shape or ())
        axis = int(node.attr("axis", default)) % max(rank, 1)
        couplings.pin(node, x, axis, "normalises over it")
        join_axes(couplings, node, [(a, a) for a in range(rank) if a != axis])

    return rule


def _mean_variance(couplings: Couplings, node: Node) -> None:
    x = couplings.graph.operand(node, 0)
    rank = len(x.shape or ())
    mixed = {a % max(rank, 1) for a in node.attr("axes", [0, 2, 3])}
    for axis in range(rank):
        if axis in mixed:
            couplings.pin(node, x, axis, "normalises over it")
        else:
            join_axes(couplings, node, [(axis, axis)])


def _neighbours(couplings: Couplings, node: Node) -> None:
    couplings.pin(node, couplings.graph.operand(node, 0), 1, "normalises over neighbouring channels")
    join_axes(couplings, node, [(0, 0)])


def _group_norm(couplings: Couplings, node: Node) -> None:
    """Channels that are normalised over together come and go together: a unit is a whole group. Scale and shift have
    an element a group until opset 20, a channel from then on."""
    graph = couplings.graph
    x = graph.operand(node, 0)
    size, groups = couplings.size(x, 1), int(node.attr("num_groups", 1))
    if size is None or groups < 2 or size % groups:
        couplings.pin(node, x, 1, "normalises over all channels" if groups == 1 else "has groups of unknown size")
        return
    width = size // groups
    channel = np.arange(size)
    ends = [End(x, 1), End(graph.result(node), 1), End(x, 1, channel // width * width)]
    for slot in (1, 2):
        vector = graph.operand(node, slot)
        ends.append(End(vector, 0, None if couplings.size(vector, 0) == size else channel // width))
    couplings.join(node, ends)
    join_axes(couplings, node, [(0, 0)])


def _nothing(couplings: Couplings, node: Node) -> None:
    """Its result has no channels: it tells sizes, or makes constants."""


def _count(couplings: Couplings, node: Node) -> None:
    couplings.pin_all(node, "counts its elements")


_CHANNELWISE = [
    "AveragePool",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "GridSample",
    "LpPool",
]

_Rules: TypeAlias = Mapping[tuple[str, str], Callable[[Couplings, Node], None]]

PINNING: _Rules = {
    ("", "Hardmax"): _one_axis(-1),
    ("", "LRN"): _neighbours,
    ("", "LayerNormalization"): _from_axis(-1),
    ("", "LogSoftmax"): _one_axis(-1),
    ("", "LpNormalization"): _one_axis(-1),
    ("", "MeanVarianceNormalization"): _mean_variance,
    ("", "RMSNormalization"): _from_axis(-1),
    ("", "SimplifiedLayerNormalization"): _from_axis(-1),
    ("", "Size"): _count,
    ("", "Softmax"): _one_axis(-1),
    ("", "Trilu"): _from_axis(-2, "cuts a triangle out of it"),
    ("com.microsoft", "SkipLayerNormalization"): _with_skip,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _with_skip,
}
SILENT: _Rules = {("", op): _nothing for op in ("Constant", "ConstantOfShape", "Range", "Shape")}
RULES: _Rules = {
    **{("", op): _channelwise for op in _CHANNELWISE},
    ("", "BatchNormalization"): _batchnorm,
    ("", "GroupNormalization"): _group_norm,
    ("", "InstanceNormalization"): _instance,
    ("", "MaxPool"): _max_pool,
    ("", "Resize"): _resize,
    **PINNING,
    **SILENT,
}
