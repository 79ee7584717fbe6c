"""`Pruner`: a model, its channel groups in scope, and what is wanted; it plans a cut and makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np

from onnxslim.analysis.channels import Group, Groups, find_groups
from onnxslim.analysis.scope import Names, label, matched, matches
from onnxslim.brief import Brief
from onnxslim.errors import OptionError, UnsupportedError
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.rewrite import Outcome, Pass
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
from passes.prune import CutChannels, MaskChannels

__all__ = ["GroupPlan", "Mode", "PrunePlan", "Pruner", "Scope", "Strategy"]

Strategy: TypeAlias = Literal["uniform", "global", "sensitivity"]
"""How a cut is spread over the channel groups."""

Mode: TypeAlias = Literal["physical", "masked"]


_USUAL = L1()


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

    def apply(self, graph: Graph, mode: Mode = "physical") -> Outcome:
        """Cuts, or masks, in place."""
        step: Pass = CutChannels(self.cuts) if mode == "physical" else MaskChannels(self.cuts)
        return step(graph)


class Pruner:
    """Plans cuts of one graph, which has inferred shapes and is not changed.

    products: what a criterion may need, gradient · weight by parameter for each batch. sizes: of free axes of
    the inputs, at which MACs are counted. Raises OptionError where
    the scope is wrong or empty.
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
        self.sizes = sizes
        self.graph, self.scope, self.criterion, self.seed, self.products = graph, scope, criterion, seed, products
        self.groups: Groups = find_groups(graph)
        self.chosen: tuple[Group, ...] = tuple(_in_scope(graph, self.groups, scope))
        self.limits: Mapping[str, Limit] = limits_of(self.chosen, _ratios(graph, self.chosen, scope), scope.multiple)

    @property
    def pinned(self) -> dict[str, str]:
        """Groups that cannot be cut, and why."""
        return {group.name: group.pinned[0] for group in self.groups.groups if group.pinned}

    @cached_property
    def scores(self) -> dict[str, Array]:
        return scores(self.graph, self.chosen, self.criterion, seed=self.seed, products=self.products)

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
        footprint = Footprint(self.graph, {group.name: group for group in self.chosen}, self.sizes)
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
        footprint = Footprint(self.graph, {group.name: group for group in self.chosen}, self.sizes)
        before = footprint.size
        smallest = footprint.with_left({name: limit.least for name, limit in self.limits.items()})
        require_reachable(_bounds(targets, whole or before), smallest, before)

    def _savings(self) -> dict[str, float]:
        """MACs, or parameters where those cannot be counted, that go with all but one unit of each group alone."""
        footprint = Footprint(self.graph, {group.name: group for group in self.chosen}, self.sizes)
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


def _ratios(graph: Graph, groups: Sequence[Group], scope: Scope) -> dict[str, float]:
    """The largest ratio of each group's units that may go."""
    found = dict.fromkeys((group.name for group in groups), scope.max_ratio)
    named = {group.name: _names(graph, group) for group in groups}
    for pattern, ratio in scope.limits.items():
        for name in matches(pattern, named, "limits", "channel group in scope"):
            found[name] = ratio
    return found


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
        why += [f"{len(left_out)} are excluded"] if left_out else []
        if not groups.groups:
            raise UnsupportedError(f"Graph '{graph.name}' has no channels that a weight makes")
        raise OptionError("scope", f"no channel group is left to be cut ({'; '.join(why)})")
    return found
