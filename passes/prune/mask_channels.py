"""`MaskChannels`: units of channel groups made zero, every shape kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from onnxslim.analysis.channels import Axis, Group, find_groups
from onnxslim.analysis.channels.couplings import Reader
from onnxslim.ir.dialect import FAKE_QUANT
from onnxslim.ir.graph import Array, Graph, Node
from onnxslim.ir.op_facts import FACTS
from onnxslim.ir.rewrite import Context, Outcome, Pass
from passes.prune.selection import chosen_units, known_size

__all__ = ["MaskChannels"]


@dataclass(frozen=True)
class MaskChannels(Pass):
    """Conv(Conv(x, w₁ [O, I]), w₂ [P, O])  →  Conv(Conv(x, w₁ · m[:, None]), w₂ · m),   m = 0 for units that go

    The weights of a group become zero on either side, its biases and norms too; where channels are summed over
    without a weight, or a zero on their way would be divided by, a product with m stands before the sum. What
    `CutChannels` would take away is then zero, and the model computes the same with its shapes kept.

    Raises UnsupportedError as `CutChannels` does.

    Contract: exact, but for the order in which zeros are added.
    """

    cuts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    name: ClassVar[str] = "mask_channels"

    def run(self, graph: Graph, context: Context) -> Outcome:
        groups = find_groups(graph)
        chosen = chosen_units(groups, self.cuts)
        zeroed = {group.name: _zero_constants(graph, group, units) for group, units in chosen}
        gone: dict[Axis, list[tuple[str, Array]]] = {}
        for group, units in chosen:
            for member in group.members:
                places = member.index[units].reshape(-1)
                gone.setdefault(Axis(member.value.id, member.axis), []).append((group.name, places))
        read = [Axis(graph.operand(reader.of(graph), reader.slot).id, reader.axis) for reader in groups.readers]
        for reader, axis in zip(groups.readers, read):
            inputs = {v.id for v in graph.node_inputs(reader.of(graph))[:2] if v is not None}
            lost = [at for name, at in gone.get(axis, ()) if inputs.isdisjoint(zeroed[name])]
            if lost:
                _mask_reader(graph, reader, np.concatenate(lost))
        return Outcome(sum(len(units) for _, units in chosen))


_NOT_AT_ZERO = (
    "Acosh",
    "Div",
    "Log",
    "LpNormalization",
    "MeanVarianceNormalization",
    "Pow",
    "Reciprocal",
    "ReduceLogSum",
)
"""Ops that may give no number where a channel is zero. Groups that go through one are masked where they are read."""
_DIVIDES_BY_SPREAD = ("GroupNormalization", "InstanceNormalization", "LayerNormalization")
"""Those too, where no epsilon is added to a spread of zero."""
_FACTORS: Mapping[tuple[str, str], Sequence[int]] = {
    **{key: (*facts.weights, *facts.scales, *facts.biases) for key, facts in FACTS.items()},
    **{("", op): (0, 1) for op in ("Add", "Mul", "Sub")},
    **{("", op): (*FACTS["", op].weights, *FACTS["", op].biases, 5, 6) for op in ("GRU", "LSTM", "RNN")},
    FAKE_QUANT: (0,),
}
"""Where ops have their weights, factors and summands: zero is a number like others there, unlike in a divisor."""


def _fails_at_zero(node: Node) -> bool:
    return node.op in _NOT_AT_ZERO or (node.op in _DIVIDES_BY_SPREAD and node.attr("epsilon", 1e-5) == 0)


def _zero_constants(graph: Graph, group: Group, units: Array) -> set[int]:
    """Makes the units zero in weights and the like; the ids of these values."""
    zeroed: set[int] = set()
    producers = (graph.producer(member.value) for member in group.members)
    if any(node is not None and _fails_at_zero(node) for node in producers):
        return zeroed
    for member in group.members:
        value = member.value
        if value.array is None or not value.dtype.is_float:
            continue
        if all(use.slot in _FACTORS.get((use.node.domain, use.node.op), ()) for use in graph.uses(value)):
            array = np.array(value.array)
            np.moveaxis(array, member.axis, 0)[member.index[units].reshape(-1)] = 0
            graph.set_array(value, array)
            zeroed.add(value.id)
    return zeroed


def _mask_reader(graph: Graph, reader: Reader, gone: Array) -> None:
    """A product with the mask before what sums over channels, where no weight is zero on the other side."""
    node = reader.of(graph)
    value = graph.operand(node, reader.slot)
    assert value.shape is not None
    shape = [1] * len(value.shape)
    size = shape[reader.axis] = known_size(value, reader.axis)
    mask = np.ones(size, value.dtype.numpy)
    mask[gone] = 0
    base = f"{value.name}/mask"
    masked = graph.op("Mul", value, graph.add_constant(base, mask.reshape(shape)), name=f"{base}ed")
    graph.set_type(masked, value.dtype, value.shape)
    graph.set_input(node, reader.slot, masked)
