"""`Pruner`: a model, its channel groups in scope, and what is wanted; it plans a cut and makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np

from onnxslim.analysis.channels import Group, Groups, find_groups
from onnxslim.brief import Brief
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.rewrite import Pass
from onnxslim.pruning.allocation import (
    Ideal,
    LatencyTarget,
    Limit,
    SizeTarget,
    allocate,
    by_loss,
    by_threshold,
    limits_of,
    require_reachable,
    uniform,
)
from onnxslim.pruning.criteria import L1, Criterion, scores
from onnxslim.pruning.footprint import Footprint, Size
from onnxslim.pruning.scope import Scope
from passes.prune import CutChannels, MaskChannels

__all__ = ["GroupPlan", "Mode", "PrunePlan", "Pruner", "Strategy"]

Strategy: TypeAlias = Literal["uniform", "global", "sensitivity"]
"""How a cut is spread over the channel groups."""

Mode: TypeAlias = Literal["physical", "masked"]


_USUAL = L1()


@dataclass(frozen=True, repr=False)
class GroupPlan(Brief):
    """One group: channels and MACs (of the nodes that make its channels, for one sample) before and after; the units
    that go."""

    group: Group
    gone: tuple[int, ...]
    macs: tuple[int, int]

    @property
    def channels(self) -> tuple[int, int]:
        return self.group.channels, self.group.channels - len(self.gone) * self.group.width


@dataclass(frozen=True, repr=False)
class PrunePlan(Brief):
    """What goes, group by group, and the model's size before and after; its latency as a fraction of the whole
    model's, where that was asked for. counted_at: the shapes of the inputs for which MACs are counted, where neither
    the model, nor data, nor options say them."""

    groups: tuple[GroupPlan, ...]
    before: Size
    after: Size
    level: float
    repaired: int
    latency: float | None = None
    counted_at: str | None = None

    @property
    def left(self) -> dict[str, float]:
        """Parts of macs, params and bytes that are left, where the model has any that can be counted."""
        sizes = zip(Size._fields, self.before, self.after)
        return {quantity: after / before for quantity, before, after in sizes if before}

    @property
    def cuts(self) -> dict[str, tuple[int, ...]]:
        """Units to take away by group, as the passes want them."""
        return {plan.group.name: plan.gone for plan in self.groups if plan.gone}

    def carried_out(self, mode: Mode = "physical") -> Pass:
        """The pass that cuts, or masks."""
        return CutChannels(self.cuts) if mode == "physical" else MaskChannels(self.cuts)


class Pruner:
    """Plans cuts of one graph, which has inferred shapes and is not changed.

    products: what a criterion may need, gradient · weight by parameter for each batch. sizes: of free axes of
    the inputs, at which MACs are counted. Raises OptionError where the scope is wrong or empty.
    """

    def __init__(
        self,
        graph: Graph,
        scope: Scope,
        criterion: Criterion = _USUAL,
        seed: int = 0,
        products: Sequence[Mapping[str, Array]] = (),
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        self.graph, self.criterion, self.seed = graph, criterion, seed
        self.products, self.sizes = products, sizes
        self.groups: Groups = find_groups(graph)
        ratios = scope.ratios(graph, self.groups)
        self.chosen: tuple[Group, ...] = tuple(self.groups.by_name[name] for name in ratios)
        self.limits: Mapping[str, Limit] = limits_of(self.chosen, ratios, scope.multiple)

    @property
    def pinned(self) -> dict[str, str]:
        """Groups that cannot be cut, and why."""
        return {group.name: group.pinned[0] for group in self.groups.groups if group.pinned}

    @cached_property
    def scores(self) -> dict[str, Array]:
        return scores(self.graph, self.chosen, self.criterion, seed=self.seed, products=self.products)

    @property
    def footprint(self) -> Footprint:
        """Of the graph, all units left; there is one, counted once."""
        self._counted.with_left(self._counted.units)
        return self._counted

    @cached_property
    def _counted(self) -> Footprint:
        return Footprint(self.graph, {group.name: group for group in self.chosen}, self.sizes)

    def lowest(self, name: str, count: int) -> tuple[int, ...]:
        """The `count` units of a group that matter least, ascending."""
        order = np.argsort(self.scores[name], kind="stable")[:count]
        return tuple(sorted(int(unit) for unit in order))

    def ideal(self, strategy: Strategy, losses: Mapping[str, Mapping[float, float]] | None = None) -> Ideal:
        """What a strategy would take at each level. losses: sensitivity's, by group and ratio."""
        if strategy == "uniform":
            return uniform(self.chosen)
        if strategy == "global":
            return by_threshold(self.scores)
        return by_loss(self.chosen, losses or {}, self._savings())

    def plan(
        self,
        ideal: Ideal,
        targets: Mapping[str, float],
        latency: LatencyTarget[Graph] | None = None,
        whole: Size | None = None,
    ) -> PrunePlan:
        """The least cut that meets all targets.

        targets: by quantity (macs, params, bytes), at most so much: up to 1 a fraction of `whole` (default: of this
        graph), above 1 an absolute number. latency: of a cut model, measured.
        Raises UnsupportedError with the reachable range.
        """
        footprint = self.footprint
        before, macs = footprint.size, self._macs(footprint)
        measured: LatencyTarget[Mapping[str, int]] | None = None
        if latency is not None:
            ratio_of = latency.ratio_of
            measured = LatencyTarget(latency.bound, lambda left: ratio_of(self._cut(left)))
        found = allocate(footprint, ideal, self.limits, _bounds(targets, whole or before), measured)
        rows = [
            GroupPlan(group, self.lowest(group.name, group.units - found.left[group.name]), (was, now))
            for group, was, now in zip(self.chosen, macs, self._macs(footprint))
        ]
        return PrunePlan(tuple(rows), before, found.size, found.level, sum(found.repaired.values()), found.latency)

    def require_reachable(self, targets: Mapping[str, float], whole: Size | None = None) -> None:
        """Raises UnsupportedError with the reachable range where a target is out of reach, before anything is
        scored or measured."""
        footprint = self.footprint
        before = footprint.size
        smallest = footprint.with_left({name: limit.least for name, limit in self.limits.items()})
        require_reachable(_bounds(targets, whole or before), smallest, before)

    def _savings(self) -> dict[str, float]:
        """MACs, or parameters where those cannot be counted, that go with all but one unit of each group alone."""
        footprint = self.footprint
        whole, saved = footprint.size, {}
        for group in self.chosen:
            footprint.set(group.name, 1)
            left = footprint.size
            saved[group.name] = float(whole.macs - left.macs if whole.macs else whole.params - left.params)
            footprint.set(group.name, group.units)
        return saved

    def _macs(self, footprint: Footprint) -> list[int]:
        """Of the nodes that make each group's channels."""
        return [sum(footprint.macs_of(node) for node in group.makers) for group in self.chosen]

    def _cut(self, left: Mapping[str, int]) -> Graph:
        graph = self.graph.copy()
        CutChannels({g.name: self.lowest(g.name, g.units - left[g.name]) for g in self.chosen})(graph)
        return graph


def _bounds(targets: Mapping[str, float], whole: Size) -> list[SizeTarget]:
    """What up to 1 is a fraction of `whole`, as numbers. Raises UnsupportedError where there is nothing to count."""
    for quantity in targets:
        if not getattr(whole, quantity):
            raise UnsupportedError(
                f"{quantity}: the model has none that can be counted (sizes that are free but for the batch, or ops of "
                "unknown cost): give `sizes={'AXIS': NUMBER}`, or another target, such as params or bytes"
            )
    return [SizeTarget(q, value if value > 1 else value * float(getattr(whole, q))) for q, value in targets.items()]
