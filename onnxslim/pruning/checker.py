"""`PruneChecker`: runs a graph before and after each pass of a cut, and names what changed it that must not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnxslim.ir.graph import Graph
from onnxslim.pruning.batchnorm import ReestimateBatchnorm
from onnxslim.runtime.checker import RunChecker
from passes.prune import CutChannels, MaskChannels

__all__ = ["PruneChecker"]

_OTHER_FUNCTION = (MaskChannels.name, ReestimateBatchnorm.name)
"""Passes that are there to make another function of the model."""


@dataclass(frozen=True)
class PruneChecker:
    """Implements `rewrite.Checker`: the same comes out before and after, and of a cut what comes out with the same
    units masked. cuts: the units, by the name of their group."""

    checker: RunChecker
    cuts: Mapping[str, Sequence[int]] = field(default_factory=dict, hash=False)

    def check(self, before: Graph, after: Graph, what: str) -> None:
        if what in _OTHER_FUNCTION:
            return
        if what == CutChannels.name:
            before = before.copy()
            MaskChannels(self.cuts)(before)
        self.checker.check(before, after, what)
