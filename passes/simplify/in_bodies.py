"""`InBodies`: what is done to a graph is done in the bodies of its If, Loop and Scan nodes, too."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from onnxslim.analysis.bodies import Body, close_bodies, has_bodies, open_bodies
from onnxslim.graph import Graph
from onnxslim.onnx_io import body_proto
from onnxslim.rewrite import Context, Outcome, Pass, Pipeline
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
            bodies = open_bodies(graph, node)
            key = _digest(bodies)
            if key in context.settled:
                continue
            outcome = _rewritten(pipeline, bodies, inner)
            if outcome.rewrites:
                close_bodies(graph, node, bodies)
                key = _digest(open_bodies(graph, node))
            context.settled[key] = None
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


def _digest(bodies: Sequence[Body]) -> bytes:
    """Of the bodies, and of what is known of what they read."""
    digest = hashlib.blake2b()
    for body in bodies:
        kept = [id for id, (_, array) in body.outer.items() if array is None]
        digest.update(body_proto(body.graph, kept).SerializeToString(deterministic=True))
        for value, array in body.outer.values():
            digest.update(repr((value.name, value.dtype, value.shape, array is None)).encode())
        digest.update(repr([(v.dtype, v.shape) for v in body.graph.inputs]).encode())
    return digest.digest()
