"""Criteria: how much each unit of a channel group matters.

Every criterion gives each group's units a score; the lowest go first. A weight's scores are divided by their mean
before the weights of a group are averaged, so that large and small ones have the same say, and so that groups
compare. Filters in front of a batch norm are left out of norms: it takes their scale away again. What speaks for
a channel then is what reads it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.analysis.channels import Group, Member
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Array, Graph, Role
from onnxslim.options import declared

__all__ = ["L1", "L2", "BatchnormScale", "Chance", "Criterion", "GeometricMedian", "Seen", "Taylor", "scores"]


@dataclass(frozen=True)
class Seen:
    """What a criterion may look at. random: drawn from group after group. products: gradient · weight by parameter, for
    each batch, where the criterion reads gradients."""

    graph: Graph
    random: np.random.Generator
    products: Sequence[Mapping[str, Array]] = ()


class Criterion(ABC):
    """How much each unit of a channel group matters. What it takes is declared in its fields
    (`onnxslim.options.declared`).

    reads_gradients: whether it needs labelled data, a step of which gives `Seen.products`. reads_batchnorm: whether it
    looks at batch norms, which may have to be put back first.
    """

    name: ClassVar[str]
    reads_gradients: ClassVar[bool] = False
    reads_batchnorm: ClassVar[bool] = False

    @abstractmethod
    def score(self, group: Group, seen: Seen) -> Array:
        """The score of each unit: float64 [units], mean 1 where any is positive. UnsupportedError where the group has
        nothing that the criterion looks at."""


def scores(
    graph: Graph,
    groups: Sequence[Group],
    criterion: Criterion,
    *,
    seed: int = 0,
    products: Sequence[Mapping[str, Array]] = (),
) -> dict[str, Array]:
    """By group, the score of each unit (see `Criterion.score`)."""
    seen = Seen(graph, np.random.default_rng(seed), products)
    return {group.name: criterion.score(group, seen) for group in groups}


@declared
class L1(Criterion):
    """The mean of the absolute values of a unit's weights (Li et al., 2017)."""

    name: ClassVar[str] = "l1"

    def score(self, group: Group, seen: Seen) -> Array:
        return _averaged([_l1(_slices(m)) for m in _scaled(seen.graph, group)], group)


@declared
class L2(Criterion):
    """The root mean square of a unit's weights (Li et al., 2017)."""

    name: ClassVar[str] = "l2"

    def score(self, group: Group, seen: Seen) -> Array:
        return _averaged([_l2(_slices(m)) for m in _scaled(seen.graph, group)], group)


@declared
class BatchnormScale(Criterion):
    """|γ| of the group's batch norms (Liu et al., 2017)."""

    name: ClassVar[str] = "bn_scale"
    reads_batchnorm: ClassVar[bool] = True

    def score(self, group: Group, seen: Seen) -> Array:
        return _batchnorm_scale(seen.graph, group)


@declared
class GeometricMedian(Criterion):
    """How far a filter is from all others (He et al., 2019)."""

    name: ClassVar[str] = "fpgm"

    def score(self, group: Group, seen: Seen) -> Array:
        return _averaged([_fpgm(_slices(m)) for m in _weights(group) if m.makes], group)


@declared
class Taylor(Criterion):
    """The square of Σ gradient · weight, the first-order change of the loss, over batches (Molchanov et al., 2019)."""

    name: ClassVar[str] = "taylor"
    reads_gradients: ClassVar[bool] = True

    def score(self, group: Group, seen: Seen) -> Array:
        return _taylor(group, seen.products)


@declared
class Chance(Criterion):
    """Drawn by the seed: what a choice without looking costs."""

    name: ClassVar[str] = "random"

    def score(self, group: Group, seen: Seen) -> Array:
        return np.asarray(seen.random.random(group.units))


def _weights(group: Group) -> list[Member]:
    """The group's members that are weights: matrices and filters, on either side."""
    kept = []
    for member in group.members:
        value = member.value
        matrix = value.array is not None and value.dtype.is_float and value.array.ndim > 1
        if matrix and value.role not in (Role.SCALE, Role.STATISTIC) and not _is_vector(member):
            kept.append(member)
    return kept


def _scaled(graph: Graph, group: Group) -> list[Member]:
    """The weights whose scale reaches what reads them."""
    weights = _weights(group)
    normed = any(_batchnorm_uses(graph, member) for member in group.members)
    return [m for m in weights if not (normed and m.makes)] or weights


def _batchnorm_uses(graph: Graph, member: Member) -> bool:
    """Whether it is the scale of a batch norm."""
    if member.value.array is None:
        return False
    return any(use.node.op == "BatchNormalization" and use.slot == 1 for use in graph.uses(member.value))


def _is_vector(member: Member) -> bool:
    """Whether all other axes are 1: a bias or factor in the shape that broadcasts."""
    assert member.value.array is not None
    return bool(member.value.array.size == member.value.array.shape[member.axis])


def _slices(member: Member, array: Array | None = None) -> Array:
    """What each unit has of a weight: float64 [units, elements]."""
    array = member.value.array if array is None else array
    assert array is not None
    front = np.moveaxis(array, member.axis, 0)
    return np.asarray(front[member.index.reshape(-1)], np.float64).reshape(len(member.index), -1)


def _l1(slices: Array) -> Array:
    return np.asarray(np.abs(slices).mean(axis=1))


def _l2(slices: Array) -> Array:
    return np.asarray(np.sqrt(np.square(slices).mean(axis=1)))


def _fpgm(slices: Array) -> Array:
    squares = np.square(slices).sum(axis=1)
    apart = squares[:, None] + squares[None, :] - 2 * slices @ slices.T
    return np.asarray(np.sqrt(np.maximum(apart, 0)).mean(axis=1))


def _taylor(group: Group, products: Sequence[Mapping[str, Array]]) -> Array:
    """The loss's first-order change when a unit goes is the sum of gradient · weight over the weights that read it."""
    readers = [m for m in _weights(group) if not m.makes] or _weights(group)
    total = np.zeros(group.units)
    for batch in products:
        change = np.zeros(group.units)
        for member in readers:
            product = batch.get(member.value.name)
            if product is None:
                raise UnsupportedError(
                    f"Criterion taylor has no gradient of '{member.value.name}' in channel group '{group.name}': "
                    "nothing trains it; choose l1, or leave the group out of the scope"
                )
            change += _slices(member, product).sum(axis=1)
        total += np.square(change)
    return _averaged([total / max(len(products), 1)], group)


def _batchnorm_scale(graph: Graph, group: Group) -> Array:
    found = [_l1(_slices(member)) for member in group.members if _batchnorm_uses(graph, member)]
    if not found:
        raise UnsupportedError(
            f"Criterion bn_scale: channel group '{group.name}' has no batch norm, it is folded into the weights: "
            "put it back with restore_batchnorm (needs data), or choose another criterion"
        )
    return _averaged(found, group)


def _averaged(parts: Sequence[Array], group: Group) -> Array:
    if not parts:
        arrays = (member.value.array for member in group.members)
        whole = any(array is not None and array.ndim > 1 and array.dtype.kind in "iu" for array in arrays)
        way_out = "its weights are integers: prune the float model that it was made from" if whole else "choose random"
        raise UnsupportedError(f"Channel group '{group.name}' has no weight to be judged by: {way_out}")
    means = [(part, part.mean()) for part in parts]
    return np.asarray(np.mean([part / mean if mean > 0 else part for part, mean in means], axis=0))
