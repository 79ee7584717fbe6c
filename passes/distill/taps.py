"""What losses read, and what a loss is: `Tap`, `Taps`, `Loss`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from pydantic import Field

from onnxslim.errors import OptionError
from onnxslim.ir.graph import Graph, Role, Value
from onnxslim.options import LARGEST

__all__ = ["LABEL", "STUDENT", "TEACHER", "Loss", "Tap", "Taps", "Weight"]


class Tap(NamedTuple):
    """A value that losses read. source: whose: `student`, `teacher` (or what another teacher is called),
    `data`, `label`; name: which, of models "" for the first output."""

    source: str
    name: str = ""

    def __str__(self) -> str:
        return f"value '{self.name}' of the {self.source}" if self.name else self.source


STUDENT, TEACHER, LABEL = Tap("student"), Tap("teacher"), Tap("label")


@dataclass(frozen=True)
class Taps:
    """What a loss may read, and what it owns. loss: what it is called beside the others; parameters: filled by losses
    that have some, by the loss and their names; seed: which these begin from."""

    values: Mapping[Tap, Value]
    seed: int = 0
    loss: str = ""
    parameters: dict[tuple[str, str], Value] = field(default_factory=dict)

    @property
    def student(self) -> Value:
        """The student's first output."""
        return self.values[STUDENT]

    def need(self, tap: Tap, loss: str) -> Value:
        value = self.values.get(tap)
        if value is not None:
            return value
        if tap.name and Tap(tap.source) in self.values:
            raise OptionError("", f"The loss '{loss}' reads the {tap}, which has none of that name")
        what = {"label": "labels", "teacher": "a teacher"}.get(tap.source, f"the teacher '{tap.source}'")
        raise OptionError("", f"The loss '{loss}' needs {what}, but there is none")

    def parameter(self, graph: Graph, name: str, shape: Sequence[int]) -> Value:
        """A parameter of the loss's own: float32, trained like the model's and never exported. It begins with normal
        numbers of variance 1 / fan-in (the product of all axes but the first), drawn for the seed and both names."""
        where = zlib.crc32(repr((self.loss, name)).encode())
        fan_in = max(math.prod(shape[1:]), 1)
        numbers = np.random.default_rng([self.seed, where]).normal(size=shape) / math.sqrt(fan_in)
        made = graph.add_constant(f"{self.loss}/{name}", numbers.astype(np.float32), role=Role.PARAMETER)
        self.parameters[self.loss, name] = made
        return made


@runtime_checkable
class Loss(Protocol):
    """A weighted term of the loss."""

    name: ClassVar[str]

    @property
    def weight(self) -> float: ...

    @property
    def reads(self) -> tuple[Tap, ...]:
        """The taps it needs beside the student's output."""
        ...

    def build(self, graph: Graph, taps: Taps) -> Value:
        """Adds the unweighted term; returns a float32 scalar."""
        ...


Weight: TypeAlias = Annotated[float, Field(ge=0, le=LARGEST, description="Its share of the loss; 0 leaves it out.")]
