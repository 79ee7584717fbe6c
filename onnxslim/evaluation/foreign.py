"""int8 models for a target that is not this machine: what their integers give, computed by the integer evaluator.

This machine's kernels may put other types in the place of the target's, or add products in fewer bits, so what they
answer is not what the target will, and how long they take says nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxslim.analysis.precision import TARGET_KEY, precision_of
from onnxslim.evaluation.models import ModelSource, Runner, found_file, open_session
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.onnx_io import read
from onnxslim.runtime.capabilities import host_target
from onnxslim.runtime.integer import IntegerEvaluator
from onnxslim.targets import target_names

__all__ = ["foreign_target", "open_runner"]


def foreign_target(model: ModelSource) -> str | None:
    """The target of an int8 model where it is not this machine; None of all others, and where either is not known."""
    host = host_target()
    if isinstance(model, bytes) or host is None:
        return None
    if _is_ort(model):
        noted = open_session(model).raw.get_modelmeta().custom_metadata_map.get(TARGET_KEY)
        target = noted if noted in target_names() else None
    else:
        target = precision_of(_graph(model)).target
    return None if target == host else target


def open_runner(model: ModelSource) -> Runner:
    """A session for a model, or the integer evaluator for one of another target (an .ort file cannot be read, and runs
    in a session)."""
    if isinstance(model, bytes) or _is_ort(model) or foreign_target(model) is None:
        return open_session(model)
    return _Integers(_graph(model))


class _Integers:
    """A graph as a session shows it. Safe to call from several threads."""

    def __init__(self, graph: Graph) -> None:
        self._evaluator = IntegerEvaluator(graph)
        self.inputs = tuple(value for value in graph.inputs if value.array is None)
        self.outputs = tuple(graph.outputs)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        found = self._evaluator.run(feeds)
        return found if outputs is None else {name: found[name] for name in outputs}


def _is_ort(model: Graph | str | Path) -> bool:
    return not isinstance(model, Graph) and found_file(model).suffix == ".ort"


def _graph(model: Graph | str | Path) -> Graph:
    return model if isinstance(model, Graph) else read(model)
