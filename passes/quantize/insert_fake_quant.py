"""`InsertFakeQuant`: the quantisation grids of a target as FakeQuant nodes, calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from onnxslim.analysis.precision import TARGET_KEY
from onnxslim.analysis.regions import Regions, Site, Weight, find_regions
from onnxslim.analysis.scope import Names, label, matched, place
from onnxslim.calibration import Calibrator, MinMax, not_finite
from onnxslim.errors import DataError, ModelError, OptionError, UnsupportedError
from onnxslim.ir.dialect import OURS, FakeQuant, is_fake_quant
from onnxslim.ir.graph import DType, Graph, Node, Role, Value
from onnxslim.ir.quant_math import affine_from_range, weight_scale
from onnxslim.ir.rewrite import Context, Outcome, Pass, Refusal
from onnxslim.ir.statistics import Statistic
from onnxslim.targets import Target, load_target

__all__ = ["InsertFakeQuant", "require_finite"]


@dataclass(frozen=True)
class InsertFakeQuant(Pass):
    """Conv(x, w) [→ BatchNormalization] [→ Relu] → FQ(… Conv(FQ(x), FQ(w)) …), for every quantised region.

    Weights: symmetric, narrow, per output channel (per tensor where the target or the op needs it).
    Activations: affine, per tensor, scale and zero point from the range that `calibrator` finds, which each
    FakeQuant also keeps as its fourth input. A value keeps its grid through pools and reshapes.

    `weight_bits`, `activation_bits`: 2 to 8, or as many as the target takes; None takes the target's (7 for weights
    where it has `reduce_range`).
    `per_channel`: None takes the target's.
    `skip`: nodes to leave in float, each entry a node's name, an op type, a glob, or "re:" and a
    regular expression for the whole name; a node without a name goes by that of its output.
    The target is the context's, or x64.

    Refuses, naming the node: weights that are not constant, other types than float32, ops the target
    has no integer kernel for. Raises OptionError for an entry of `skip` that matches nothing, ModelError naming a
    weight or bias that holds NaN or infinity, DataError for such a range.
    Changes the numbers by rounding to the grids, nothing else.
    """

    weight_bits: int | None = None
    activation_bits: int | None = None
    per_channel: bool | None = None
    skip: tuple[str, ...] = ()
    calibrator: Calibrator = field(default_factory=MinMax)
    name: ClassVar[str] = "insert_fake_quant"

    def requests(self, graph: Graph, context: Context) -> Sequence[Statistic[Any]]:
        sites, known = self.regions(graph, context).sites, context.statistics
        return [statistic for site in sites for statistic in self.calibrator.requests(site.value.name, known)]

    def run(self, graph: Graph, context: Context) -> Outcome:
        present = next(filter(is_fake_quant, graph.nodes()), None)
        if present is not None:
            return Outcome(refused=(Refusal(str(present), "the graph has fake-quant nodes already"),))
        target = self._target(context)
        regions = self.regions(graph, context)
        ranges = [self._range(site.value, target.activation_bits, context) for site in regions.sites]
        require_finite(graph, regions)
        for weight in regions.weights:
            _insert_weight(graph, weight, target)
        for site, observed in zip(regions.sites, ranges):
            _insert_activation(graph, site, observed, target)
        count = len(regions.weights) + len(regions.sites)
        if count:
            graph.opsets[OURS] = 1
            graph.metadata[TARGET_KEY] = target.name
        return Outcome(count, tuple(Refusal(place(graph, node), why) for node, why in regions.refused))

    def _target(self, context: Context) -> Target:
        target = context.target or load_target("x64")
        weight_bits = self.weight_bits or (min(target.weight_bits, 7) if target.reduce_range else target.weight_bits)
        activation_bits = self.activation_bits or target.activation_bits
        for what, bits, own in (
            ("weight_bits", weight_bits, target.weight_bits),
            ("activation_bits", activation_bits, target.activation_bits),
        ):
            if not 2 <= bits <= 8 and bits != own:
                raise OptionError(what, f"expected 2 to 8{f' or {own}' if own > 8 else ''}, got {bits}")
        per_channel = target.weight_per_channel if self.per_channel is None else self.per_channel
        return replace(target, weight_bits=weight_bits, activation_bits=activation_bits, weight_per_channel=per_channel)

    def regions(self, graph: Graph, context: Context) -> Regions:
        """What `run` quantises, and per node why the rest stays in float."""
        return find_regions(graph, self._target(context), _skipped(graph, self.skip))

    def _range(self, value: Value, bits: int, context: Context) -> tuple[float, float]:
        """(lo, hi), widened to hold 0."""
        known = context.statistics
        missing = [s.what for s in self.calibrator.requests(value.name, known) if s not in known]
        if missing:
            raise DataError(
                f"Pass '{self.name}' needs the {missing[0]} of '{value.name}', which was not gathered: "
                "`collect` what it requests first"
            )
        found = self.calibrator.range(value.name, bits, known)
        if not found.finite:
            raise not_finite("range", value.name, found)
        return min(0.0, found.low), max(0.0, found.high)


def require_finite(graph: Graph, regions: Regions) -> None:
    """Raises ModelError naming the first weight or bias that holds NaN or infinity, before anything is measured."""
    for node in regions.compute:
        for value in graph.node_inputs(node):
            array = graph.constant_of(value)
            if value is not None and array is not None and not np.isfinite(array).all():
                bad = "NaN" if np.isnan(array).any() else "infinity"
                count = int((~np.isfinite(array)).sum())
                raise ModelError(
                    f"{place(graph, node)}: '{value.name}' holds {bad} in {count:,} of {array.size:,} elements, which "
                    "no grid covers: repair the model, or leave the node in float (skip)"
                )


def _skipped(graph: Graph, patterns: tuple[str, ...]) -> set[int]:
    named = {node.id: Names((label(graph, node),), (node.op,)) for node in graph.nodes()}
    return set(matched(patterns, named, "skip", f"node of graph '{graph.name}'"))


def _insert_weight(graph: Graph, weight: Weight, target: Target) -> None:
    value, axis, bits = weight.value, weight.axis, target.weight_bits
    if value.array is None:
        raise UnsupportedError(f"Weight '{value.name}' has no array")
    step = weight_scale(value.array, axis, bits)
    scale = graph.add_constant(f"{value.name}.scale", step, role=Role.SCALE, owner=value.name)
    zeros = np.zeros(step.shape, np.float32)
    zero_point = graph.add_constant(f"{value.name}.zero_point", zeros, role=Role.SCALE, owner=value.name)
    node = graph.add_node(
        "FakeQuant",
        [value, scale, zero_point],
        [f"{value.name}.quantized"],
        FakeQuant(bits, signed=True, narrow=True, axis=axis, is_weight=True).attributes(),
        domain=OURS,
        name=f"{value.name}.fake_quant",
    )
    graph.set_type(graph.result(node), DType.FLOAT, value.shape)
    for use in weight.uses:
        graph.set_input(use.node, use.slot, graph.result(node))


def _insert_activation(graph: Graph, site: Site, observed: tuple[float, float], target: Target) -> None:
    """FakeQuant(value, scale, zero point, range) for all that reads integers."""
    bits, signed = target.activation_bits, target.activation_signed
    value = site.value
    lo_hi = np.array(observed, np.float32)
    grid = affine_from_range(lo_hi[0], lo_hi[1], bits, signed)
    scale, zero_point = (
        graph.add_constant(f"{value.name}.{what}", array, role=Role.SCALE)
        for what, array in zip(("scale", "zero_point"), grid)
    )
    grid_values = [scale, zero_point, graph.add_constant(f"{value.name}.range", lo_hi, role=Role.STATISTIC)]
    node = graph.add_node(
        "FakeQuant",
        [value, *grid_values],
        [f"{value.name}.quantized"],
        FakeQuant(bits, signed).attributes(),
        domain=OURS,
        name=f"{value.name}.fake_quant",
    )
    result = graph.result(node)
    graph.set_type(result, DType.FLOAT, value.shape)
    if site.everywhere and graph.is_output(value):
        _take_over_output(graph, value, result, node)
    for use in site.uses:
        graph.set_input(use.node, use.slot, result)
    for kept in grid_values:  # last: an output's name moves to its quantised form
        graph.set_role(kept, kept.role, value.name)


def _take_over_output(graph: Graph, value: Value, result: Value, node: Node) -> None:
    graph.replace_uses(value, result)
    graph.set_input(node, 0, value)
