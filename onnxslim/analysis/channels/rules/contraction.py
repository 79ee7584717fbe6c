"""Where channels begin and end: convolutions, matrix products, recurrent inputs, sums.

A contraction multiplies and sums: over the channels it reads, which end there, into those that its weight makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from onnxslim.analysis.channels.couplings import LONGEST, Couplings, End
from onnxslim.analysis.channels.rules.elementwise import broadcast, join_axes
from onnxslim.ir.graph import Node, Value
from onnxslim.ir.ops import attention_widths, axes_of, fused_order

__all__ = ["ENDING", "PINNING", "RULES"]


def _with_known_filters(rule: Callable[[Couplings, Node], None]) -> Callable[[Couplings, Node], None]:
    """A rule of convolutions, for weights whose channels are counted."""

    def guarded(couplings: Couplings, node: Node) -> None:
        w = couplings.graph.operand(node, 1)
        first, second, group = couplings.size(w, 0), couplings.size(w, 1), int(node.attr("group", 1))
        if first is None or second is None:
            couplings.pin_all(node, "has a weight of unknown size")
        elif max(first, second) * group > LONGEST:
            couplings.pin_all(node, "has more channels than can be followed")
        elif not first * second or first % group:
            couplings.pin_all(node, "has filters that its group does not divide")
        else:
            rule(couplings, node)

    return guarded


def _convolution(couplings: Couplings, node: Node) -> None:
    """y[o] = Σ_i w[o, i] · x[i] + b[o], within each of `group` groups."""
    graph = couplings.graph
    x, w, y = graph.operand(node, 0), graph.operand(node, 1), graph.result(node)
    bias = [End(b, 0)] if (b := graph.input(node, 2)) is not None else []
    outputs, inner = w.static_shape[:2]
    groups = int(node.attr("group", 1))
    if inner == 1 and groups > 1:  # depthwise: each input channel makes its own outputs
        source = np.arange(outputs) // (outputs // groups)
        couplings.join(node, [End(w, 0), End(y, 1), *bias, End(x, 1, source)], start=True)
        couplings.make(node, w, 0)
        return
    channel = np.arange(inner * groups)
    couplings.join(node, [End(x, 1), End(w, 1, channel % inner)])
    couplings.end(node, 0, 1)
    couplings.join(node, [End(w, 0), End(y, 1), *bias], start=True)
    _alike(couplings, node, w, 0, outputs, groups)
    couplings.make(node, w, 0)


def _fused_convolution(couplings: Couplings, node: Node) -> None:
    """A convolution and an activation. Where a summand is added in between, ONNX Runtime runs no other numbers of
    channels than those that fill its vectors."""
    if couplings.graph.input(node, 3) is not None:
        couplings.pin_all(node, "adds to what it makes, for which its channels have to fill vectors")
    else:
        _convolution(couplings, node)


def _transposed(couplings: Couplings, node: Node) -> None:
    """As a convolution, with the weight [inputs, outputs of a group, …]."""
    graph = couplings.graph
    x, w, y = graph.operand(node, 0), graph.operand(node, 1), graph.result(node)
    bias = [End(b, 0)] if (b := graph.input(node, 2)) is not None else []
    inputs, outer = w.static_shape[:2]
    groups = int(node.attr("group", 1))
    if inputs == groups and groups > 1:
        couplings.join(node, [End(w, 0), End(x, 1)], start=True)
        couplings.join(node, [End(y, 1), *bias, End(w, 0, np.arange(groups * outer) // outer)], start=True)
        couplings.make(node, w, 0)
        return
    couplings.join(node, [End(x, 1), End(w, 0)])
    couplings.end(node, 0, 1)
    if couplings.is_live(x, 1):
        _alike(couplings, node, x, 1, inputs, groups)
    couplings.join(node, [End(y, 1), *bias, End(w, 1, np.arange(groups * outer) % outer)], start=True)
    couplings.make(node, w, 1)


def _alike(couplings: Couplings, node: Node, value: Value, axis: int, size: int, groups: int) -> None:
    """The groups of a convolution stay equally wide: what goes in one goes in all, at the same place."""
    if groups > 1:
        couplings.join(node, [End(value, axis), End(value, axis, np.arange(size) % (size // groups))])


def _gemm(couplings: Couplings, node: Node) -> None:
    """y[m, n] = Σ_k a[m, k] · b[k, n] + c."""
    graph = couplings.graph
    a, b, y = graph.operand(node, 0), graph.operand(node, 1), graph.result(node)
    rows, depth = (1, 0) if node.attr("transA", 0) else (0, 1)
    inner, columns = (1, 0) if node.attr("transB", 0) else (0, 1)
    _product(couplings, node, a, b, y, (rows, depth), (inner, columns))
    c = graph.input(node, 2)
    if c is not None:
        broadcast(couplings, node, [c, y], y)


def _matmul(couplings: Couplings, node: Node) -> None:
    """y[…, m, n] = Σ_k a[…, m, k] · b[…, k, n]; the axes before broadcast. FusedMatMul takes those of a side in another
    order."""
    graph = couplings.graph
    a, b, y = graph.operand(node, 0), graph.operand(node, 1), graph.result(node)
    if a.shape is None or b.shape is None or y.shape is None or min(len(a.shape), len(b.shape)) < 2:
        couplings.pin_all(node, "does not multiply matrices of known rank")
        return
    rank_a, rank_b, rank = len(a.shape), len(b.shape), len(y.shape)
    orders = fused_order(node, 0, rank_a), fused_order(node, 1, rank_b)
    rows, depth = orders[0][-2:]
    inner, outer = orders[1][-2:]
    _product(couplings, node, a, b, y, (rows, depth), (inner, outer))
    for axis in range(rank - 2):
        ends = [End(y, axis)]
        for value, order in ((a, orders[0]), (b, orders[1])):
            place = axis - rank + len(order)
            if place >= 0 and value.shape is not None and value.shape[order[place]] != 1:
                ends.append(End(value, order[place]))
        couplings.join(node, ends)


def _product(
    couplings: Couplings, node: Node, a: Value, b: Value, y: Value, axes_a: tuple[int, int], axes_b: tuple[int, int]
) -> None:
    rank = len(y.shape or ())
    couplings.join(node, [End(a, axes_a[1]), End(b, axes_b[0])])
    couplings.end(node, 0, axes_a[1])
    couplings.end(node, 1, axes_b[0])
    for value, axis, place in ((a, axes_a[0], rank - 2), (b, axes_b[1], rank - 1)):
        is_weight = _is_weight(couplings, value)
        couplings.join(node, [End(value, axis), End(y, place)], start=is_weight)
        if is_weight:
            couplings.make(node, value, axis)


def _is_weight(couplings: Couplings, value: Value) -> bool:
    """A constant, or one that a grid was laid over."""
    producer = couplings.graph.producer(value)
    if producer is not None and producer.op in ("FakeQuant", "DequantizeLinear"):
        return couplings.graph.constant_of(couplings.graph.operand(producer, 0)) is not None
    return couplings.graph.constant_of(value) is not None


def _einsum(couplings: Couplings, node: Node) -> None:
    """Each letter is one axis wherever it stands; those that the result lacks end here."""
    graph = couplings.graph
    text = str(node.attr("equation", "")).replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if not arrow or "." in text or any(len(set(term)) < len(term) for term in [*terms, right]):
        couplings.pin_all(node, f"has no rule for channels with the equation '{text}'")
        return
    values = [graph.operand(node, slot) for slot in range(len(terms))]
    y = graph.result(node)
    for letter in dict.fromkeys("".join(terms)):
        ends = [End(v, term.index(letter)) for v, term in zip(values, terms) if letter in term]
        made = [end for end in ends if _is_weight(couplings, end.value)] if letter in right else []
        if letter in right:
            ends.append(End(y, right.index(letter)))
        alone = bool(made) and len(made) == len(ends) - 1  # only weights have it: channels begin here
        couplings.join(node, ends, start=alone)
        if alone:
            for end in made:
                couplings.make(node, end.value, end.axis)
        elif letter not in right:
            for slot, term in enumerate(terms):
                if letter in term:
                    couplings.end(node, slot, term.index(letter))


def _sum(couplings: Couplings, node: Node) -> None:
    """A sum, of squares or magnitudes too, does not see channels of zeros: they end there."""
    _reduced(couplings, node, ends=True)


def _other_reduction(couplings: Couplings, node: Node) -> None:
    _reduced(couplings, node, ends=False)


def _reduced(couplings: Couplings, node: Node, *, ends: bool) -> None:
    graph = couplings.graph
    x = graph.operand(node, 0)
    axes = None if x.shape is None else axes_of(graph, node, len(x.shape))
    if x.shape is None or axes is None:
        couplings.pin_all(node, "reduces axes that are not known")
        return
    keep = bool(node.attr("keepdims", 1))
    for axis in axes:
        if ends:
            couplings.end(node, 0, axis)
        else:
            couplings.pin(node, x, axis, "reduces over it")
    rest = [a for a in range(len(x.shape)) if a not in axes]
    join_axes(couplings, node, [(a, a if keep else i) for i, a in enumerate(rest)])


def _arg(couplings: Couplings, node: Node) -> None:
    x = couplings.graph.operand(node, 0)
    rank = len(x.shape or ())
    axis = int(node.attr("axis", 0)) % max(rank, 1)
    couplings.pin(node, x, axis, "reduces over it")
    keep = bool(node.attr("keepdims", 1))
    join_axes(couplings, node, [(a, a if keep or a < axis else a - 1) for a in range(rank) if a != axis])


def _recurrent(couplings: Couplings, node: Node) -> None:
    """The input's features end in W [directions, gates · hidden, input]. Hidden unit h is row h of each gate in W, in
    R [directions, gates · hidden, hidden], where it ends too, in both biases and in the peepholes, and number h of the
    states; in both directions at once."""
    graph = couplings.graph
    w, r = graph.operand(node, 1), graph.operand(node, 2)
    couplings.join(node, [End(graph.operand(node, 0), 2), End(w, 2)])
    couplings.end(node, 0, 2)
    hidden, rows = couplings.size(r, 2), couplings.size(r, 1)
    if hidden is None or rows is None or not _is_weight(couplings, w) or not _is_weight(couplings, r):
        return
    ends = [End(r, 2)]
    for value in (w, r, graph.input(node, 3), graph.input(node, 7)):  # B and P are [directions, numbers]
        size = None if value is None else couplings.size(value, 1)
        if value is not None and size is not None:
            ends.append(End(value, 1, np.arange(size)))
    states = [graph.input(node, slot) for slot in (5, 6)]
    ends += [End(v, len(v.shape) - 1) for v in (*states, *graph.node_outputs(node)) if v is not None and v.shape]
    unit = np.arange(hidden)
    for end in ends[1:]:
        count = hidden if end.at is None else len(end.at)
        couplings.join(node, [end, End(r, 2, np.resize(unit, count))], start=True)
    couplings.end(node, 2, 2)
    couplings.make(node, r, 2)


def _attention(couplings: Couplings, node: Node) -> None:
    """The input's features end in W [input, Q + K + V]. A head is its columns of each of the three in W and the bias,
    its features of the result, and its number in a table of positions."""
    graph = couplings.graph
    x, w, y = graph.operand(node, 0), graph.operand(node, 1), graph.result(node)
    couplings.join(node, [End(x, 2), End(w, 0)])
    couplings.end(node, 0, 2)
    columns, features = couplings.size(w, 1), couplings.size(y, 2)
    widths, heads = attention_widths(node, columns or 0), int(node.attr("num_heads", 0))
    whole = heads > 0 and len(widths) == 3 and all(width > 0 and not width % heads for width in widths)
    if not whole or sum(widths) != columns or widths[2] != features or not _is_weight(couplings, w):
        return
    depth = widths[2] // heads  # a head's first feature stands for it
    merged = np.concatenate([np.arange(width) // (width // heads) * depth for width in widths])
    couplings.join(node, [End(w, 1), End(y, 2, merged)], start=True)
    couplings.join(node, [End(y, 2), End(y, 2, np.arange(widths[2]) // depth * depth)])
    tables = [(graph.input(node, 2), 0), (graph.input(node, 4), 2), (graph.input(node, 5), 1)]  # bias, past, positions
    present = graph.node_outputs(node)[1:2]
    for value, axis in (*tables, *((made, 2) for made in present)):
        if value is None or couplings.size(value, axis) == 1:
            continue
        couplings.join(node, [End(value, axis), End(y, 2, merged if axis == 0 else np.arange(heads) * depth)])
    couplings.make(node, w, 1)


_SUMS = ("ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare")
_OTHERS = ("ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")

_Rules: TypeAlias = Mapping[tuple[str, str], Callable[[Couplings, Node], None]]

ENDING: _Rules = {
    ("", "Conv"): _with_known_filters(_convolution),
    ("", "ConvTranspose"): _with_known_filters(_transposed),
    ("", "Einsum"): _einsum,
    ("", "GRU"): _recurrent,
    ("", "Gemm"): _gemm,
    ("", "LSTM"): _recurrent,
    ("", "MatMul"): _matmul,
    ("", "RNN"): _recurrent,
    ("com.microsoft", "Attention"): _attention,
    ("com.microsoft", "FusedConv"): _with_known_filters(_fused_convolution),
    ("com.microsoft", "FusedGemm"): _gemm,
    ("com.microsoft", "FusedMatMul"): _matmul,
    **{("", op): _sum for op in _SUMS},
}
PINNING: _Rules = {
    ("", "ArgMax"): _arg,
    ("", "ArgMin"): _arg,
    **{("", op): _other_reduction for op in _OTHERS},
}
RULES: _Rules = {**ENDING, **PINNING}
