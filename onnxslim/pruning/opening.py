"""What a model goes through before channels of it are looked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.analysis.precision import require_not_quantized
from onnxslim.ir.graph import Graph
from onnxslim.ir.rewrite import Context, Outcome, Pass
from onnxslim.ir.verify import require_sound, verify
from passes.simplify import canonicalize

__all__ = ["RequireSound", "opening"]


@dataclass(frozen=True)
class RequireSound(Pass):
    """G → G, where G computes in float, and is a sound model: what couples axes takes it to be one.

    proven: that operands fit one another is looked at too; shapes are then those that inference found. Raises
    UnsupportedError for a quantised model, VerifyError naming the node.
    """

    proven: bool = False
    name: ClassVar[str] = "require_sound"

    def run(self, graph: Graph, context: Context) -> Outcome:
        require_not_quantized(graph, "pruned")
        if self.proven:
            require_sound(graph)
        else:
            verify(graph, types=False)
        return Outcome()


def opening() -> tuple[Pass, ...]:
    """Whatever the file says of shapes, what is cut is a sound model in the working opset and float32."""
    return RequireSound(), canonicalize(float32=True), RequireSound(proven=True)
