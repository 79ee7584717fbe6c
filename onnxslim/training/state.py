"""`State`: the sole owner of what is trained, by name, in the model's own layout."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxslim.errors import CheckpointError
from onnxslim.ir.graph import Array, Graph, Role
from onnxslim.training.names import inner_name, outer_names
from onnxslim.training.optimizers import Optimizer

__all__ = ["State"]

_OWNED = (Role.PARAMETER, Role.STATISTIC, Role.SCALE)


@dataclass(frozen=True)
class State:
    """Parameters, statistics, scales and moments (float32, by `inner_name`), and how far training is.

    epoch and step_in_epoch: where training goes on. sums and spent: of the epoch under way, the metrics added up, and
    the seconds of its steps ("seconds") and of waiting for data in them ("waited"). seconds: that all of the training
    up to here took, validation included. best: the best validation metric yet, at the end of the epoch `best_epoch`;
    0 is the state before training, whose metric is `before`. history: one record a finished epoch.
    """

    arrays: dict[str, Array]
    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    before: float | None = None
    seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, graph: Graph, optimizer: Optimizer) -> State:
        """The state in which a graph with marked parameters starts: its arrays, moments at zero."""
        arrays: dict[str, Array] = {}
        for value in graph.initializers():
            if value.role in _OWNED and value.array is not None:
                name = inner_name(value.name)
                arrays[name] = np.array(value.array, np.float32)
                if value.role is Role.PARAMETER:
                    for moment in optimizer.moments:
                        arrays[f"{name}.{moment}"] = np.zeros(value.static_shape, np.float32)
        return cls(arrays)

    def write_to(self, graph: Graph) -> None:
        """Puts parameters, statistics and scales into the graph's initialisers."""
        for value in graph.initializers():
            if value.role in _OWNED:
                graph.set_array(value, self.arrays[inner_name(value.name)].copy())

    def cut(self, survivors: Mapping[str, Mapping[int, Array]]) -> State:
        """The state of the model after `CutChannels`, by its outcome's `survivors`: parameters, statistics and scales
        keep what survived, and moments follow their parameter, bit by bit. The best metric was another model's."""
        survivors = {inner_name(name): axes for name, axes in survivors.items()}
        arrays = {}
        for name, array in self.arrays.items():
            owner = name.rpartition(".")[0]
            moment = name not in survivors and owner in survivors and self.arrays[owner].shape == array.shape
            for axis, kept in survivors.get(owner if moment else name, {}).items():
                array = array.take(kept, axis)
            arrays[name] = np.array(array)
        return replace(self, arrays=arrays, best=None, best_epoch=0, before=None)

    @property
    def signature(self) -> str:
        """A digest of names and shapes: states of one model and optimiser share it."""
        what = "\n".join(f"{name} {self.arrays[name].shape}" for name in sorted(self.arrays))
        return hashlib.sha256(what.encode()).hexdigest()[:16]

    def check_like(self, other: State, where: str) -> None:
        """Raises CheckpointError naming the first array that only one of the two has, or in another shape."""
        for name in sorted({*self.arrays, *other.arrays}):
            mine, theirs = self.arrays.get(name), other.arrays.get(name)
            if mine is None or theirs is None or mine.shape != theirs.shape:
                got = "none" if mine is None else f"shape {mine.shape}"
                expected = "none" if theirs is None else f"shape {theirs.shape}"
                named = outer_names(f"'{name}'")
                raise CheckpointError(
                    f"{where} belongs to another model or optimiser: for {named} it has {got}, "
                    f"this run {expected}. Start anew, or resume with the recipe that wrote it"
                )
