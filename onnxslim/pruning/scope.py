"""`Scope`: which channel groups may be cut, and how far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxslim.analysis.channels import Group, Groups
from onnxslim.analysis.scope import Names, label, matched, matches
from onnxslim.errors import OptionError, UnsupportedError
from onnxslim.ir.graph import Graph

__all__ = ["Scope"]


@dataclass(frozen=True)
class Scope:
    """only: patterns for group names, names of nodes and parameters, op types; empty: all. exclude: the same, left
    alone. max_ratio: of a group's units that may go; limits: the same by pattern. multiple: what is left of a group's
    channels is a multiple of it.
    """

    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_ratio: float = 0.9
    limits: Mapping[str, float] = field(default_factory=dict)
    multiple: int = 8

    def ratios(self, graph: Graph, groups: Groups) -> dict[str, float]:
        """The largest ratio of its units that may go, of each free group in scope, in order.

        Raises OptionError where a pattern matches nothing or no group is left, UnsupportedError where there is none.
        """
        named = {group.name: _names(graph, group) for group in groups.groups}
        asked = matched(self.only, named, "scope", "channel group") if self.only else list(named)
        left_out = set(matched(self.exclude, named, "exclude", "channel group"))
        pinned = {group.name: group.pinned[0] for group in groups.groups if group.pinned}
        free = [name for name in named if name in asked and name not in left_out and name not in pinned]
        if not groups.groups:
            raise UnsupportedError(f"Graph '{graph.name}' has no channels that a weight makes")
        if not free:
            why = [f"'{name}': {pinned[name]}" for name in named if name in asked and name in pinned]
            why += [f"{len(left_out)} are excluded"] if left_out else []
            raise OptionError("scope", f"no channel group is left to be cut ({'; '.join(why)})")
        found = dict.fromkeys(free, self.max_ratio)
        for pattern, ratio in self.limits.items():
            chosen = {name: named[name] for name in free}
            found |= dict.fromkeys(matches(pattern, chosen, "limits", "channel group in scope"), ratio)
        return found


def _names(graph: Graph, group: Group) -> Names:
    weights = [m.value.name for m in group.members if m.value.array is not None and m.makes]
    makers = [label(graph, node) for node in group.makers]
    return Names((group.name, *makers, *weights), tuple(dict.fromkeys(node.op for node in group.makers)))
