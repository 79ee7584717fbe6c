"""Element by element: axes meet as they broadcast, from the back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnxslim.analysis.channels.couplings import Couplings, End
from onnxslim.ir.dialect import FAKE_QUANT
from onnxslim.ir.graph import Node, Value
from onnxslim.ir.op_facts import FACTS

__all__ = ["RULES", "broadcast", "join_axes"]


def broadcast(couplings: Couplings, node: Node, values: list[Value], result: Value) -> None:
    """Each axis of the result with those operands' axes that are not stretched to it.

    Where all operands are constants, every axis may be one of channels, as a later node tells.
    """
    if result.shape is None or any(value.shape is None for value in values):
        couplings.pin_all(node, "has operands or a result of unknown rank")
        return
    constant = all(couplings.graph.constant_of(v) is not None for v in values)
    for axis, size in enumerate(result.shape):
        ends = [End(result, axis)]
        for value in values:
            shape = value.shape or ()
            place = axis - len(result.shape) + len(shape)
            if place < 0:  # an operand of lower rank: the same for all along this axis
                continue
            dim = shape[place]
            if dim == size or not isinstance(dim, int):
                ends.append(End(value, place))
            else:
                couplings.pin(node, value, place, "stretches it")
        couplings.join(node, ends, start=constant and len(ends) > 1)


def join_axes(couplings: Couplings, node: Node, pairs: list[tuple[int, int]], slot: int = 0, output: int = 0) -> None:
    """Couples axes of one input with axes of one output, index by index."""
    value, result = couplings.graph.operand(node, slot), couplings.graph.node_outputs(node)[output]
    if result is not None:
        for axis, other in pairs:
            couplings.join(node, [End(value, axis), End(result, other)])


def _all_inputs(couplings: Couplings, node: Node) -> None:
    values = [v for v in couplings.graph.node_inputs(node) if v is not None]
    for result in couplings.graph.node_outputs(node):
        if result is not None:
            broadcast(couplings, node, values, result)


def _first_input(couplings: Couplings, node: Node) -> None:
    """Further inputs are limits and ratios, one for all elements."""
    value = couplings.graph.operand(node, 0)
    for result in couplings.graph.node_outputs(node):
        if result is not None:
            broadcast(couplings, node, [value], result)


def _grid(couplings: Couplings, node: Node) -> None:
    """FakeQuant, QuantizeLinear, DequantizeLinear: one scale for all, or one an index of `axis`."""
    graph = couplings.graph
    value, result = graph.operand(node, 0), graph.result(node)
    if node.attr("block_size", 0):
        couplings.pin_all(node, "has a scale for each block")
        return
    constant = graph.constant_of(value) is not None
    rank = len(value.shape or ())
    default = 1 if node.domain == "" else None
    axis = node.attr("axis", default)
    # FakeQuant's range (slot 3) is one for all
    grids = [v for slot in (1, 2) if (v := graph.input(node, slot)) is not None and v.shape not in ((), None)]
    for place in range(rank):
        along = axis is not None and place == axis % rank
        extra = [End(v, 0) for v in grids if along and v.shape == (couplings.size(value, place),)]
        couplings.join(node, [End(value, place), End(result, place), *extra], start=constant)


_BY_KIND: Mapping[str, Callable[[Couplings, Node], None]] = {
    "unary": _all_inputs,
    "limited": _first_input,
    "broadcast": _all_inputs,
}
RULES: Mapping[tuple[str, str], Callable[[Couplings, Node], None]] = {
    **{key: _BY_KIND[facts.elementwise] for key, facts in FACTS.items() if facts.elementwise is not None},
    **{("", op): _grid for op in ("DequantizeLinear", "QuantizeLinear")},
    FAKE_QUANT: _grid,
}
