"""`Pruner`: a model, its channel groups in scope, and what is wanted; it plans a cut and makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np

from onnxslim.analysis.channels import Group, Groups, find_groups
from onnxslim.analysis.scope import Names, label, matched, matches
from onnxslim.errors import RecipeError, UnsupportedError
from onnxslim.graph import Array, Graph
from onnxslim.pruning.allocation import Allocation, Ideal, Target, allocate, by_loss, by_threshold, limits_of, uniform
from onnxslim.pruning.criteria import Criterion, scores
from onnxslim.pruning.footprint import Footprint, Size
from onnxslim.rewrite import Outcome, Pass
from passes.prune import CutChannels, MaskChannels

__all__ = ["GroupPlan", "Mode", "PrunePlan", "Pruner", "Scope", "Strategy"]

Strategy: TypeAlias = Literal["uniform", "global", "sensitivity"]
Mode: TypeAlias = Literal["physical", "masked"]


@dataclass(frozen=True)
class Scope:
    """Which groups may be cut, and how far.

    only: patterns for group names, names of nodes and parameters, op types; empty: all. exclude: the same, left alone.
    max_ratio: of a group's units that may go; limits: the same by pattern. multiple: what is left of a group's
    channels is a multiple of it.
    """

    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_ratio: float = 0.9
    limits: Mapping[str, float] = field(default_factory=dict)
    multiple: int = 8


@dataclass(frozen=True)
class GroupPlan:
    """One group: channels and MACs (of the nodes that make its channels, for one sample) before and after; the units
    that go."""

    group: Group
    gone: tuple[int, ...]
    macs: tuple[int, int]

    @property
    def channels(self) -> tuple[int, int]:
        return self.group.channels, self.group.channels - len(self.gone) * self.group.width


@dataclass(frozen=True)
class PrunePlan:
    """What goes, group by group, and the model's size before and after."""

    groups: tuple[GroupPlan, ...]
    before: Size
    after: Size
    level: float
    repaired: int

    @property
    def cuts(self) -> dict[str, tuple[int, ...]]:
        """Units to take away by group, as the passes want them."""
        return {plan.group.name: plan.gone for plan in self.groups if plan.gone}

    def apply(self, graph: Graph, mode: Mode = "physical") -> Outcome:
        """Cuts, or masks, in place."""
        step: Pass = CutChannels(self.cuts) if mode == "physical" else MaskChannels(self.cuts)
        return step(graph)


class Pruner:
    """Plans cuts of one graph, which has inferred shapes and is not changed.

    products: what the criterion taylor needs, gradient · weight by parameter for each batch. Raises RecipeError where
    the scope is wrong or empty.
    """

    def __init__(
        self,
        graph: Graph,
        scope: Scope,
        criterion: Criterion = "l1",
        seed: int = 0,
        products: Sequence[Mapping[str, Array]] = (),
    ) -> None:
        self.graph, self.scope, self.criterion, self.seed, self.products = graph, scope, criterion, seed, products
        self.groups: Groups = find_groups(graph)
        self.chosen: tuple[Group, ...] = tuple(_in_scope(graph, self.groups, scope))

    @property
    def pinned(self) -> dict[str, str]:
        """Groups that cannot be cut, and why."""
        return {group.name: group.pinned[0] for group in self.groups.groups if group.pinned}

    @cached_property
    def scores(self) -> dict[str, Array]:
        return scores(self.graph, self.chosen, self.criterion, seed=self.seed, products=self.products)

    @cached_property
    def ratios(self) -> dict[str, float]:
        """The largest ratio of each group's units that may go."""
        found = dict.fromkeys((group.name for group in self.chosen), self.scope.max_ratio)
        named = {group.name: _names(self.graph, group) for group in self.chosen}
        for pattern, ratio in self.scope.limits.items():
            for name in matches(pattern, named, "limits", "channel group in scope"):
                found[name] = ratio
        return found

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
        return by_loss(self.chosen, losses or {})

    def plan(
        self,
        ideal: Ideal,
        targets: Mapping[str, float],
        fits: Callable[[Graph], bool] | None = None,
        whole: Size | None = None,
    ) -> PrunePlan:
        """The least cut that meets all targets.

        targets: by quantity (macs, params, bytes), at most so much: up to 1 a fraction of `whole` (default: of this
        graph), above 1 an absolute number. fits: whether a cut model will do, where that has to be measured.
        Raises UnsupportedError with the reachable range.
        """
        footprint = Footprint(self.graph, {group.name: group for group in self.chosen})
        before = footprint.size
        bounds = [Target(q, _bound(q, value, whole or before)) for q, value in targets.items()]
        makers = {g.name: sum(footprint.macs_of(node) for node in g.makers) for g in self.chosen}
        condition = None if fits is None else lambda left: fits(self._cut(left))
        allocation = allocate(
            footprint, ideal, limits_of(self.chosen, self.ratios, self.scope.multiple), bounds, condition
        )
        return self._plan(allocation, before, footprint, makers)

    def _plan(self, allocation: Allocation, before: Size, footprint: Footprint, makers: Mapping[str, int]) -> PrunePlan:
        plans = []
        for group in self.chosen:
            gone = self.lowest(group.name, group.units - allocation.left[group.name])
            after = sum(footprint.macs_of(node) for node in group.makers)
            plans.append(GroupPlan(group, gone, (makers[group.name], after)))
        return PrunePlan(tuple(plans), before, allocation.size, allocation.level, sum(allocation.repaired.values()))

    def _cut(self, left: Mapping[str, int]) -> Graph:
        graph = self.graph.copy()
        CutChannels({g.name: self.lowest(g.name, g.units - left[g.name]) for g in self.chosen})(graph)
        return graph


def _bound(quantity: str, value: float, whole: Size) -> float:
    return value if value > 1 else value * float(getattr(whole, quantity))


def _names(graph: Graph, group: Group) -> Names:
    weights = [m.value.name for m in group.members if m.value.array is not None and m.makes]
    makers = [label(graph, node) for node in group.makers]
    return Names((group.name, *makers, *weights), tuple(dict.fromkeys(node.op for node in group.makers)))


def _in_scope(graph: Graph, groups: Groups, scope: Scope) -> list[Group]:
    """The free groups that `only` and `exclude` leave, in order."""
    named = {group.name: _names(graph, group) for group in groups.groups}
    chosen = matched(scope.only, named, "scope", "channel group") if scope.only else list(named)
    left_out = set(matched(scope.exclude, named, "exclude", "channel group"))
    found = [g for g in groups.groups if g.name in chosen and g.name not in left_out and not g.pinned]
    if not found:
        why = [f"'{g.name}': {g.pinned[0]}" for g in groups.groups if g.name in chosen and g.pinned]
        if not groups.groups:
            raise UnsupportedError(f"Graph '{graph.name}' has no channels that a weight makes")
        raise RecipeError(f"scope: no channel group is left to be cut ({'; '.join(why) or 'all are excluded'})")
    return found
