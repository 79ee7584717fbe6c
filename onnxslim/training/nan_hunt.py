"""Where a NaN began: in the failing batch, replayed with every value of the step graph in sight; or in the state."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxslim.ir.graph import Array, DType, Graph, Role
from onnxslim.runtime.session import Session
from onnxslim.training.names import inner_name, outer_name, outer_names
from onnxslim.training.step import Step

__all__ = ["first_nonfinite", "nonfinite_state"]


_KINDS = {Role.PARAMETER: "parameter", Role.STATISTIC: "statistic", Role.SCALE: "scale"}


def first_nonfinite(step: Step, feeds: Mapping[str, Array], state: Mapping[str, Array]) -> str:
    """Names the first value, in the order of the step graph, that is not finite: a sentence.

    feeds: one worker's share of the batch; state: by name, from before the step. Gradients count
    too. Where nothing is, the sentence says so.
    """
    for name, array in (*feeds.items(), *((n, state[n]) for n in step.state)):
        if not _finite(array):
            origin = "fed by the data" if name in feeds else "of the training state"
            return f"the input '{outer_name(name)}', {origin}, {_what(array)}"
    graph = step.graph.copy()
    nodes = graph.nodes()
    seen = [v for node in nodes for v in graph.node_outputs(node) if v is not None and v.name]
    floats = [v for v in seen if v.dtype in (DType.FLOAT, DType.UNDEFINED)]
    for value in floats:
        if not graph.is_output(value):
            graph.add_output(value)
    session = Session(graph, optimize=False, fuse_qdq=False)
    fed = {port.name for port in session.inputs}
    everything = {**step.fed_from(state), **feeds}
    found = session.run({name: everything[name] for name in fed})
    for value in floats:
        array = found[value.name]
        if array.dtype.kind == "f" and not _finite(array):
            return outer_names(f"'{value.name}', the output of {graph.producer(value)}, {_what(array)}")
    return "no single value (replayed one by one, every value is finite)"


def nonfinite_state(arrays: Mapping[str, Array], before: Mapping[str, Array], graph: Graph) -> str | None:
    """Names the first array of the training state that is not finite, and whether the last step made it so; None where
    all are finite.

    arrays: the state by name; before: as it was before the last step; graph: the student, whose values have roles.
    """
    for name, array in arrays.items():
        if not _finite(array):
            value = graph.find(outer_name(name))
            owned = value is not None and inner_name(value.name) == name
            kind = _KINDS.get(value.role, "array") if value is not None and owned else "optimiser's moment"
            when = "since this step" if _finite(before[name]) else "since an earlier step"
            return outer_names(f"The {kind} '{name}'") + f" {_what(array)}, {when}"
    return None


def _finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _what(array: Array) -> str:
    bad = "NaN" if np.isnan(array).any() else "infinity"
    return f"is {bad} in {int((~np.isfinite(array)).sum())} of {array.size} elements"
