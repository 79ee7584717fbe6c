"""What each op couples: a rule per op, read by `couple`.

An op that has no rule pins every live axis that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from onnxslim.analysis.channels.couplings import Couplings
from onnxslim.analysis.channels.rules import contraction, elementwise, movement, normalization, selection
from onnxslim.graph import Node

__all__ = ["RULES", "couple"]

Rule: TypeAlias = Callable[[Couplings, Node], None]

RULES: Mapping[tuple[str, str], Rule] = {
    **elementwise.RULES,
    **contraction.RULES,
    **normalization.RULES,
    **movement.RULES,
    **selection.RULES,
}
"""By domain and op."""


def couple(couplings: Couplings) -> None:
    """Lets every node of the graph say what it couples; graph outputs keep their channels."""
    graph = couplings.graph
    local = {(f.domain, f.name) for f in graph.functions}
    for node in graph.nodes():
        kind = (node.domain, node.op)
        rule = None if kind in local or graph.captures(node) else RULES.get(kind)
        if rule is None:
            couplings.pin_all(node, f"{node} has no rule for channels")
        else:
            rule(couplings, node)
    for value in graph.outputs:
        for axis in couplings.live_axes(value):
            couplings.pin(value, axis, f"'{value.name}' is an output of the graph")
