"""Criteria: how much each unit of a channel group matters.

Every criterion gives each group's units a score; the lowest go first. A weight's scores are divided by their mean
before the weights of a group are averaged, so that large and small ones have the same say, and so that groups
compare. Filters in front of a batch norm are left out of norms: it takes their scale away again. What speaks for
a channel then is what reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from onnxslim.analysis.channels import Group, Member
from onnxslim.choices import Criterion
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Array, Graph, Role

__all__ = ["CRITERIA", "Criterion", "scores"]

CRITERIA: tuple[Criterion, ...] = get_args(Criterion)


def scores(
    graph: Graph,
    groups: Sequence[Group],
    criterion: Criterion = "l1",
    *,
    seed: int = 0,
    products: Sequence[Mapping[str, Array]] = (),
) -> dict[str, Array]:
    """By group, the score of each unit: float64 [units], mean 1 where any is positive.

    l1, l2: the norms of the weights' slices (Li et al., 2017). bn_scale: |γ| of the group's batch norms (Liu et al.,
    2017). fpgm: how far a filter is from all others (He et al., 2019). taylor: the square of Σ gradient · weight,
    over batches (Molchanov et al., 2019); `products` holds that product, by parameter name, for each batch.
    random: drawn by the seed.

    Raises UnsupportedError where a group has nothing that the criterion looks at.
    """
    if criterion == "random":
        random = np.random.default_rng(seed)
        return {group.name: random.random(group.units) for group in groups}
    if criterion == "taylor":
        return {group.name: _taylor(group, products) for group in groups}
    if criterion == "bn_scale":
        return {group.name: _batchnorm_scale(graph, group) for group in groups}
    if criterion == "fpgm":
        return {
            group.name: _averaged([_fpgm(_slices(m)) for m in _weights(group) if m.makes], group) for group in groups
        }
    measure = _l1 if criterion == "l1" else _l2
    return {group.name: _averaged([measure(_slices(m)) for m in _scaled(graph, group)], group) for group in groups}


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
