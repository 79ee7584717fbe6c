"""`FreezeInputs`: an input that always gets the same value becomes a constant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxslim.errors import OptionError
from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.rewrite import Context, Outcome, Pass
from onnxslim.ir.text import type_text

__all__ = ["FreezeInputs"]


@dataclass(frozen=True)
class FreezeInputs(Pass):
    """f(x, s), s = v  →  f(x), with v for an initialiser of that name.

    `values` gives numbers or arrays by the name of an input; a number serves an input of one element, whatever its
    rank. Raises OptionError, naming the input, for a name that is none and for values that do not fit its type.

    Exact, for callers that would feed v.
    """

    values: Mapping[str, npt.ArrayLike] = field(default_factory=dict, hash=False)
    name: ClassVar[str] = "freeze_inputs"

    def run(self, graph: Graph, context: Context) -> Outcome:
        fed = {value.name: value for value in graph.inputs}
        for name, given in self.values.items():
            if name not in fed:
                raise OptionError(
                    "freeze", f"'{name}' is no input of graph '{graph.name}': expected one of {', '.join(fed)}"
                )
            array = _fitting(fed[name], given)
            graph.remove_input(fed[name])
            graph.set_array(fed[name], array)
        return Outcome(len(self.values))


def _fitting(value: Value, given: npt.ArrayLike) -> Array:
    wanted = f"input '{value.name}' is {type_text(value)}"
    if value.dtype is DType.UNDEFINED or value.type_proto is not None:
        raise OptionError("freeze", f"{wanted}: only a tensor of a known type can be set")
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise OptionError("freeze", f"{wanted}, got {given!r}: {error}") from error
    typed = array.astype(object) if value.dtype is DType.STRING else _cast(array, value.dtype)
    texts = value.dtype is DType.STRING
    if typed is None or (texts and not all(isinstance(e, (str, bytes)) for e in typed.flat)):
        raise OptionError("freeze", f"{wanted}, which cannot hold {given!r} exactly")
    shape = value.shape
    if shape is not None and typed.shape != shape:
        fixed = [d if isinstance(d, int) else 1 for d in shape]
        if typed.size == 1 and all(d == 1 for d in fixed):
            return typed.reshape(fixed)
        same = len(shape) == typed.ndim and all(not isinstance(d, int) or d == n for d, n in zip(shape, typed.shape))
        if not same:
            raise OptionError("freeze", f"{wanted}, got {list(typed.shape)}: give as many numbers as it has")
    return typed


def _cast(array: Array, dtype: DType) -> Array | None:
    """Of that type; None where it would become another number. Floats are rounded to the type's own precision."""
    if array.dtype.kind not in "fiub":
        return None
    with np.errstate(all="ignore"):
        typed: Array = array.astype(dtype.numpy)
    if dtype.is_float:
        overflows = np.isinf(typed.astype(np.float64)) & ~np.isinf(array.astype(np.float64))
        return None if overflows.any() else typed
    return typed if np.array_equal(typed, array) else None
