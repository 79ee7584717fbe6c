"""`LowerToQdq`: a trained FakeQuant graph becomes an int8 model of QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxslim.analysis.regions import hands_on
from onnxslim.errors import UnsupportedError
from onnxslim.ir.dialect import OURS, FakeQuant
from onnxslim.ir.graph import Array, Graph, Node, Value
from onnxslim.ir.quant_math import pair_domain, qrange, storage
from onnxslim.ir.rewrite import Context, Outcome, Pass, Refusal
from onnxslim.targets import Target, load_target
from passes.quantize.grids import Grid, Grids, fake_quants
from passes.quantize.integer_weights import lower_weights

__all__ = ["LowerToQdq"]


@dataclass(frozen=True)
class LowerToQdq(Pass):
    """FakeQuant graph (batch norm folded) → QDQ graph with the same integers.

        Conv(FQ(x), FQ(w), b) → Relu → FQ   becomes   Conv(DQ(q_x), DQ(q_w), DQ(q_b)) → Q → DQ

    q_w: int8 initialiser, from weight and scale as trained. q_b: int32 with scale s_x·s_w. Activations
    get the target's type: an int8 grid is the uint8 grid with zero point − 128. A ReLU or Clip that
    the saturation of the following QuantizeLinear already does is dropped; where the grid is wider
    (it reaches below 0), a pair of its own stands before it, which changes nothing.
    Shared-scale ops (MaxPool, Reshape …) between integers get the pair of their input again.

    Refuses, naming the node: compute ops whose input or weight is not fake-quantised, batch norm that
    was not folded, biases that no kernel takes. Those stay in float. Grids below 8 bits keep their
    integers in int8; activations below 8 bits get an explicit Clip, which has no integer kernel. Raises
    UnsupportedError where activations have more bits than the target takes.

    Contract: the integers of every layer, given the same inputs, differ by at most 1 from the
    FakeQuant graph's (float32 accumulation, bias rounded to s_x·s_w).
    """

    name: ClassVar[str] = "lower_to_qdq"

    def run(self, graph: Graph, context: Context) -> Outcome:
        found = fake_quants(graph)
        if not found:
            return Outcome()
        target = context.target or load_target("x64")
        grids = Grids(graph, target)
        signed = context.target.activation_signed if context.target else None
        _require_kernels(graph, found, target)
        handed = _handed_on(graph, grids, target)
        refused = lower_weights(graph, grids, target)
        writer = _PairWriter(graph, signed)
        kernels = set(target.quantized_ops) | set(target.integer_ops)
        for node in found:
            if not FakeQuant.of(node).is_weight:
                refused += _lower_activation(graph, node, writer, kernels)
        for node, grid in handed:
            for value in graph.node_outputs(node):
                if value is not None and graph.uses(value):
                    writer.after(value, grid)
        _drop_unused(graph)
        graph.opsets.pop(OURS, None)
        return Outcome(len(found), tuple(refused))


def _require_kernels(graph: Graph, found: list[Node], target: Target) -> None:
    for node in found:
        grid = FakeQuant.of(node)
        if not grid.is_weight and grid.bits > max(8, target.activation_bits):
            raise UnsupportedError(
                f"Value '{graph.operand(node, 0).name}' is quantised to {grid.bits} bits, but target '{target.name}' "
                f"takes activations of {target.activation_bits}: quantise the float model for it"
            )


class _PairWriter:
    """Writes QuantizeLinear → DequantizeLinear pairs; equal zero points are one initialiser."""

    def __init__(self, graph: Graph, signed: bool | None) -> None:
        self.graph, self.signed = graph, signed
        self.parameters: dict[tuple[bytes, str], Value] = {}

    def pair(self, x: Value, grid: Grid, result: Value | None, name: str) -> Value:
        """x → Q → [Clip →] DQ → `result`, or a new value where it is None."""
        graph = self.graph
        signed = grid.signed if self.signed is None else self.signed
        shift = 0 if signed == grid.signed else (-1 if signed else 1) * 2 ** (grid.bits - 1)
        dtype = storage(grid.bits, signed)
        scale = self._shared(grid.scale, "scale")
        zero_point = self._shared((grid.zero_point + np.float32(shift)).astype(dtype.numpy), "zero_point")
        domain = pair_domain(dtype, graph.opset)
        integers = graph.op("QuantizeLinear", x, scale, zero_point, name=f"{name}.q", domain=domain)
        graph.set_type(integers, dtype, x.shape)
        if grid.bits < 8:
            bounds = [self._shared(np.array(b, dtype.numpy), "bound") for b in qrange(grid.bits, signed)]
            integers = graph.op("Clip", integers, *bounds, name=f"{name}.clip")
            graph.set_type(integers, dtype, x.shape)
        outputs = [f"{name}.dq"] if result is None else [result]
        node = graph.add_node(
            "DequantizeLinear", [integers, scale, zero_point], outputs, domain=domain, name=f"{name}.dq"
        )
        graph.set_type(graph.result(node), x.dtype, x.shape)
        return graph.result(node)

    def after(self, value: Value, grid: Grid) -> None:
        """All nodes that read `value` read it through a pair."""
        uses = self.graph.uses(value)
        result = self.pair(value, grid, None, value.name)
        for use in uses:
            self.graph.set_input(use.node, use.slot, result)

    def _shared(self, array: Array, what: str) -> Value:
        key = array.tobytes(), f"{array.dtype}{array.shape}"
        if key not in self.parameters:
            self.parameters[key] = self.graph.add_constant(what, array)
        return self.parameters[key]


def _lower_activation(graph: Graph, node: Node, writer: _PairWriter, kernels: set[str]) -> list[Refusal]:
    grid, x, result = Grid.of(graph, node), graph.operand(node, 0), graph.result(node)
    graph.detach(node)
    refused = []
    if grid.bits < 8:
        refused.append(Refusal(f"value '{x.name}'", f"{grid.bits}-bit activations have no integer kernel"))
    activation = graph.producer(x)
    if activation is not None and activation.op in ("Relu", "Clip"):
        before = graph.operand(activation, 0)
        kernel = graph.producer(before)
        alone = not graph.is_used(x)
        if alone and _is_saturation(graph, activation, grid):
            graph.remove_node(activation)
            x = before
        elif kernel is not None and kernel.kind in kernels and len(graph.uses(before)) == 1:
            graph.set_input(activation, 0, writer.pair(before, grid, None, before.name))
    writer.pair(x, grid, result, result.name)
    return refused


def _is_saturation(graph: Graph, node: Node, grid: Grid) -> bool:
    """Whether clipping the integers to their grid does what this ReLU or Clip does."""
    low, high = _bounds(graph, node)
    if low is None or high is None:
        return False
    qmin, qmax = qrange(grid.bits, grid.signed)
    with np.errstate(over="ignore"):
        first, last = (np.rint(np.float32(bound) / grid.scale) + grid.zero_point for bound in (low, high))
    return bool(first <= qmin and last >= qmax)


def _bounds(graph: Graph, node: Node) -> tuple[float | None, float | None]:
    """The bounds of a ReLU or Clip; None where one is not constant."""
    if node.op == "Relu":
        return 0.0, np.inf
    found: list[float | None] = []
    for slot, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        value = graph.input(node, slot)
        constant = graph.constant_of(value)
        if value is None:
            found.append(float(node.attr(name, default)))
        else:
            found.append(None if constant is None or constant.size != 1 else float(constant.reshape(())))
    return found[0], found[1]


def _handed_on(graph: Graph, grids: Grids, target: Target) -> list[tuple[Node, Grid]]:
    """Shared-scale ops that stand between integers, with their grid."""
    wanted: set[int] = set()
    chosen: list[tuple[Node, Grid]] = []
    kernels = set(target.quantized_ops) | set(target.integer_ops)
    for node in reversed(graph.nodes()):
        if not hands_on(graph, node, target):
            continue
        readers = [use for v in graph.node_outputs(node) if v is not None for use in graph.uses(v)]
        grid = grids.of(graph.result(node))
        if grid is not None and any(use.node.kind in kernels or use.node.id in wanted for use in readers):
            wanted.add(node.id)
            chosen.append((node, grid))
    return chosen[::-1]


def _drop_unused(graph: Graph) -> None:
    """Float weights, scales and ranges that nothing reads any more."""
    for value in graph.initializers():
        if not graph.is_used(value) and not graph.is_input(value):
            graph.remove_value(value)
