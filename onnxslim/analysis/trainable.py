"""What training moves: every float initialiser on a differentiable way to the output that is trained towards, or the
reason why it stays as it is. `inspect` tells it and `train` does it, both by `find_trainable`.

An initialiser is followed through what only moves its elements to the places where it meets the data. In a slot that
the op has for weights (a kernel, a bias, the scale of a norm, a slope, a table that is gathered from) it is trained.
Elsewhere — a constant that is added, multiplied, joined — the file does not say whether it was learnt, and the numbers
decide. These stay:

- **grids, statistics, bounds, divisors, exponents, paddings, initial states**: no weights, by what the op does;
- **one number**: a coefficient of a formula (1/√d, ½, ε), unless it is added behind a layer with one output;
- **a mask**: it holds −10,000 or less, or infinity, or it multiplies by zeros and ones alone;
- **places and sizes**: whole numbers and halves alone, not all of them between −1 and 1 (a detector's grid);
- **the input's normalisation**: before the first layer, a factor of any shape, what is subtracted, or what is added and
  varies along one axis at most (a position table varies along two);
- **rotations and frequencies**: tables with c² + s² = 1 everywhere, and what both a sine and a cosine are taken of.

Weight decay applies to what contracts or is looked up by the data (kernels, matrices, embeddings); not to biases,
norms, scales, slopes, positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from onnxslim.ir.dialect import is_fake_quant
from onnxslim.ir.graph import CAPTURE, Array, DType, Graph, Node, Role, Use, Value
from onnxslim.ir.op_facts import FACTS, facts_of

__all__ = ["Differentiable", "Parameter", "Survey", "find_trainable"]

Differentiable: TypeAlias = Callable[[Node], "str | None"]
"""Why a node has no gradient; None where it has one."""


@dataclass(frozen=True)
class Parameter:
    """decays: whether weight decay applies."""

    value: Value
    decays: bool


@dataclass(frozen=True)
class Survey:
    """Every float initialiser: `parameters` are trained, of the others `left` says why not, in the order in which nodes
    read them. blocked: nodes on the way that have no gradient, and why."""

    parameters: tuple[Parameter, ...]
    left: tuple[tuple[Value, str], ...]
    blocked: tuple[tuple[Node, str], ...]


_RECURRENT = ("GRU", "LSTM", "RNN")

GATHERED: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", op): (0,) for op in ("Gather", "GatherElements", "GatherND")
}
"""Tables that rows are taken of: decayed where the data say which, like embeddings, and not where constants do, like
positions."""
FIXED: Mapping[tuple[str, str], tuple[tuple[int, ...], str]] = {
    **{key: (facts.settings, facts.settings_are) for key, facts in FACTS.items() if facts.settings},
    **{
        key: (facts.statistics, "a running statistic, which follows the batches")
        for key, facts in FACTS.items()
        if facts.statistics
    },
    ("", "Div"): ((1,), "a divisor"),
    ("", "Max"): (tuple(range(64)), "a bound"),
    ("", "Min"): (tuple(range(64)), "a bound"),
    ("", "NegativeLogLikelihoodLoss"): ((2,), "class weights of a loss"),
    ("", "Pow"): ((1,), "an exponent, whose gradient is no number where the base is 0"),
    ("", "SoftmaxCrossEntropyLoss"): ((2,), "class weights of a loss"),
    **{("", op): ((5, 6), "an initial state") for op in _RECURRENT},
}
"""Slots of constants that are no weights."""
FLAT = ("Ceil", "Floor", "Round", "Sign")
"""Ops of ai.onnx that are constant between their steps: nothing is learnt through them."""

_LEARNABLE = ("Div", "Max", "Min", "Pow", *_RECURRENT)
"""Ops of those whose slot has a gradient all the same, which goes to what is computed there."""
_MOVES = (
    "Cast", "CastLike", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
)  # fmt: skip
"""Ops that leave a constant's numbers what they are."""
_ARITHMETIC = ("Add", "Div", "Mul", "Sub")
_PASSING = (*_MOVES, *_ARITHMETIC, "Clip", "Concat", "Gather", "Pad", "Resize")
"""What may be done to an input before the first layer without making it features."""
_MASKED = -1e4
"""Numbers that a mask adds so that a softmax gives nothing there: no weight is as large."""


def find_trainable(graph: Graph, differentiable: Differentiable) -> Survey:
    """Looks at a graph whose constants are folded; trained is what leads to its first output."""
    return _Search(graph, differentiable).run()


class _Search:
    def __init__(self, graph: Graph, differentiable: Differentiable) -> None:
        self.graph, self.nodes = graph, graph.nodes()
        self.refused = {node.id: why for node in self.nodes if (why := differentiable(node)) is not None}
        self.live: set[int] = set()
        self.cut: dict[int, str] = {}
        """By the id of a value: which node on a way to the output has no gradient, and why."""
        self.reasons: dict[int, str] = {}

    def run(self) -> Survey:
        self._follow_back()
        candidates = self._candidates()
        for value in candidates:
            why = self._unreached(value)
            if why is not None:
                self.reasons[value.id] = why
        self._rotations([v for v in candidates if v.id not in self.reasons])
        self._judge({v.id: v for v in candidates})
        kept = [v for v in candidates if v.id not in self.reasons]
        moving = self._reading(candidates)
        return Survey(
            tuple(Parameter(v, self._decays(v)) for v in kept),
            tuple((v, self.reasons[v.id]) for v in candidates if v.id in self.reasons),
            tuple((n, self.refused[n.id]) for n in self.nodes if n.id in self.refused and n.id in moving),
        )

    def _candidates(self) -> list[Value]:
        """Float initialisers in the order in which nodes read them."""
        read = (v for node in self.nodes for v in self.graph.reads(node))
        return list({v.id: v for v in read if v.array is not None and v.dtype.is_float}.values())

    # ------------------------------------------------------------------ where a gradient comes

    def _follow_back(self) -> None:
        """From the output that is trained towards; integers and booleans carry no gradient."""
        graph = self.graph
        self.live = {v.id for v in graph.outputs[:1] if _carries(v)}
        for node in reversed(self.nodes):
            made = [v for v in graph.node_outputs(node) if v is not None]
            if not any(v.id in self.live or v.id in self.cut for v in made):
                continue
            if self._is_flat(node):
                continue
            why = f"{node} is on its way to the output: {self.refused[node.id]}" if node.id in self.refused else None
            why = why or next((self.cut[v.id] for v in made if v.id in self.cut), None)
            for slot, value in self._flowing(node):
                fixed, constant = _fixed(Use(node, slot)), self._is_moved_constant(value)
                if fixed and constant:
                    continue
                unlearnt = fixed and not _is_learnable(node)
                ends = f"{node} reads it as {fixed}, which has no gradient rule" if unlearnt else why
                if ends is not None:
                    self.cut.setdefault(value.id, ends)
                if node.id not in self.refused and not unlearnt:
                    self.live.add(value.id)

    def _flowing(self, node: Node) -> list[tuple[int, Value]]:
        """Slots and values that a node reads and that a gradient could go to, in its bodies too."""
        inputs = [(slot, v) for slot, v in enumerate(self.graph.node_inputs(node)) if v is not None]
        inner = [(CAPTURE + i, v) for i, v in enumerate(self.graph.captures(node).values())]
        return [(slot, v) for slot, v in (*inputs, *inner) if _carries(v)]

    def _is_flat(self, node: Node) -> bool:
        return not node.domain and node.op in FLAT

    def _reading(self, candidates: list[Value]) -> set[int]:
        """Ids of the nodes on a way from a float initialiser to the output that is trained towards."""
        moving, nodes = {v.id for v in candidates}, set[int]()
        for node in self.nodes:
            made = [v for v in self.graph.node_outputs(node) if v is not None]
            if any(v.id in moving for v in self.graph.reads(node)):
                if any(v.id in self.live or v.id in self.cut for v in made):
                    nodes.add(node.id)
                moving.update(v.id for v in made if _carries(v))
        return nodes

    def _unreached(self, value: Value) -> str | None:
        """Why no gradient comes to an initialiser, or not the whole one; None where it comes."""
        graph = self.graph
        if value.role in (Role.STATISTIC, Role.SCALE, Role.MOMENT):
            return "a running statistic or a grid of quantisation"
        uses = graph.uses(value)
        statistic = next((why for use in uses if use.node.op == "BatchNormalization" and (why := _fixed(use))), None)
        if statistic is not None:  # the batches move it, whoever else reads it
            return statistic
        if graph.constant_of(value) is None:
            return "an input too, which whoever runs the model may feed"
        if value.array is None or not value.array.size:
            return "empty"
        if value.id in self.cut:
            return self.cut[value.id]
        if value.id in self.live:
            return None if value.dtype is DType.FLOAT else f"{value.dtype.name.lower()}: training computes in float32"
        fixed = next((why for use in uses if (why := _fixed(use))), None)
        return fixed or self._lost(value)

    def _lost(self, value: Value) -> str:
        """Where the way of a value ends that no gradient comes to."""
        graph, seen, frontier = self.graph, {value.id}, [value]
        while frontier:
            for node in graph.consumers(frontier.pop(0)):
                if self._is_flat(node):
                    return f"behind it, {node} is constant between its steps: its gradient is 0"
                for made in graph.node_outputs(node):
                    if made is not None and made.id not in seen:
                        if not _carries(made):
                            return f"behind it, {node} makes {made.dtype.name.lower()}, which carries no gradient"
                        seen.add(made.id)
                        frontier.append(made)
        return f"the first output, '{graph.outputs[0].name}', does not depend on it" if graph.outputs else "no output"

    # ------------------------------------------------------------------ what constants are for

    def _places(self, value: Value) -> list[Use]:
        """Where a constant meets the data, behind what only moves its elements."""
        graph, found, frontier = self.graph, [], [value]
        while frontier:
            for use in graph.uses(frontier.pop(0)):
                if _moves(use):
                    frontier += [v for v in graph.node_outputs(use.node) if v is not None]
                elif not _fixed(use):
                    found.append(use)
        return found

    def _judge(self, candidates: Mapping[int, Value]) -> None:
        """Reasons of constants outside of slots for weights, node by node in order, so that what comes before the first
        layer is known. `raw`: ids of values that are still the input's."""
        graph = self.graph
        raw = {v.id for v in graph.inputs if v.array is None and v.role is Role.ACTIVATION}
        verdicts: dict[int, list[str | None]] = {}
        places: dict[int, list[tuple[Value, Use]]] = {}
        for value in candidates.values():
            if value.id not in self.reasons:
                for use in self._places(value):
                    places.setdefault(use.node.id, []).append((value, use))
        for node in self.nodes:
            inputs = [v for v in graph.node_inputs(node) if v is not None]
            moving = [v for v in inputs if graph.constant_of(v) is None and v.dtype is not DType.BOOL]
            learns = False
            for value, use in places.get(node.id, ()):
                others = [v for v in moving if v is not graph.input(node, use.slot)]
                why = self._constant(value, use, bool(others) and all(v.id in raw for v in others))
                verdicts.setdefault(value.id, []).append(why)
                learns = learns or why is None
            data = [v for v in moving if not self._is_moved_constant(v)]
            if not learns and not node.domain and node.op in _PASSING and data and all(v.id in raw for v in data):
                raw.update(v.id for v in graph.node_outputs(node) if v is not None)
        for id, found in verdicts.items():
            if found and all(found):
                self.reasons[id] = str(found[0])

    def _is_moved_constant(self, value: Value) -> bool:
        """Whether it is an initialiser behind what only moves its elements."""
        producer = self.graph.producer(value)
        while producer is not None and not producer.domain and producer.op in _MOVES:
            value = self.graph.operand(producer, 0)
            producer = self.graph.producer(value)
        return value.array is not None

    def _constant(self, value: Value, use: Use, raw: bool) -> str | None:
        """Why a constant at a place is no weight; None where it is one. raw: what it meets is still the input."""
        node, array = use.node, value.array
        assert array is not None
        if self._is_angle(node):
            return f"frequencies: the sine and the cosine of {node} are taken"
        if _is_weight(use):
            return None
        if array.size == 1 and not self._is_bias(value, use):
            return "one number: a coefficient of a formula"
        numbers = np.asarray(array, np.float64)
        if not np.isfinite(numbers).all() or numbers.min() <= _MASKED:
            return "a mask: it holds -10,000 or less, or what is not finite"
        if node.op == "Mul" and set(np.unique(numbers)) == {0.0, 1.0}:
            return "a mask: zeros and ones alone"
        if np.abs(numbers).max() > 1 and not (2 * numbers % 1).any():
            return "whole numbers and halves alone: a grid of places, or sizes"
        varying = sum(size > 1 for size in array.shape)
        if raw and not node.domain and node.op in _ARITHMETIC and not (node.op == "Add" and varying > 1):
            return "the normalisation of an input, before the first layer"
        return None

    def _is_bias(self, value: Value, use: Use) -> bool:
        """One number, but added behind a layer that has one output."""
        graph = self.graph
        if use.node.op != "Add" or use.node.domain or not value.shape:
            return False
        other = graph.input(use.node, 1 - use.slot)
        producer = None if other is None else graph.producer(other)
        while producer is not None and _moves(Use(producer, 0)):
            producer = graph.producer(graph.operand(producer, 0))
        return producer is not None and bool(facts_of(producer).weights)

    def _is_angle(self, node: Node) -> bool:
        """Whether both the sine and the cosine of what a node makes are taken."""
        graph, found, frontier, seen = self.graph, set[str](), [node], {node.id}
        while frontier:
            for made in graph.node_outputs(frontier.pop()):
                for use in [] if made is None else graph.uses(made):
                    if not use.node.domain and use.node.op in ("Sin", "Cos"):
                        found.add(use.node.op)
                    elif (_moves(use) or use.node.op == "Concat") and use.node.id not in seen:
                        seen.add(use.node.id)
                        frontier.append(use.node)
        return len(found) == 2

    def _rotations(self, candidates: list[Value]) -> None:
        """Pairs of tables that are the cosine and the sine of the same angles."""
        tables: dict[tuple[int, ...], list[tuple[Value, Array]]] = {}
        for value in candidates:
            assert value.array is not None
            if (
                value.array.size > 1
                and np.abs(value.array).max() <= 1.001
                and not any(map(_is_weight, self._places(value)))
            ):
                tables.setdefault(value.array.shape, []).append((value, np.square(value.array, dtype=np.float64)))
        for group in tables.values():
            for i, (value, square) in enumerate(group):
                for other, beside in group[i + 1 :]:
                    if np.ptp(square) > 1e-3 and np.abs(square + beside - 1).max() < 1e-3:
                        for one in (value, other):
                            self.reasons[one.id] = "a rotation: the cosine or the sine of fixed angles"

    def _decays(self, value: Value) -> bool:
        for use in self._places(value):
            key = (use.node.domain, use.node.op)
            if use.slot in facts_of(use.node).weights:
                return True
            if use.slot in GATHERED.get(key, ()):
                index = self.graph.input(use.node, 1)
                if index is not None and index.array is None and not self._is_moved_constant(index):
                    return True
        return False


def _carries(value: Value) -> bool:
    return value.dtype.is_float or value.dtype is DType.UNDEFINED


def _is_learnable(node: Node) -> bool:
    return not node.domain and node.op in _LEARNABLE


def _fixed(use: Use) -> str:
    """What a constant in this slot is, where it is no weight; else ""."""
    slots, why = FIXED.get((use.node.domain, use.node.op), ((), ""))
    return why if use.slot in slots else ""


def _moves(use: Use) -> bool:
    if is_fake_quant(use.node):
        return use.slot == 0
    return not use.node.domain and use.node.op in _MOVES and use.slot == 0


def _is_weight(use: Use) -> bool:
    facts, tables = facts_of(use.node), GATHERED.get((use.node.domain, use.node.op), ())
    return use.slot in (*facts.weights, *facts.scales, *facts.biases, *tables)
