"""`CutChannels`: units of channel groups taken out of weights, and of every constant that counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from onnxslim.analysis.channels import find_groups
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.rewrite import Context, Outcome, Pass
from onnxslim.spill import Spill
from passes.prune.counts import counts_of, fit_targets, keep_shapes
from passes.prune.selection import Survivors, chosen_units

__all__ = ["CutChannels"]


@dataclass(frozen=True)
class CutChannels(Pass):
    """Conv(Conv(x, w₁ [O, I]), w₂ [P, O])  →  Conv(Conv(x, w₁[kept, :]), w₂[:, kept])

    for every axis that a channel group stands on: weights, biases, norms, running statistics, scales. Constants
    in which a number of channels is written follow: `group` of depthwise convolutions, hidden units and heads of
    recurrent ops and Attention, targets of Reshape, Expand and Resize (computed ones too), limits of Slice, sizes of
    Split, amounts of Pad, indices of Gather. What else is computed from a Shape stays what it was.
    `cuts` has the units to take away by the name of their group (`onnxslim.analysis.channels.find_groups`).

    Raises UnsupportedError, and leaves the graph as it was: no such group, a pinned one, no unit left.

    Contract: the function of the model in which these channels are zero wherever they are summed over
    (`MaskChannels`), to 1e-5 of the largest output. `Outcome.survivors` says for each constant what stayed.
    """

    cuts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    name: ClassVar[str] = "cut_channels"

    def run(self, graph: Graph, context: Context) -> Outcome:
        chosen = chosen_units(find_groups(graph), self.cuts)
        if not chosen:
            return Outcome()
        survivors = Survivors.of(graph, chosen)
        counts = counts_of(graph, survivors)
        keep_shapes(graph, survivors)
        spill = Spill()
        kept: dict[str, dict[int, Array]] = {}
        for value in graph.values():
            axes = survivors.axes(value)
            if not axes:
                continue
            if value.array is not None:
                kept[value.name] = axes
                array = value.array
                for axis, indices in axes.items():
                    array = array.take(indices, axis)
                graph.set_array(value, spill.keep(array))
            else:
                assert value.shape is not None
                graph.set_type(value, shape=[len(axes[a]) if a in axes else d for a, d in enumerate(value.shape)])
        for count in counts:
            count.write(graph)
        fit_targets(graph, {axis.value for axis in survivors.kept})
        return Outcome(sum(len(units) for _, units in chosen), survivors=kept)
