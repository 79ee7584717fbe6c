"""`InBodies`: what is done to a graph is done in the bodies of its If, Loop and Scan nodes, too."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from onnxslim.analysis.bodies import Body, close_bodies, has_bodies, open_bodies
from onnxslim.ir.graph import Array, Graph, Node
from onnxslim.ir.rewrite import Context, Outcome, Pass, Pipeline
from passes.simplify.with_proven_shapes import forget_hints, restore_hints

__all__ = ["InBodies"]


@dataclass(frozen=True)
class InBodies(Pass):
    """If(c; then, else)  →  If(c; steps(then), steps(else)), likewise Loop and Scan, and bodies within bodies.

    `steps` run to their fixed point in each body as in a graph of its own; what the body captures is a constant
    there where it is one outside. A body that nothing was rewritten in stays as it is in the file.

    Exact where the steps are.
    """

    steps: tuple[Pass, ...] = ()
    name: ClassVar[str] = "in_bodies"

    def run(self, graph: Graph, context: Context) -> Outcome:
        total = Outcome()
        inner = replace(context, checker=None, progress=None)  # this pass is checked as a whole
        pipeline = Pipeline((*self.steps, self), to_fixed_point=True)
        for node in graph.nodes():
            if not has_bodies(node):
                continue
            state, arrays = _state(graph, node)
            if state in context.settled:
                continue
            bodies = open_bodies(graph, node)
            outcome = _rewritten(pipeline, bodies, inner)
            if outcome.rewrites:
                close_bodies(graph, node, bodies)
                state, arrays = _state(graph, node)
            context.settled[state] = arrays
            total += outcome
        return total


def _rewritten(pipeline: Pipeline, bodies: Sequence[Body], context: Context) -> Outcome:
    total = Outcome()
    for body in bodies:
        hints = forget_hints(body.graph, body.outer)
        outcome = pipeline(body.graph, context)
        restore_hints(body.graph, hints)
        total += replace(outcome, learnt=0)  # what is learnt of a body is learnt anew whenever it is opened
    return total


def _state(graph: Graph, node: Node) -> tuple[Hashable, tuple[Array | None, ...]]:
    """All that the rewriting of a node's bodies follows from. Arrays count by identity: keep them with it."""
    bodies = tuple((name, a.SerializeToString(deterministic=True)) for name, a in node.attributes.items())
    read = (*graph.node_inputs(node), *graph.captures(node).values())
    arrays = tuple(graph.constant_of(value) for value in read)
    given = tuple(
        None if v is None else (v.name, v.dtype, v.shape, array is not None and (id(array), len(graph.uses(v))))
        for v, array in zip(read, arrays)
    )
    return (node.op, bodies, given), arrays
