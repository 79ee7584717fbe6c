"""`State`: the sole owner of what is trained, in the model's own layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxslim.errors import CheckpointError
from onnxslim.ir.graph import Array, Graph, Role, Value
from onnxslim.training.parameters import updates_of
from onnxslim.training.ports import Kind, Port
from onnxslim.training.step import Step
from onnxslim.training.update import Optimizer

__all__ = ["State"]

_OWNED = {Role.PARAMETER: Kind.PARAMETER, Role.STATISTIC: Kind.STATISTIC, Role.SCALE: Kind.SCALE}


@dataclass(frozen=True)
class State:
    """Parameters, statistics, scales and moments (float32, by what they are), and how far training is.

    epoch and step_in_epoch: where training goes on. sums and spent: of the epoch under way, the metrics added up, and
    the seconds of its steps ("seconds") and of waiting for data in them ("waited"). seconds: that all of the training
    up to here took, validation included. best: the best validation metric yet, at the end of the epoch `best_epoch`;
    0 is the state before training, whose metric is `before`. history: one record a finished epoch.
    """

    arrays: dict[Port, Array]
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
    def of(cls, graph: Graph, optimizer: Optimizer, step: Step | None = None) -> State:
        """The state in which a graph with marked parameters starts: its arrays; what losses own, where a step tells of
        some; moments of what is learnt at zero."""
        arrays = {_port(v): np.array(v.array, np.float32) for v in _owned(graph)}
        if step is not None:
            arrays |= {port: np.array(array, np.float32) for port, array in step.initial.items()}
        for rule in updates_of(graph) if step is None else step.updates:
            for port in rule.learns:
                for name in optimizer.moments:
                    arrays[port.moment(name)] = np.zeros_like(arrays[port])
        return cls(arrays)

    def write_to(self, graph: Graph) -> None:
        """Puts parameters, statistics and scales into the graph's initialisers."""
        for value in _owned(graph):
            graph.set_array(value, self.arrays[_port(value)].copy())

    def cut(self, survivors: Mapping[str, Mapping[int, Array]]) -> State:
        """The state of the model after `CutChannels`, by its outcome's `survivors`: parameters, statistics and scales
        keep what survived, and moments follow their parameter, bit by bit. The best metric was another model's."""
        arrays = {}
        for port, array in self.arrays.items():
            followed = port.belongs_to
            cuts = {} if followed.kind is Kind.LOSS_PARAMETER else survivors.get(str(followed.owner), {})
            for axis, kept in cuts.items():
                array = array.take(kept, axis)
            arrays[port] = np.array(array)
        return replace(self, arrays=arrays, best=None, best_epoch=0, before=None)

    def check_like(self, other: State, where: str) -> None:
        """Raises CheckpointError naming the first array that only one of the two has, or in another shape."""
        for port in sorted({*self.arrays, *other.arrays}, key=lambda port: port.key):
            mine, theirs = self.arrays.get(port), other.arrays.get(port)
            if mine is None or theirs is None or mine.shape != theirs.shape:
                got = "none" if mine is None else f"shape {mine.shape}"
                expected = "none" if theirs is None else f"shape {theirs.shape}"
                raise CheckpointError(
                    f"{where} belongs to another model or optimiser: for the {port} it has {got}, "
                    f"this run {expected}. Start anew, or resume with the recipe that wrote it"
                )


def _owned(graph: Graph) -> list[Value]:
    return [value for value in graph.initializers() if value.role in _OWNED and value.array is not None]


def _port(value: Value) -> Port:
    return Port(_OWNED[value.role], value.name)
