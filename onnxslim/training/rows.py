"""What is updated alike lies side by side in one row of memory, so that one op serves all of it.

    decayed    every weight                   + a row a moment, a row of gradients a worker
    undecayed  every bias and norm              likewise
    mean, var  running statistics             + the batch's, a row a worker
    range.…    observed ranges, by kind of grid; scale.… and zero_point.… follow them

Rows are named `rows/…`. Each array is still there under its own name and in its own shape, as a view into its row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from onnxslim.ir.graph import Array
from onnxslim.training.update import BatchNormSpec, ObserverSpec, ParameterSpec, UpdatePlan

__all__ = ["Arena", "Plans", "Rows", "plans", "rows_of"]

Rows: TypeAlias = dict[str, dict[str, tuple[int, ...]]]
"""Row → member → shape, in order."""

_LINE = 16  # floats of a cache line: no two parameters share one
_PARAMETERS = ("rows/decayed", "rows/undecayed")


def rows_of(plan: UpdatePlan) -> tuple[Rows, Rows]:
    """The rows of the state, and those of a worker's results, whose members stand in the same places."""
    state: Rows = {}
    results: Rows = {}
    for name, decays in zip(_PARAMETERS, (True, False)):
        specs = [spec for spec in plan.parameters if spec.decays is decays]
        if specs:
            state[name] = {spec.name: _sizes(spec) for spec in specs}
            results[f"grad.{name}"] = {f"grad.{spec.name}": _sizes(spec) for spec in specs}
            for moment in plan.optimizer.moments:
                state[f"{name}.{moment}"] = {f"{spec.name}.{moment}": _sizes(spec) for spec in specs}
    if plan.batchnorms:
        state["rows/mean"] = {spec.mean: (spec.channels,) for spec in plan.batchnorms}
        state["rows/var"] = {spec.var: (spec.channels,) for spec in plan.batchnorms}
        for what in ("batch_mean", "batch_var"):
            results[f"{what}.rows/mean"] = {f"{what}.{spec.mean}": (spec.channels,) for spec in plan.batchnorms}
    for spec in plan.observers:
        kind = _kind(spec)
        state.setdefault(f"rows/range.{kind}", {})[spec.range] = (2,)
        state.setdefault(f"rows/scale.{kind}", {})[spec.scale] = ()
        state.setdefault(f"rows/zero_point.{kind}", {})[spec.zero_point] = ()
        results.setdefault(f"observed.rows/range.{kind}", {})[f"observed.{spec.range}"] = (2,)
    return state, results


def _sizes(spec: ParameterSpec) -> tuple[int, ...]:
    return tuple(d for d in spec.shape if isinstance(d, int))


def _kind(spec: ObserverSpec) -> str:
    return f"{'int' if spec.signed else 'uint'}{spec.bits}"


@dataclass(frozen=True)
class Plans:
    """What is done with the rows. moves: a plan a row of parameters, for any part of it. follows: everything else,
    once the parameters have moved."""

    moves: Mapping[str, UpdatePlan]
    follows: UpdatePlan


def plans(plan: UpdatePlan) -> Plans:
    """The same update, of rows."""
    state, _ = rows_of(plan)
    empty = replace(plan, parameters=(), batchnorms=(), observers=(), weights=())
    moves = {
        name: replace(
            empty, parameters=(ParameterSpec(name, ("n",), decays),), scaled=plan.optimizer.clip_norm is not None
        )
        for name, decays in zip(_PARAMETERS, (True, False))
        if name in state
    }
    observers = {_kind(spec): spec for spec in plan.observers}
    follows = replace(
        empty,
        batchnorms=(_row_of(plan.batchnorms),) if plan.batchnorms else (),
        observers=tuple(
            replace(spec, range=f"rows/range.{kind}", scale=f"rows/scale.{kind}", zero_point=f"rows/zero_point.{kind}",
                    count=len(state[f"rows/range.{kind}"]))
            for kind, spec in observers.items()
        ),
        weights=plan.weights,
        read=plan.parameters,
    )  # fmt: skip
    return Plans(moves, follows)


def _row_of(specs: Sequence[BatchNormSpec]) -> BatchNormSpec:
    """All batch norms as one: each channel with its own momentum, or one for all where they agree."""
    each = [m for spec in specs for m in _of_channels(spec)]
    return BatchNormSpec("rows/mean", "rows/var", len(each), each[0] if len(set(each)) == 1 else tuple(each))


def _of_channels(spec: BatchNormSpec) -> Sequence[float]:
    return spec.momentum if isinstance(spec.momentum, tuple) else [spec.momentum] * spec.channels


class Arena:
    """Memory for rows: float32, zero where nothing lies. `row(name)` is a whole one, `arrays` has the members."""

    def __init__(self, rows: Rows) -> None:
        self._rows: dict[str, Array] = {}
        self.arrays: dict[str, Array] = {}
        for name, members in rows.items():
            line = _LINE if name.startswith((*_PARAMETERS, *(f"grad.{n}" for n in _PARAMETERS))) else 1
            sizes = [-(-math.prod(shape) // line) * line for shape in members.values()]
            row = self._rows[name] = _aligned(sum(sizes))
            for (member, shape), start in zip(members.items(), _starts(sizes)):
                self.arrays[member] = row[start : start + math.prod(shape)].reshape(shape)

    def row(self, name: str) -> Array:
        return self._rows[name]

    def names(self) -> Iterable[str]:
        return self._rows


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes[:-1]).tolist()] if sizes else []


def _aligned(size: int) -> Array:
    """float32 zeros that begin with a cache line."""
    raw = np.zeros(size + _LINE, np.float32)
    start = -raw.ctypes.data // raw.itemsize % _LINE
    return raw[start : start + size]
