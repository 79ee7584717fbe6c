"""What a family of decompositions is: functions that write an op out, by domain and op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from onnxslim.ir.graph import Value
from passes.gradient.tape import Tape

__all__ = ["Outputs", "Table"]

Outputs: TypeAlias = Sequence[Value | None]
"""A node's outputs in order; None for those that nothing differentiates."""

Table: TypeAlias = dict[tuple[str, str], Callable[[Tape], Outputs]]
