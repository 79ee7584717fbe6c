"""Where a NaN began: in the failing batch, replayed with every value of the step graph in sight; or in the state."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxslim.ir.graph import Array, DType, Graph
from onnxslim.runtime.session import Session
from onnxslim.training.ports import Kind, Port
from onnxslim.training.step import Step

__all__ = ["first_nonfinite", "nonfinite_state", "watched"]


def watched(student: Graph) -> tuple[str, ...]:
    """What a step has to fetch so that `first_nonfinite` can name it: all that the student's nodes make, in order."""
    made = [value for node in student.nodes() for value in student.node_outputs(node) if value is not None]
    return tuple(value.name for value in made if value.dtype is DType.FLOAT)


def first_nonfinite(step: Step, feeds: Mapping[Port, Array], state: Mapping[Port, Array], student: Graph) -> str | None:
    """Names the first value that is not finite; None where all are: of what is fed, of the student in its own order (in
    a step that watches it), of the whole step.

    feeds: one worker's share of the batch; state: from before the step. Gradients count too.
    """
    given = {**feeds, **{port: state[port] for port in step.state}}
    for port, array in given.items():
        if not _finite(array):
            origin = "fed by the data" if port in feeds else "of the training state"
            return f"the {port}, {origin}, {_what(array)}"
    graph = step.graph.copy()
    seen = [v for node in graph.nodes() for v in graph.node_outputs(node) if v is not None and v.name]
    floats = [v for v in seen if v.dtype in (DType.FLOAT, DType.UNDEFINED)]
    for value in floats:
        if not graph.is_output(value):
            graph.add_output(value)
    found = Session(graph, optimize=False, fuse_qdq=False).run(step.fed(feeds, state))
    for port in (port for port in step.outputs if port.kind is Kind.TAP):
        array, tapped = found[step.ports[port]], student.value(str(port.owner))
        if not _finite(array):
            return f"'{tapped.name}', the output of {student.producer(tapped)}, {_what(array)}"
    for value in floats:
        array = found[value.name]
        if array.dtype.kind == "f" and not _finite(array):
            return f"'{value.name}', the output of {graph.producer(value)}, {_what(array)}"
    return None


def nonfinite_state(arrays: Mapping[Port, Array], before: Mapping[Port, Array]) -> str | None:
    """Names the first array of the training state that is not finite, and whether the last step made it so; None where
    all are finite. before: the state as it was before the last step."""
    for port, array in arrays.items():
        if not _finite(array):
            when = "since this step" if _finite(before[port]) else "since an earlier step"
            return f"The {port} {_what(array)}, {when}"
    return None


def _finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _what(array: Array) -> str:
    bad = "NaN" if np.isnan(array).any() else "infinity"
    return f"is {bad} in {int((~np.isfinite(array)).sum())} of {array.size} elements"
