"""`Statistic`: what may be measured of a value over data, and `Statistics`: what was measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from onnxslim.brief import Brief
from onnxslim.ir.graph import Array, Graph, Value

__all__ = ["Measured", "Statistic", "Statistics"]


class Measured(Protocol):
    """The result of a statistic."""

    @property
    def finite(self) -> bool:
        """Whether no number in it is NaN or infinite."""
        ...


R = TypeVar("R", bound=Measured)


@dataclass(frozen=True)
class Statistic(ABC, Generic[R]):
    """One kind of statistic, a frozen dataclass; its fields say of which value, and how: equal ones are measured once.

    A batch is reduced to a few numbers inside of the graph (`reduce`), these make the batch's result (`of`), and the
    results of batches add up (`add`), so that memory does not grow with the data. A NaN that was seen stays in the
    result.
    """

    value: str
    what: ClassVar[str]

    @abstractmethod
    def reduce(self, graph: Graph, value: Value, base: str) -> Sequence[Value]:
        """Adds nodes that reduce a batch of `value`, named from `base`; gives the values that they make.

        Raises DataError where the value is of a shape that it cannot be measured of.
        """

    @abstractmethod
    def of(self, batch: Sequence[Array]) -> R:
        """The result of one batch, by the arrays of what `reduce` made."""

    @abstractmethod
    def add(self, one: R, other: R) -> R:
        """The result of two parts of the data together."""

    @abstractmethod
    def invented(self, graph: Graph) -> R:
        """A result that data might give, for who asks of structure before data are looked at."""


@dataclass(frozen=True, repr=False)
class Statistics(Brief):
    """Results by statistic, each of the statistic's own type. Immutable; `|` joins two."""

    results: Mapping[Statistic[Any], Any] = field(default_factory=dict)

    def __getitem__(self, statistic: Statistic[R]) -> R:
        found: R = self.results[statistic]
        return found

    def get(self, statistic: Statistic[R]) -> R | None:
        """The result, or None where it was not measured."""
        found: R | None = self.results.get(statistic)
        return found

    def __contains__(self, statistic: object) -> bool:
        return statistic in self.results

    def __iter__(self) -> Iterator[Statistic[Any]]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __or__(self, other: Statistics) -> Statistics:
        return Statistics({**self.results, **other.results})
