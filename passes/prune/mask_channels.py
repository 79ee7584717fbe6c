"""`MaskChannels`: units of channel groups made zero, every shape kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from onnxslim.analysis.channels import Axis, Group, find_groups
from onnxslim.analysis.channels.couplings import Reader
from onnxslim.graph import Array, Graph, Node, Role
from onnxslim.rewrite import Context, Outcome, Pass
from passes.prune.selection import chosen_units, known_size

__all__ = ["MaskChannels"]


@dataclass(frozen=True)
class MaskChannels(Pass):
    """Conv(Conv(x, w₁ [O, I]), w₂ [P, O])  →  Conv(Conv(x, w₁ · m[:, None]), w₂ · m),   m = 0 for units that go

    The weights of a group become zero on either side, its biases and norms too; where channels are summed over
    without a weight, a product with m stands before. What `CutChannels` would take away is then zero, and the
    model computes the same with its shapes kept.

    Raises UnsupportedError as `CutChannels` does.

    Contract: exact, but for the order in which zeros are added.
    """

    cuts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    name: ClassVar[str] = "mask_channels"

    def run(self, graph: Graph, context: Context) -> Outcome:
        groups = find_groups(graph)
        chosen = chosen_units(groups, self.cuts)
        for group, units in chosen:
            _zero_constants(graph, group, units)
        for reader in groups.readers:
            _mask_reader(graph, reader, chosen)
        return Outcome(sum(len(units) for _, units in chosen))


def _zero_constants(graph: Graph, group: Group, units: Array) -> None:
    for member in group.members:
        value = member.value
        if value.array is not None and value.dtype.is_float and value.role not in (Role.SCALE, Role.STATISTIC):
            array = np.array(value.array)
            np.moveaxis(array, member.axis, 0)[member.index[units].reshape(-1)] = 0
            graph.set_array(value, array)


def _mask_reader(graph: Graph, reader: Reader, chosen: Sequence[tuple[Group, Array]]) -> None:
    """A product with the mask before what sums over channels, where no weight is zero on the other side."""
    node = graph.item(reader.node)
    assert isinstance(node, Node)
    value = graph.operand(node, reader.slot)
    others = (v for v in graph.node_inputs(node)[:2] if v is not None and v is not value)
    if value.array is not None or any(v.array is not None and v.dtype.is_float for v in others):
        return
    gone = [
        member.index[units].reshape(-1)
        for group, units in chosen
        for member in group.members
        if Axis(member.value.id, member.axis) == Axis(value.id, reader.axis)
    ]
    if not gone or value.shape is None:
        return
    shape = [1] * len(value.shape)
    size = shape[reader.axis] = known_size(value, reader.axis)
    mask = np.ones(size, value.dtype.numpy)
    mask[np.concatenate(gone)] = 0
    base = f"{value.name}/mask"
    masked = graph.op("Mul", value, graph.add_constant(base, mask.reshape(shape)), name=f"{base}ed")
    graph.set_type(masked, value.dtype, value.shape)
    graph.set_input(node, reader.slot, masked)
