"""Ops whose gradient is that of simpler ops: the forward pass is written out, and differentiated as it stands.

    y = Op(x, …)  →  the same y from ops that have gradient rules of their own

Only nodes on a gradient's way are written out, so inference keeps ONNX Runtime's own kernels. Each
function here follows the op's definition in ONNX (or ONNX Runtime's documentation of its own ops),
and returns its outputs in order, None for those nothing differentiates. One file a family.
"""

from passes.gradient.decompose import elementwise, fused, movement, normalization, recurrent, reduction
from passes.gradient.decompose.table import Table

__all__ = ["DECOMPOSITIONS"]

DECOMPOSITIONS: Table = {
    key: rule
    for family in (elementwise, normalization, reduction, recurrent, fused, movement)
    for key, rule in family.RULES.items()
}
