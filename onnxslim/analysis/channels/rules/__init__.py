"""What each op couples: a rule per op, read by `couple`.

An op that has no rule pins every live axis that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from onnxslim.analysis.channels.couplings import Couplings
from onnxslim.analysis.channels.rules import contraction, elementwise, movement, normalization, selection
from onnxslim.ir.graph import Node
from onnxslim.ir.ops import target_axes, target_slot

__all__ = ["ENDING", "PINNING", "RULES", "SILENT", "couple"]

Rule: TypeAlias = Callable[[Couplings, Node], None]

RULES: Mapping[tuple[str, str], Rule] = {
    **elementwise.RULES,
    **contraction.RULES,
    **normalization.RULES,
    **movement.RULES,
    **selection.RULES,
}
"""By domain and op."""
ENDING: Mapping[tuple[str, str], Rule] = contraction.ENDING
"""Those that sum over channels, which end there."""
PINNING: Mapping[tuple[str, str], Rule] = {**contraction.PINNING, **normalization.PINNING}
"""Those that mix the indices of an axis in another way, which must stay then."""
SILENT: Mapping[tuple[str, str], Rule] = normalization.SILENT
"""Those whose results have no channels."""


def couple(couplings: Couplings) -> None:
    """Lets every node of the graph say what it couples."""
    graph = couplings.graph
    local = {(f.domain, f.name) for f in graph.functions}
    for node in graph.nodes():
        kind = (node.domain, node.op)
        rule = None if kind in local or graph.captures(node) else RULES.get(kind)
        if rule is None:
            couplings.pin_all(node, "has no rule for channels")
        else:
            rule(couplings, node)
            _check_target(couplings, node)
    couplings.close()


def _check_target(couplings: Couplings, node: Node) -> None:
    """Sizes that a node is told can follow a cut where it is known what they are."""
    graph, slot = couplings.graph, target_slot(node)
    target = None if slot is None else graph.input(node, slot)
    if target is None or graph.constant_of(target) is not None:
        return
    result = graph.result(node)
    axes = couplings.live_axes(result)
    if not axes:
        return
    elements = couplings.shape_values.get(target.id)
    told = [] if elements is None else target_axes(node, len(result.shape or ()), len(elements))
    sizes = {} if elements is None else dict(zip(told, elements.tolist()))
    for axis in axes:
        if not isinstance(sizes.get(axis), int):
            couplings.pin(node, result, axis, "is told its size by something unknown")
