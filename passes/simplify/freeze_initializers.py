"""`FreezeInitializers`: in old files every weight is also an input; here it becomes a weight alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.graph import Graph
from onnxslim.ir.rewrite import Context, Outcome, Pass
from onnxslim.ir.shapes import TYPES

__all__ = ["FreezeInitializers"]

_SEPARATE = 4
"""The first IR version whose initialisers need not be inputs, and whose inputs with one may be overridden."""


@dataclass(frozen=True)
class FreezeInitializers(Pass):
    """IR 3, input w = initialiser w  →  IR 4, initialiser w.

    Before IR 4 the format demanded every initialiser among the inputs, and runtimes take them for constants.
    Retained: inputs with a default in newer files, which a caller may override.

    Exact.
    """

    name: ClassVar[str] = "freeze_initializers"

    def run(self, graph: Graph, context: Context) -> Outcome:
        if graph.ir_version >= _SEPARATE:
            return Outcome()
        types = graph.noted(TYPES)
        frozen = [value for value in graph.inputs if value.array is not None or value.sparse is not None]
        for value in frozen:
            graph.remove_input(value)
        if frozen:
            graph.ir_version = _SEPARATE
            if types is not None:
                graph.note(TYPES, types)  # of files so old, initialisers are taken for constants anyway
        return Outcome(len(frozen))
