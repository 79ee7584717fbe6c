"""What the tests of channel groups share."""

from __future__ import annotations

import numpy as np

from onnxslim.analysis.channels import Group, Groups, find_groups
from onnxslim.ir.graph import Graph
from tests.passes.prune.conftest import Net, check_cuts

__all__ = ["Net", "each", "groups_of", "index"]


def groups_of(graph: Graph) -> Groups:
    """The groups; every cut of them is checked by running it."""
    assert max(check_cuts(graph)) <= 1e-5
    return find_groups(graph)


def index(group: Group) -> dict[str, list[list[int]]]:
    """By "<value>:<axis>", the indices of each unit."""
    return {f"{m.value.name}:{m.axis}": m.index.tolist() for m in group.members}


def each(units: int, times: int = 1, *, step: int | None = None) -> list[list[int]]:
    """Unit u stands for `times` indices: those from u · times on, or u, u + step, u + 2 · step, …"""
    if step is None:
        return np.arange(units * times).reshape(units, times).tolist()
    return [[u + step * i for i in range(times)] for u in range(units)]
