"""`InferShapes`: every value's type and shape, as far as ONNX knows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.graph import Graph
from onnxslim.ir.rewrite import Context, Outcome, Pass
from onnxslim.ir.shapes import infer_shapes

__all__ = ["InferShapes"]


@dataclass(frozen=True)
class InferShapes(Pass):
    """Fills in types and shapes that are not known yet. The function is not touched, and nothing is rewritten."""

    name: ClassVar[str] = "infer_shapes"
    keeps_types: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> Outcome:
        return Outcome(learnt=infer_shapes(graph))
