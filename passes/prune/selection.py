"""Which units of which groups go: checked, and spread to the axes on which they stand."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.channels import Axis, Group, Groups
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Array, Graph, Value

__all__ = ["Survivors", "chosen_units", "known_size"]


@dataclass(frozen=True)
class Survivors:
    """What stays on each axis that loses something: int64 indices, ascending."""

    kept: Mapping[Axis, Array]

    @classmethod
    def of(cls, graph: Graph, chosen: Sequence[tuple[Group, Array]]) -> Survivors:
        """After the given units of the given groups are gone."""
        gone: dict[Axis, list[Array]] = {}
        for group, units in chosen:
            for member in group.members:
                gone.setdefault(Axis(member.value.id, member.axis), []).append(member.index[units].reshape(-1))
        kept = {}
        for axis, parts in gone.items():
            stays = np.ones(known_size(axis.of(graph), axis.axis), bool)
            stays[np.concatenate(parts)] = False
            kept[axis] = np.flatnonzero(stays)
        return cls(kept)

    def on(self, value: Value, axis: int) -> Array | None:
        """The indices that stay; None where all do."""
        return self.kept.get(Axis(value.id, axis))

    def left(self, value: Value, axis: int) -> int:
        """How many indices stay."""
        kept = self.on(value, axis)
        return known_size(value, axis) if kept is None else len(kept)

    def axes(self, value: Value) -> dict[int, Array]:
        """By axis that loses something, what stays."""
        return {axis: kept for axis in range(len(value.shape or ())) if (kept := self.on(value, axis)) is not None}


def chosen_units(groups: Groups, cuts: Mapping[str, Sequence[int]]) -> list[tuple[Group, Array]]:
    """The groups named and their units that go, ascending; groups that lose none are left out.

    Raises UnsupportedError: no such group, a pinned one, a unit out of range or named twice, no unit left.
    """
    chosen = []
    for name, units in cuts.items():
        group = groups.by_name.get(name)
        if group is None:
            near = difflib.get_close_matches(name, groups.by_name, n=3, cutoff=0.4)
            hint = f"; near names: {', '.join(near)}" if near else ""
            raise UnsupportedError(f"There is no channel group '{name}'{hint}")
        if len(units) == 0:
            continue
        if group.pinned:
            raise UnsupportedError(f"Channel group '{name}' cannot be cut: {group.pinned[0]}")
        gone = np.unique(np.asarray(units, np.int64))
        if len(gone) != len(units) or gone[0] < 0 or gone[-1] >= group.units:
            raise UnsupportedError(
                f"Channel group '{name}' has units 0 to {group.units - 1}, each to be named once: got {list(units)}"
            )
        if len(gone) == group.units:
            raise UnsupportedError(f"Channel group '{name}' would lose all of its {group.units} units")
        chosen.append((group, gone))
    return chosen


def known_size(value: Value, axis: int) -> int:
    """The length of an axis that is known to have one."""
    size = None if value.shape is None else value.shape[axis]
    assert isinstance(size, int)
    return size
