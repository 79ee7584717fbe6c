"""`ShortenNames`: inner names as short as they come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, product
from string import ascii_letters, digits
from typing import ClassVar

from onnxslim.graph import Graph
from onnxslim.rewrite import Context, Outcome, Pass

__all__ = ["ShortenNames"]


@dataclass(frozen=True)
class ShortenNames(Pass):
    """Values are named a, b, … z, A, … Z, aa, ab, …; nodes lose their names, doc strings and metadata.

    Inputs and outputs of the graph keep their names, and so does what a subgraph body captures;
    bodies keep theirs, which no outer value is given. Deterministic in the order of the graph.
    Exact: nothing but names changes.
    """

    name: ClassVar[str] = "shorten_names"

    def run(self, graph: Graph, context: Context) -> Outcome:
        kept = {value.name for value in graph.inputs + graph.outputs}
        for node in graph.nodes():
            kept.update(value.name for value in graph.captures(node).values())
        values = [value for value in graph.values() if value.name not in kept]
        for number, value in enumerate(values):  # out of the way first: short names may be taken
            graph.rename(value, graph.fresh_name(f"{number}.renamed"))
        names = _names()
        for value in values:
            graph.rename(value, next(name for name in names if graph.fresh_name(name) == name))
        for node in graph.nodes():
            graph.set_name(node, "")
        return Outcome(len(values))


def _names() -> Iterator[str]:
    for length in count(1):
        for first, *rest in product(ascii_letters, *[ascii_letters + digits] * (length - 1)):
            yield first + "".join(rest)
