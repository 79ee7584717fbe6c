"""What an ONNX op's attributes mean: defaults filled in, pads resolved, axes counted from the front.

Rule tables (gradients, shapes, cost, quantisation) read these views and never raw attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.errors import ModelError, UnsupportedError
from onnxslim.ir.graph import Array, Graph, Node
from onnxslim.ir.op_facts import facts_of

__all__ = [
    "RANDOM",
    "Window",
    "attention_widths",
    "axes_of",
    "axis_of",
    "fused_order",
    "given_numbers",
    "is_left_out",
    "is_pure",
    "is_training",
    "padding",
    "sliced",
    "target_axes",
    "target_slot",
    "window",
    "window_of",
]

RANDOM = (
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
"""Ops of ai.onnx whose results may differ from run to run."""


def is_pure(graph: Graph, node: Node) -> bool:
    """Whether equal inputs give equal outputs, by what ONNX itself says: such a node may be computed ahead, or
    once for several. Not random ops, other domains, local functions and nodes with bodies."""
    if node.domain or node.overload or node.op in RANDOM:
        return False
    local = any((f.domain, f.name) == (node.domain, node.op) for f in graph.functions)
    return not local and not any(a.HasField("g") or a.graphs for a in node.attributes.values())


def is_training(graph: Graph, node: Node) -> bool | None:
    """Whether a BatchNormalization or a Dropout does what it does in training; None where that is computed or fed.

    A batch norm says so by `training_mode` from opset 14 on, and by asking for more than one output before; a dropout
    by an input from opset 12 on, and never before.
    """
    if node.op == "BatchNormalization":
        if 0 < graph.opset < 14:
            return any(value is not None for value in graph.node_outputs(node)[1:])
        return bool(node.attr("training_mode", 0))
    mode = graph.input(node, 2)
    if mode is None:
        return False
    array = graph.constant_of(mode)
    return None if array is None else bool(array.any())


def given_numbers(graph: Graph, node: Node, name: str, slot: int) -> Array | None:
    """The numbers of a parameter that is an input in newer opsets (`slot`) and was an attribute (`name`) in older
    ones; None where they are left out, or computed: `is_left_out` tells which."""
    value = graph.input(node, slot)
    if value is not None:
        return graph.constant_of(value)
    numbers = node.attr(name)
    return None if numbers is None else np.asarray(numbers)


def is_left_out(graph: Graph, node: Node, name: str, slot: int) -> bool:
    """Whether a parameter is neither an input nor, as in older opsets, an attribute."""
    return graph.input(node, slot) is None and node.attr(name) is None


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pool over `len(kernel)` spatial axes.

    pads: all the begins, then all the ends, as ONNX has them.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1

    @property
    def is_pointwise(self) -> bool:
        """A 1×1 kernel on every pixel: a matrix product."""
        ones = set(self.kernel) | set(self.strides)
        return ones == {1} and not any(self.pads)

    def attributes(self) -> dict[str, list[int]]:
        """As ONNX attributes, the group left out."""
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "pads": list(self.pads),
            "dilations": list(self.dilations),
        }


def window(graph: Graph, node: Node) -> Window:
    """The window of a convolution or pool whose input (and weight) shapes are known, `auto_pad` resolved into pads.

    Raises UnsupportedError where that needs unknown sizes.
    """
    facts = facts_of(node)
    kernel = node.attr("kernel_shape")
    if not kernel and facts.weights:
        kernel = graph.operand(node, facts.weights[0]).static_shape[2:]
    if not kernel:
        raise UnsupportedError(f"{node} has no kernel_shape")
    shape = graph.operand(node, 0).shape
    sizes = None if shape is None or not all(isinstance(d, int) for d in shape[2:]) else shape[2:]
    return window_of(node, tuple(kernel), None if sizes is None else [int(d) for d in sizes if isinstance(d, int)])


def window_of(node: Node, kernel: Sequence[int], sizes: Sequence[int] | None) -> Window:
    """The window of a node with that kernel, over an input of those spatial sizes (None: not known); as `window`."""
    rank, facts = len(kernel), facts_of(node)
    strides = tuple(int(s) for s in node.attr("strides") or [1] * rank)
    dilations = tuple(int(d) for d in node.attr("dilations") or [1] * rank)
    pads = tuple(int(p) for p in node.attr("pads") or [0] * (2 * rank))
    auto = node.attr("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        if sizes is None or facts.outs == 1:  # of a transposed convolution, they depend on the sizes that are asked for
            raise UnsupportedError(
                f"{node} has auto_pad={auto} on sizes {sizes or 'that are not known'}; make its pads explicit first"
            )
        spans = zip(sizes, kernel, strides, dilations)
        total = [max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0) for size, k, s, d in spans]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = tuple(small + large if auto == "SAME_UPPER" else large + small)
    elif auto == "VALID":
        pads = (0,) * (2 * rank)
    return Window(tuple(kernel), strides, pads, dilations, int(node.attr("group", 1)))


def axis_of(node: Node, rank: int, default: int) -> int:
    """The `axis` attribute, counted from the front."""
    return int(node.attr("axis", default)) % rank


def fused_order(node: Node, slot: int, rank: int) -> list[int]:
    """The order in which ONNX Runtime's FusedMatMul takes the axes of a side: transBatchA puts the first axis behind
    the others of the batch ([0, 1, 2, 3] → [1, 2, 0, 3]), transA then exchanges the last two."""
    order, side = list(range(rank)), "AB"[slot]
    if node.attr(f"transBatch{side}", 0) and rank > 1:
        order = [*order[1:-1], order[0], order[-1]]
    if node.attr(f"trans{side}", 0) and rank > 1:
        order[-2:] = reversed(order[-2:])
    return order


def attention_widths(node: Node, columns: int) -> list[int]:
    """How many columns of the merged weights of an Attention (ONNX Runtime's own op) are queries, keys, and values."""
    return [int(width) for width in node.attr("qkv_hidden_sizes") or [columns // 3] * 3]


def axes_of(graph: Graph, node: Node, rank: int, slot: int = 1) -> tuple[int, ...] | None:
    """The axes of a reduction, Squeeze or Unsqueeze, from its attribute or constant input, sorted
    and counted from the front; all axes where none are given (none for `noop_with_empty_axes`).

    None where they are computed at run time.
    """
    given = given_numbers(graph, node, "axes", slot)
    if given is None and not is_left_out(graph, node, "axes", slot):
        return None
    axes: Sequence[int] = [] if given is None else [int(a) for a in given.reshape(-1)]
    if not axes:
        return () if node.attr("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(a % rank for a in axes))


_TARGETS = {"Expand": 1, "Reshape": 1, "Resize": 3}


def target_slot(node: Node) -> int | None:
    """The input in which a node is told what sizes its result has; None for an op that is not."""
    return None if node.domain else _TARGETS.get(node.op)


def target_axes(node: Node, rank: int, count: int) -> list[int]:
    """The axes of the result, of that rank, that the `count` numbers of a target (`target_slot`) are of."""
    given = node.attr("axes") if node.op == "Resize" else None
    return [a % rank for a in given] if given else list(range(rank - count, rank))


def sliced(graph: Graph, node: Node) -> dict[int, Array | None] | None:
    """By axis, the indices int64 that a Slice takes one after another; None for an axis that it takes in steps or that
    has no known size; and None for all where starts, ends, axes or steps are computed."""
    shape = graph.operand(node, 0).shape
    given = [(name, slot) for slot, name in enumerate(("starts", "ends", "axes", "steps"), 1)]
    starts, ends, axes, steps = (given_numbers(graph, node, name, slot) for name, slot in given)
    left_out = [is_left_out(graph, node, name, slot) for name, slot in given]
    computed = any(n is None and not out for n, out in zip((starts, ends, axes, steps), left_out))
    if shape is None or starts is None or ends is None or computed:
        return None
    axes = np.arange(len(starts)) if axes is None else axes % len(shape)
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    found: dict[int, Array | None] = {}
    for axis, start, end, step in zip(axes.tolist(), starts.tolist(), ends.tolist(), steps.tolist()):
        size = shape[axis]
        found[axis] = np.arange(size)[start:end] if step == 1 and isinstance(size, int) else None
    return found


def padding(graph: Graph, node: Node, rank: int | None = None) -> list[tuple[int, int]] | None:
    """What a Pad adds before and after each axis of its input; None where that is computed, or the axes are unknown.

    rank: of the input, where its shape does not say it. Raises ModelError for pads or axes that do not fit it.
    """
    shape = graph.operand(node, 0).shape
    rank = len(shape) if shape is not None else rank
    pads, axes = given_numbers(graph, node, "pads", 1), graph.constant_of(graph.input(node, 3))
    if rank is None or pads is None or (axes is None and graph.input(node, 3) is not None):
        return None
    given = list(range(rank)) if axes is None else [int(a) for a in axes.reshape(-1)]
    if any(not -rank <= a < rank for a in given) or len({a % rank for a in given}) < len(given):
        raise ModelError(f"{node}: expected axes of {rank}, each once, got {given}")
    if pads.ndim != 1 or len(pads) != 2 * len(given):
        raise ModelError(f"{node}: expected {2 * len(given)} pads, two for each of {len(given)} axes, got {pads.size}")
    places = [a % rank for a in given]
    added = [(0, 0)] * rank
    for i, axis in enumerate(places):
        added[axis] = int(pads[i]), int(pads[i + len(places)])
    return added
