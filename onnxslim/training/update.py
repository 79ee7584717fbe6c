"""`build_update`: an ONNX graph that turns a step's results into the next state.

    each worker's results, state, rate, step  →  the next state

What is updated is a list of rules (`training/rules.py`). Gradients are weighted by each worker's share and summed in
the workers' order. Observers lag one step: a step quantised with the state of the one before; weight scales follow the
weight that was just updated, so that weight and scale of a state always belong together.

Every array is seen as one row of numbers, whatever its shape elsewhere: ONNX Runtime multiplies
[O, I, 1, 1] by a scalar thirty times slower than it does [O·I].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np

from onnxslim.ir.graph import DType, Graph, Role, Shape, Value
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.verify import verify
from onnxslim.training.ports import Kind, Port

__all__ = [
    "Optimizer",
    "Rule",
    "Sizes",
    "UpdateBuilder",
    "UpdateGraph",
    "UpdatePlan",
    "build_norm",
    "build_update",
    "moves_of",
]

Sizes: TypeAlias = tuple[int | str, ...]
"""A shape; ("n",) is a row of any length, which is the same wherever it has that name."""


class Optimizer(Protocol):
    """How parameters follow their gradients. moments: names of what is kept a parameter. clip_norm: bound on the
    gradients' global norm."""

    name: ClassVar[str]

    @property
    def moments(self) -> tuple[str, ...]: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def clip_norm(self) -> float | None: ...

    def update(
        self, builder: UpdateBuilder, parameter: Value, gradient: Value, moments: Sequence[Value], decays: bool
    ) -> tuple[Value, list[Value]]:
        """Adds the update of one parameter; returns its next value and its next moments."""
        ...


@dataclass(frozen=True)
class Rule(ABC):
    """How arrays of the state follow what the workers found: one entry of the list of what is updated."""

    in_pieces: ClassVar[bool] = False
    """Whether each number moves by itself, so that any part of a row can be updated alone."""

    @property
    def learns(self) -> Mapping[Port, Sizes]:
        """The values that the loss is differentiated to for this rule, and their shapes."""
        return {}

    @property
    @abstractmethod
    def moves(self) -> Mapping[Port, Sizes]:
        """The arrays of the state that get a next value, and their shapes; no other rule's. The moments of what it
        learns move with it."""

    @property
    @abstractmethod
    def reads(self) -> Mapping[Port, Sizes]:
        """The results of each worker that it is made from, and their shapes."""

    @property
    def alike(self) -> Hashable:
        """Rules with equal answers are one rule on rows of what they move and read; None: this one stands alone."""
        return None

    def on_rows(self, rules: Sequence[Rule], row: Callable[[str], Port]) -> Rule:
        """All of these rules, alike and this one among them, as one; `row` gives a row's port by what lies in it."""
        raise NotImplementedError

    @abstractmethod
    def build(self, builder: UpdateBuilder) -> None:
        """Adds the nodes; `builder.set_next` says what comes out."""


def moves_of(rule: Rule, optimizer: Optimizer) -> dict[Port, Sizes]:
    """All arrays of the state that get a next value by a rule, moments too, and their shapes."""
    moments = {port.moment(name): sizes for port, sizes in rule.learns.items() for name in optimizer.moments}
    return {**rule.moves, **moments}


@dataclass(frozen=True)
class UpdatePlan:
    """What is updated, and how. shares: each worker's fraction of the batch. scaled: whether gradients are multiplied
    by an input, the factor, because their norm is taken elsewhere (`build_norm`), over more of them."""

    rules: tuple[Rule, ...]
    shares: tuple[float, ...]
    optimizer: Optimizer
    scaled: bool = False

    @property
    def learns(self) -> list[Port]:
        return [port for rule in self.rules for port in rule.learns]


@dataclass(frozen=True)
class UpdateGraph:
    """A graph with the names of its inputs and outputs, by what they are."""

    graph: Graph
    ports: Mapping[Port, str]


def build_update(plan: UpdatePlan) -> UpdateGraph:
    """The update graph. Scalar output beside the next state: the gradients' norm, where they are clipped here."""
    builder = UpdateBuilder(plan)
    for rule in plan.rules:
        rule.build(builder)
    return builder.finished()


def build_norm(gradients: Sequence[Port], plan: UpdatePlan) -> UpdateGraph:
    """Each worker's gradients of those values  →  their norm, and the factor that clipping multiplies gradients by."""
    builder = UpdateBuilder(plan)
    sized = [(port.gradient, (f"n{number}",)) for number, port in enumerate(gradients)]
    factor = builder.clipping([builder.merged(gradient, sizes) for gradient, sizes in sized])
    builder.fetch(Port(Kind.FACTOR), factor, ())
    return builder.finished()


class UpdateBuilder:
    """An update graph that is being written, and what rules and optimisers write it with."""

    def __init__(self, plan: UpdatePlan) -> None:
        self.plan = plan
        self.graph = Graph("update")
        self.ports: dict[Port, str] = {}
        self._made: dict[Hashable, Value] = {}

    def finished(self) -> UpdateGraph:
        infer_shapes(self.graph)
        verify(self.graph)
        return UpdateGraph(self.graph, self.ports)

    # ------------------------------------------------------------------ nodes

    def op(self, op: str, *inputs: Value, **attributes: Any) -> Value:
        return self.graph.op(op, *inputs, name=op, **attributes)

    def const(self, number: float) -> Value:
        return self.array(np.array(number, np.float32))

    def ints(self, *numbers: int) -> Value:
        return self.array(np.array(numbers, np.int64))

    def array(self, array: Any) -> Value:
        """A constant, once."""
        key = (array.tobytes(), array.shape, array.dtype.str)
        return self.once(key, lambda: self.graph.add_constant("const", array))

    def once(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What was made before under that key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    # ------------------------------------------------------------------ inputs and outputs

    def input(self, port: Port, sizes: Sizes = ()) -> Value:
        """What is fed: of the state, a rate, a worker's result."""

        def make() -> Value:
            value = self.graph.add_input(self.graph.fresh_name(str(port)), DType.FLOAT, row(sizes))
            self.ports[port] = value.name
            return value

        return self.once(port, make)

    @property
    def rate(self) -> Value:
        """The learning rate."""
        return self.input(Port(Kind.RATE))

    @property
    def step(self) -> Value:
        """1.0 for the first."""
        return self.input(Port(Kind.STEP))

    def parts(self, result: Port, sizes: Sizes) -> list[Value]:
        """A result of each worker."""
        return [self.input(result.by(worker), sizes) for worker in range(len(self.plan.shares))]

    def weighted(self, parts: Sequence[Value]) -> Value:
        """Σ shareᵢ · partᵢ; equal shares are multiplied once."""
        shares = self.plan.shares
        if len(set(shares)) > 1:
            parts = [self.op("Mul", p, self.const(s)) for p, s in zip(parts, shares)]
        total = parts[0]
        for part in parts[1:]:  # Add by Add: the order of a Sum is the kernel's own
            total = self.op("Add", total, part)
        if len(set(shares)) == 1 and len(shares) > 1:
            total = self.op("Mul", total, self.const(shares[0]))
        return total

    def merged(self, result: Port, sizes: Sizes) -> Value:
        """A result of the workers, weighted."""
        return self.once(("merged", result), lambda: self.weighted(self.parts(result, sizes)))

    def gradient(self, port: Port, sizes: Sizes) -> Value:
        """Of a value that is learnt, of the whole batch, and clipped where the optimiser says so."""
        found = self.merged(port.gradient, sizes)
        if self.plan.scaled:
            return self.op("Mul", found, self.input(Port(Kind.FACTOR)))
        return found if self.plan.optimizer.clip_norm is None else self.op("Mul", found, self._factor)

    @cached_property
    def _factor(self) -> Value:
        return self.clipping([self.merged(p.gradient, s) for r in self.plan.rules for p, s in r.learns.items()])

    def clipping(self, gradients: Sequence[Value]) -> Value:
        """min(1, bound / (‖g‖ + 1e-6)), the norm over all gradients, which is fetched too."""
        bound = self.plan.optimizer.clip_norm
        assert bound is not None
        squares = [self.op("ReduceSumSquare", gradient, keepdims=0) for gradient in gradients]
        norm = self.op("Sqrt", self.op("Sum", *squares))
        self.fetch(Port(Kind.NORM), norm, ())
        ratio = self.op("Div", self.const(bound), self.op("Add", norm, self.const(1e-6)))
        return self.op("Min", ratio, self.const(1.0))

    def moved(self, old: Value, new: Value, share: Value) -> Value:
        """old + share·(new − old): what does not change stays as it is, to the last bit."""
        return self.op("Add", old, self.op("Mul", self.op("Sub", new, old), share))

    def updated(self, port: Port, sizes: Sizes) -> Value:
        """A value of the next state: as a rule before this one made it, or another update that has gone before."""
        return self._made.get(("next", port)) or self.input(port.next, sizes)

    def set_next(self, port: Port, value: Value, sizes: Sizes) -> None:
        self._made["next", port] = value
        self.fetch(port.next, value, row(sizes))
        self.graph.set_role(value, Role.ACTIVATION)

    def fetch(self, port: Port, value: Value, shape: Shape) -> None:
        self.graph.set_type(value, DType.FLOAT, shape)
        self.graph.add_output(value)
        self.ports[port] = value.name


def row(sizes: Sizes) -> Shape:
    """As the update sees an array: one axis; of scalars none."""
    numbers = [d for d in sizes if isinstance(d, int)]
    if len(numbers) < len(sizes):
        return sizes
    return (math.prod(numbers),) if sizes else ()
