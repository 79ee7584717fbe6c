"""What a pass is: `Pass → Outcome`, the `Context` it runs in, and the `Pipeline` that strings passes.

A pass is a frozen dataclass whose fields are its options; the same declaration serves Python, the
recipe and the command line. It fetches nothing: what it needs is in the `Context`, and statistics
are requested first, phase by phase, each gathered in one run for all passes, and then applied.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

from onnxslim.brief import Brief
from onnxslim.budget import Folding
from onnxslim.collector import paused
from onnxslim.errors import VerifyError
from onnxslim.ir.graph import Array, Graph, Node
from onnxslim.ir.statistics import Statistic, Statistics
from onnxslim.ir.verify import verify
from onnxslim.spill import Spill
from onnxslim.targets import Target

__all__ = [
    "Checker",
    "Context",
    "LocalPass",
    "Outcome",
    "Pass",
    "Pipeline",
    "Refusal",
    "grouped",
    "once_a_place",
]

_PLACE = re.compile(r"[Nn]ode '(?P<name>.*)' \((?P<op>.*)\)", re.DOTALL)


@dataclass(frozen=True)
class Refusal:
    """A place where a pass did not fire, and why: what a user needs to know to change that."""

    where: str
    why: str


def once_a_place(refusals: Iterable[Refusal]) -> tuple[Refusal, ...]:
    """The first reason of each place: what an early pass left, later ones leave for it."""
    found: dict[str, Refusal] = {}
    for refusal in refusals:
        found.setdefault(refusal.where, refusal)
    return tuple(found.values())


def grouped(refusals: Iterable[Refusal], examples: int = 3) -> list[str]:
    """A line for all places of one op and one reason, most frequent first: `12 × Softmax: … (at 'a', 'b', 'c', …)`."""
    places: dict[tuple[str, str], list[str]] = {}
    for refusal in dict.fromkeys(refusals):
        found = _PLACE.fullmatch(refusal.where)
        op, name = (found["op"], found["name"]) if found else ("", refusal.where)
        places.setdefault((op, refusal.why), []).append(name)
    lines = []
    for (op, why), names in sorted(places.items(), key=lambda item: -len(item[1])):  # sorted keeps the order of equals
        shown = [f"'{name}'" if op else name for name in names if name][:examples]
        more = ", …" if len(names) > len(shown) else ""
        at = f" (at {', '.join(shown)}{more})" if shown else ""
        lines.append(f"{len(names)} × {op}: {why}{at}" if op else f"{', '.join(shown)}{more}: {why}")
    return lines


@dataclass(frozen=True, repr=False)
class Outcome(Brief):
    """What a pass did. `rewrites == 0` is the fixed point, unless something was learnt.

    `survivors` maps a parameter's name to the indices that survived on each cut axis, so that
    state which follows a parameter (moments, scales, statistics) can follow the cut.
    `by_pass` splits `rewrites` by the name of the pass; calling a pass fills it in. `learnt` counts what was
    noted of the graph without rewriting it, such as shapes: other passes may fire for it. `notes` tell what is wrong
    with the model, or with the passes, and was put right or does no harm.
    """

    rewrites: int = 0
    refused: tuple[Refusal, ...] = ()
    survivors: Mapping[str, Mapping[int, Array]] = field(default_factory=dict)
    by_pass: Mapping[str, int] = field(default_factory=dict)
    learnt: int = 0
    notes: tuple[str, ...] = ()

    def __add__(self, other: Outcome) -> Outcome:
        merged = {name: dict(axes) for name, axes in self.survivors.items()}
        for name, axes in other.survivors.items():
            mine = merged.setdefault(name, {})
            for axis, kept in axes.items():
                mine[axis] = mine[axis][kept] if axis in mine else kept
        refused = tuple(dict.fromkeys(self.refused + other.refused))
        by_pass = dict(Counter(self.by_pass) + Counter(other.by_pass))
        notes = tuple(dict.fromkeys(self.notes + other.notes))
        learnt = self.learnt + other.learnt
        return Outcome(self.rewrites + other.rewrites, refused, merged, by_pass, learnt, notes)


_NOTHING = Outcome()


class Checker(Protocol):
    """Compares the model before and after a pass by running both; raises VerifyError on a difference."""

    def check(self, before: Graph, after: Graph, what: str) -> None: ...


@dataclass(frozen=True, repr=False)
class Context(Brief):
    """What passes may need and must not fetch.

    progress: called as (what, steps done, steps expected) by a pipeline that goes to its fixed point; how many
    rounds that takes is not known before, so one more is expected until none rewrites anything. folding: what is
    left for computing constants.
    settled: states of nodes with bodies that a pipeline has nothing left to do in, with the arrays that they refer to.
    room: where large arrays that passes make lie. taps: what values that later passes read are called here, by the
    model that they are of and the name they have there ("" for its first output).
    """

    statistics: Statistics = field(default_factory=Statistics)
    target: Target | None = None
    graphs: Mapping[str, Graph] = field(default_factory=dict)
    seed: int = 0
    checker: Checker | None = None
    progress: Callable[[str, int, int], None] | None = None
    folding: Folding = field(default_factory=Folding)
    settled: dict[Hashable, tuple[Array | None, ...]] = field(default_factory=dict, compare=False, repr=False)
    room: Spill = field(default_factory=Spill, compare=False, repr=False)
    taps: dict[tuple[str, str], str] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Pass(ABC):
    """One rewrite of a graph. The docstring of each opens with its algebra: before → after,
    when it refuses, and the numerical contract."""

    name: ClassVar[str]
    keeps_types: ClassVar[bool] = False
    """Whether inference says the same before and after it, and need not be asked again to verify it."""

    @abstractmethod
    def run(self, graph: Graph, context: Context) -> Outcome:
        """Rewrites `graph` in place."""

    def requests(self, graph: Graph, context: Context) -> Sequence[Statistic[Any]]:
        """Statistics that `run` wants to find in the context, given those that are there: in each phase of calibration
        it is asked again, until all that it asks for is known."""
        return ()

    @paused()
    def __call__(self, graph: Graph, context: Context | None = None) -> Outcome:
        """`run`, then the verifier; the graph's error names this pass."""
        context = context or Context()
        before = graph.copy() if context.checker else None
        mark = graph.mark()
        outcome = self.run(graph, context)
        try:
            verify(graph, since=mark, types=not self.keeps_types)
            if before is not None and context.checker is not None and outcome.rewrites:
                context.checker.check(before, graph, self.name)
        except VerifyError as error:
            raise VerifyError(f"After pass '{self.name}': {error}") from error
        if outcome.rewrites and not outcome.by_pass:
            outcome = replace(outcome, by_pass={self.name: outcome.rewrites})
        return outcome


@dataclass(frozen=True)
class LocalPass(Pass):
    """A pass that looks at one node after the other, and at what stands around it.

    ops: at which it begins, of ONNX's own domain; a graph that has none of them is left alone. from_outputs: whether it
    goes from the outputs to the inputs, so that the last node of a pattern is met before what is inside of it.
    """

    ops: ClassVar[frozenset[str]]
    from_outputs: ClassVar[bool] = False

    @abstractmethod
    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        """How many rewrites it made at this node, 0 where there is nothing to do; or why it refused one."""

    def __call__(self, graph: Graph, context: Context | None = None) -> Outcome:
        return _NOTHING if self.ops.isdisjoint(graph.op_types()) else super().__call__(graph, context)

    def run(self, graph: Graph, context: Context) -> Outcome:
        count, refused = 0, []
        nodes = [node for node in graph.nodes() if node.op in self.ops and not node.domain]
        for node in reversed(nodes) if self.from_outputs else nodes:
            if not graph.holds(node) or node.op not in self.ops:  # an earlier rewrite took it
                continue
            place = str(node)
            found = self.rewrite(graph, node, context)
            if isinstance(found, str):
                refused.append(Refusal(place, found))
            else:
                count += found
        return Outcome(count, tuple(refused))


@dataclass(frozen=True)
class Pipeline(Pass):
    """Passes in order; with `to_fixed_point`, again and again until none rewrites anything.

    Raises VerifyError naming the passes that still rewrite after 50 rounds: they undo each other. (Networks take 2 to
    5, also chains of hundreds of ops that merge.)
    """

    steps: tuple[Pass, ...] = ()
    to_fixed_point: bool = False
    name: ClassVar[str] = "pipeline"

    _ROUNDS: ClassVar[int] = 50

    def __call__(self, graph: Graph, context: Context | None = None) -> Outcome:
        """`run`: each step is verified and checked as it goes."""
        return self.run(graph, context or Context())

    def run(self, graph: Graph, context: Context) -> Outcome:
        total, steps = Outcome(), len(self.steps)
        report = context.progress if self.to_fixed_point and context.progress else _silent
        refused: dict[int, tuple[Refusal, ...]] = {}
        idle = 0  # steps since the last that did something
        last = [0] * steps  # what each rewrote, the last time
        for done in range(steps * (self._ROUNDS if self.to_fixed_point else 1)):
            report("rewriting", done, (done // steps + 2) * steps)
            once = self.steps[done % steps](graph, context)
            refused[done % steps] = once.refused  # what it refused before may be obsolete
            if once.rewrites or once.learnt or once.notes:
                total += replace(once, refused=())
            last[done % steps] = once.rewrites
            idle = 0 if once.rewrites or once.learnt else idle + 1
            if idle == steps:
                break
        report("rewriting", steps, steps)
        if self.to_fixed_point and any(last):
            busy = ", ".join(dict.fromkeys(step.name for step, count in zip(self.steps, last) if count))
            raise VerifyError(
                f"Passes of this program undo each other: after {self._ROUNDS} rounds, graph '{graph.name}' is still "
                f"rewritten by {busy}. That is no fault of the model; please report it"
            )
        return replace(total, refused=tuple(dict.fromkeys(r for found in refused.values() for r in found)))

    def requests(self, graph: Graph, context: Context) -> Sequence[Statistic[Any]]:
        return tuple(dict.fromkeys(r for step in self.steps for r in step.requests(graph, context)))


def _silent(what: str, done: int, total: int) -> None:
    """Where nobody asked for progress."""
