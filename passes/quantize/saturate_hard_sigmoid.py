"""`SaturateHardSigmoid`: HardSigmoid between integers is a sum that saturates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from onnxslim.ir.graph import Array, Graph, Node, Value
from onnxslim.ir.rewrite import Context, LocalPass
from onnxslim.targets import load_target

__all__ = ["SaturateHardSigmoid"]


@dataclass(frozen=True)
class SaturateHardSigmoid(LocalPass):
    """DQ(q; s, z) → HardSigmoid(α, β) → Q(s', z')   becomes   DQ(q; α·s, z) → Add(β) → Q(s', z')

    for α > 0, where Q's integers end within [0, 1]: saturation then does what HardSigmoid's limits do. Of the Add,
    whose β is an integer with a scale of its own, ONNX Runtime makes its integer kernel; it has none for HardSigmoid,
    and dequantising and quantising around a float one takes several times as long.

    Retained: anything else around a HardSigmoid, and all where the target has a kernel for it, or takes no integers at
    two scales (the profile's `saturating_sums`).

    Contract: at most one step of Q's grid (rounding of α·s to float32).
    """

    name: ClassVar[str] = "saturate_hard_sigmoid"
    ops: ClassVar[frozenset[str]] = frozenset({"HardSigmoid"})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        target = context.target or load_target("x64")
        return node.op in target.saturating_sums and _rewrite(graph, node)


def _rewrite(graph: Graph, node: Node) -> bool:
    alpha, beta = float(node.attr("alpha", 0.2)), float(node.attr("beta", 0.5))
    x, y = graph.operand(node, 0), graph.result(node)
    before, uses = graph.producer(x), graph.uses(y)
    if before is None or before.op != "DequantizeLinear" or graph.is_output(y) or not uses:
        return False
    scale, zero_point = _grid(graph, before)
    if scale is None or zero_point is None or alpha <= 0 or not beta:
        return False
    if not all(use.slot == 0 and _ends_within_limits(graph, use.node) for use in uses):
        return False
    name = node.name or y.name
    scaled = np.asarray(np.float64(alpha) * scale, np.float32)
    # β is ±1 times its own size: zero points below 1 are not, so that both types can say it.
    numbers = (1, 0) if beta > 0 else (0, 1)
    summand, origin = (
        graph.add_constant(f"{name}.{what}", np.asarray(number, zero_point.dtype))
        for what, number in zip(("beta", "beta_zero"), numbers)
    )
    size = graph.add_constant(f"{name}.beta_scale", np.float32(abs(beta)))
    step = graph.add_constant(f"{name}.scale", scaled)
    graph.detach(node)
    dequantize = partial(graph.op, "DequantizeLinear", domain=before.domain)
    line = dequantize(graph.operand(before, 0), step, graph.operand(before, 2), name=f"{name}.line")
    shift = dequantize(summand, size, origin, name=f"{name}.shift")
    graph.set_type(line, x.dtype, x.shape)
    graph.set_type(shift, x.dtype, ())
    graph.add_node("Add", [line, shift], [y], name=name)
    if not graph.is_used(x):
        graph.remove_node(before)
    return True


def _grid(graph: Graph, node: Node) -> tuple[Array | None, Array | None]:
    """The scale and zero point of a pair's node, where they are constants, one for all."""
    values: list[Value | None] = [graph.input(node, slot) for slot in (1, 2)]
    scale, zero_point = (graph.constant_of(value) for value in values)
    single = scale is not None and zero_point is not None and scale.size == zero_point.size == 1
    return (scale, zero_point) if single else (None, None)


def _ends_within_limits(graph: Graph, node: Node) -> bool:
    """Whether a QuantizeLinear's least number is 0 and its largest at most 1, by a tenth of a step."""
    if node.op != "QuantizeLinear":
        return False
    scale, zero_point = _grid(graph, node)
    if scale is None or zero_point is None:
        return False
    limits, step, least = np.iinfo(zero_point.dtype), float(scale.item()), int(zero_point.item())
    return least == limits.min and (limits.max - least) * step <= 1 + 0.1 * step
