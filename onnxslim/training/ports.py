"""`Port`: what is fed to the graphs of training and fetched from them, by what it is.

The names of values inside of these graphs mean nothing: a graph comes with a mapping from its ports to the names that
its inputs and outputs happen to have, and so a model may call its tensors anything.

    Port(PARAMETER, "w")                                    the model's tensor w
    Port(MOMENT, Port(PARAMETER, "w"), "momentum")          its optimiser's moment
    Port(GRADIENT, Port(PARAMETER, "w"), worker=1)          what worker 1 found
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from onnxslim.errors import CheckpointError
from onnxslim.ir.graph import Value

__all__ = ["FED", "STATE", "Kind", "Port", "named", "parameter_port", "scale_port", "statistic_port"]


class Kind(Enum):
    """What a port is for; the owner is a name, or the port that it belongs to."""

    DATA = "data"
    """Fed anew each step: the model's input of that name."""
    LABEL = "label"
    TEACHER = "teacher"
    """A value of a teacher's, from a cache: the owner is the teacher, the part its value ("": the first output)."""

    PARAMETER = "parameter"
    """Of the state: the model's tensor of that name."""
    STATISTIC = "statistic"
    """A running mean or variance, or an observed range."""
    SCALE = "scale"
    """A scale or a zero point."""
    LOSS_PARAMETER = "loss parameter"
    """Of a loss, which is trained and never exported: the owner is the loss, the part the name it has there."""
    MOMENT = "moment"
    """The part is the optimiser's name of it, the owner the port that it follows."""

    LOSS = "loss"
    """A result of a step: the weighted sum of all terms."""
    TERM = "term"
    """A loss before it is weighted, by its name."""
    CORRECT = "correct"
    """How many samples have their largest logit at the label."""
    GRADIENT = "gradient"
    """Of the loss, to the owner."""
    BATCH = "batch"
    """What this batch gives of the owner, a statistic."""
    TAP = "tap"
    """A value of the student's that was asked for, by its name."""

    RATE = "rate"
    """Of an update: the learning rate."""
    STEP = "step"
    """1 for the first."""
    FACTOR = "factor"
    """What clipping multiplies gradients by."""
    NORM = "norm"
    """Of all gradients, before clipping."""
    NEXT = "next"
    """The owner's value after the update."""
    ROW = "row"
    """Several arrays that are updated alike, one behind the other; see `training/rows.py`."""


@dataclass(frozen=True)
class Port:
    """An input or output of a step's graph or an update's. worker: whose result it is, where several are read."""

    kind: Kind
    owner: str | Port = ""
    part: str = ""
    worker: int | None = None

    def moment(self, name: str) -> Port:
        return Port(Kind.MOMENT, self, name)

    @property
    def gradient(self) -> Port:
        return Port(Kind.GRADIENT, self)

    @property
    def batch(self) -> Port:
        return Port(Kind.BATCH, self)

    @property
    def next(self) -> Port:
        return Port(Kind.NEXT, self)

    @property
    def belongs_to(self) -> Port:
        """The port that this one follows; itself where the owner is a name."""
        return self.owner if isinstance(self.owner, Port) else self

    def by(self, worker: int | None) -> Port:
        """The same of that worker."""
        return replace(self, worker=worker)

    def __str__(self) -> str:
        """In words: "parameter 'w'", "moment 'momentum' of parameter 'w'"."""
        what = " ".join(filter(None, (self.kind.value, self.part and f"'{self.part}'")))
        if isinstance(self.owner, Port):
            what += f" of {self.owner}"
        elif self.owner:
            what += f" of '{self.owner}'" if self.part else f" '{self.owner}'"
        return what if self.worker is None else f"worker {self.worker}'s {what}"

    @property
    def key(self) -> str:
        """A port of the state as one text, for files; `from_key` reads it back.

        Lengths stand before names, so that no name, whatever it holds, is mistaken for another port's.
        """
        owner = self.owner.key if isinstance(self.owner, Port) else self.owner
        return f"{self.kind.value}:{len(self.part)}:{self.part}:{owner}"

    @classmethod
    def from_key(cls, key: str) -> Port:
        """CheckpointError where the text is no `key`."""
        try:
            kind, length, rest = key.split(":", 2)
            part, colon, owner = rest[: int(length)], rest[int(length) : int(length) + 1], rest[int(length) + 1 :]
            if colon != ":" or Kind(kind) not in STATE:
                raise ValueError(key)
            return cls(Kind(kind), cls.from_key(owner) if Kind(kind) is Kind.MOMENT else owner, part)
        except ValueError as error:
            raise CheckpointError(f"'{key}' names no array of a training state") from error


FED = (Kind.DATA, Kind.LABEL, Kind.TEACHER)
"""Of the batch."""
STATE = (Kind.PARAMETER, Kind.STATISTIC, Kind.SCALE, Kind.LOSS_PARAMETER, Kind.MOMENT)
"""Of what is trained, kept from step to step and in checkpoints."""


def parameter_port(value: Value) -> Port:
    """Of a weight that is trained."""
    return Port(Kind.PARAMETER, value.name)


def statistic_port(value: Value) -> Port:
    """Of a running mean or variance, or an observed range."""
    return Port(Kind.STATISTIC, value.name)


def scale_port(value: Value) -> Port:
    """Of a scale or a zero point."""
    return Port(Kind.SCALE, value.name)


def named(ports: Mapping[Port, str]) -> dict[str, Port]:
    """The ports by the names that they have in a graph."""
    return {name: port for port, name in ports.items()}
