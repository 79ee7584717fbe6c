"""`WithProvenShapes`: what a file says of sizes is a hint; rewriting relies on what inference proves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from onnxslim.ir.graph import Dim, Graph, Shape, Value
from onnxslim.ir.rewrite import Context, Outcome, Pass, Pipeline
from onnxslim.ir.shapes import has_rule, infer_shapes
from onnxslim.ir.verify import verify_types

__all__ = ["WithProvenShapes", "forget_hints", "restore_hints"]

_MARK = "@"
"""Between the name that a file gives a free axis and the place that the axis comes from."""

Hints: TypeAlias = Mapping[str, Shape | None]
"""What a file says of the shapes of a graph's values, by name."""


@dataclass(frozen=True)
class WithProvenShapes(Pass):
    """steps(graph), in which two axes have one symbol only if they are the same axis of an input.

    Exporters write one symbol for axes that differ (`?`, `None`, `dynamic`), and leave shapes behind that held before
    someone changed the inputs. Here each free axis of an input gets a symbol of its own while the steps run; shapes
    of all else are inferred from these, and only ops that inference knows nothing of keep what the file says.
    Afterwards inputs read as before, symbols have the file's names, and outputs keep what was not contradicted. What
    the file says of other values is not written again: runtimes would compute with it.

    opening: what runs before anything is inferred, when nothing is held to what the file says any more.

    Notes a shape of the file that inference contradicts. `verified` also raises VerifyError where an op
    cannot take its inputs, or a value has another element type than its node makes.
    """

    steps: Pass = field(default_factory=Pipeline)
    verified: bool = False
    opening: Pass = field(default_factory=Pipeline)
    name: ClassVar[str] = "with_proven_shapes"

    def __call__(self, graph: Graph, context: Context | None = None) -> Outcome:
        """`run`: each step is verified and checked as it goes."""
        return self.run(graph, context or Context())

    def run(self, graph: Graph, context: Context) -> Outcome:
        hints = forget_hints(graph)
        opened = self.opening(graph, context)
        if self.verified:
            verify_types(graph)
        infer_shapes(graph)
        notes = _contradictions(graph, hints)
        outcome = self.steps(graph, context)
        if self.verified:
            verify_types(graph)  # by types that were not known before
        restore_hints(graph, hints)
        return opened + outcome + Outcome(notes=notes)


def forget_hints(graph: Graph, outer: Collection[int] | None = None) -> Hints:
    """Gives each free axis of an input a symbol of its own, and takes away the shapes that inference finds again;
    returns what was there. outer: in a body, ids of what it has from the graph around; there, symbols are proven."""
    hints = {value.name: value.shape for value in graph.values() if value.id not in (outer or ())}
    for value in graph.inputs:
        if value.name in hints and value.array is None and value.shape is not None:
            own: list[Dim] = []
            for axis, dim in enumerate(value.shape):
                is_proven = isinstance(dim, int) or (outer is not None and dim is not None)
                own.append(dim if is_proven else f"{dim or ''}{_MARK}{value.name}:{axis}")
            graph.set_type(value, shape=own)
    ruled: dict[tuple[str, str], bool] = {}
    for node in graph.nodes():
        kind = node.domain, node.op
        known = ruled[kind] = ruled[kind] if kind in ruled else has_rule(graph, node)
        for made in graph.node_outputs(node):
            if made is None or made.shape is None:
                continue
            if known:
                graph.clear_shape(made)
            else:
                graph.set_type(made, shape=[d if isinstance(d, int) else None for d in made.shape])
    return hints


def restore_hints(graph: Graph, hints: Hints) -> None:
    """Gives inputs their shapes back, free axes the names that the file has for them, and outputs what it says of them
    that is not known better."""
    for value in graph.values():
        hint = hints.get(value.name)
        if value.array is not None:
            continue
        if graph.is_input(value):
            shape = hint or value.shape
        elif hint is not None and graph.is_output(value):
            shape = hint if value.shape is None else _agreed(hint, value.shape)
        else:
            shape = None if value.shape is None else _named(value.shape)
        if shape is not None and shape != value.shape:
            graph.set_type(value, shape=shape)


def _named(shape: Shape) -> Shape:
    return tuple(_name(d) for d in shape)


def _name(dim: Dim) -> Dim:
    return (dim.rpartition(_MARK)[0] or None) if isinstance(dim, str) else dim


def _agreed(hint: Shape, proven: Shape) -> Shape:
    """Numbers that are proven, else what the file says, else the name of the axis that it is."""
    if len(hint) != len(proven):
        return _named(proven)
    found: list[Dim] = []
    for said, dim in zip(hint, proven):
        if isinstance(dim, int) or said is None or (isinstance(said, int) and isinstance(dim, str)):
            found.append(_name(dim))
        else:
            found.append(said)
    return tuple(found)


def _contradictions(graph: Graph, hints: Hints) -> tuple[str, ...]:
    return tuple(
        f"the file says that '{value.name}' is {_text(hint)}, but it is {_text(_named(value.shape))}"
        for value in graph.values()
        for hint in (hints.get(value.name),)
        if hint is not None and value.shape is not None and not graph.is_input(value) and _contradict(hint, value)
    )


def _contradict(hint: Shape, value: Value) -> bool:
    """Another rank or number; a number for what is a free axis of an input is another claim that does not hold."""
    shape = value.shape or ()
    if len(hint) != len(shape):
        return True
    return any(isinstance(said, int) and dim is not None and said != dim for said, dim in zip(hint, shape))


def _text(shape: Shape) -> str:
    return f"[{', '.join('?' if d is None else str(d) for d in shape)}]"
