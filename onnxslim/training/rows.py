"""What is updated alike lies side by side in one row of memory, so that one op serves all of it.

    every weight that decays               + a row a moment, a row of gradients a worker
    every bias and norm                    likewise
    running means, running variances       + the batch's, a row a worker
    observed ranges, by kind of grid       + scales and zero points, which follow them

Which rules are alike they say themselves (`Rule.alike`). Each array is still there in its own shape, as a view into its
row.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from onnxslim.ir.graph import Array
from onnxslim.training.ports import Kind, Port
from onnxslim.training.update import Rule, UpdatePlan, moves_of

__all__ = ["Arena", "Plans", "Row", "Rows", "plans"]

_LINE = 16  # floats of a cache line


@dataclass(frozen=True)
class Row:
    """Which arrays lie in a row, in order, and in which shapes. aligned: whether each begins with a cache line, so that
    no two of them share one."""

    members: Mapping[Port, tuple[int, ...]]
    aligned: bool


Rows: TypeAlias = dict[Port, Row]


@dataclass(frozen=True)
class Plans:
    """The same update, of rows. moves: a plan a row whose numbers move each by itself, for any part of it; follows:
    everything else, once these have moved. state, results: the rows of the state, and those of a worker's results,
    whose members stand in the same places."""

    moves: Mapping[Port, UpdatePlan]
    follows: UpdatePlan
    state: Rows
    results: Rows


def plans(plan: UpdatePlan) -> Plans:
    """The plan's state, results and updates, arranged in rows of memory."""
    state: Rows = {}
    results: Rows = {}
    moves: dict[Port, UpdatePlan] = {}
    follows: list[Rule] = []
    scaled = plan.optimizer.clip_norm is not None
    for number, rules in enumerate(_alike(plan.rules)):
        if rules[0].alike is None:
            follows += rules
            continue
        joined = rules[0].on_rows(rules, partial(Port, Kind.ROW, str(number)))
        if joined.in_pieces:
            moves[next(iter(joined.moves))] = replace(plan, rules=(joined,), scaled=scaled)
        else:
            follows.append(joined)
        moved = [moves_of(rule, plan.optimizer) for rule in (joined, *rules)]
        state |= _rows(moved[0], moved[1:], joined.in_pieces)
        results |= _rows(joined.reads, [rule.reads for rule in rules], joined.in_pieces)
    return Plans(moves, replace(plan, rules=tuple(follows), scaled=scaled), state, results)


def _alike(rules: Sequence[Rule]) -> Iterable[Sequence[Rule]]:
    """In the order of the first of each kind."""
    found: dict[Hashable, list[Rule]] = {}
    for rule in rules:
        key = rule.alike
        found.setdefault(id(rule) if key is None else key, []).append(rule)
    return found.values()


def _rows(rows: Iterable[Port], of_each: Sequence[Mapping[Port, Sequence[int | str]]], aligned: bool) -> Rows:
    """A row for each array of a rule, whose members are that array of each of the rules."""
    found = {}
    for row, *members in zip(rows, *(each.items() for each in of_each)):
        found[row] = Row({port: tuple(d for d in sizes if isinstance(d, int)) for port, sizes in members}, aligned)
    return found


class Arena:
    """Memory for rows: float32, zero where nothing lies. `rows` has the whole ones, `arrays` the members."""

    def __init__(self, rows: Rows) -> None:
        self.rows: dict[Port, Array] = {}
        self.arrays: dict[Port, Array] = {}
        for port, row in rows.items():
            line = _LINE if row.aligned else 1
            sizes = [-(-math.prod(shape) // line) * line for shape in row.members.values()]
            memory = self.rows[port] = _aligned(sum(sizes))
            for (member, shape), start in zip(row.members.items(), _starts(sizes)):
                self.arrays[member] = memory[start : start + math.prod(shape)].reshape(shape)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes[:-1]).tolist()] if sizes else []


def _aligned(size: int) -> Array:
    """float32 zeros that begin with a cache line."""
    raw = np.zeros(size + _LINE, np.float32)
    start = -raw.ctypes.data // raw.itemsize % _LINE
    return raw[start : start + size]
