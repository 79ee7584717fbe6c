"""The int8 contract, measured: fake-quant graph, integer evaluator and ONNX Runtime's kernels, layer by layer.

Each layer gets the same integers in all three: the graphs are cut wherever a value is dequantised, and
the evaluator's integers are fed into every cut. So an error of one layer cannot hide in, or be
blamed on, another. The whole networks are compared by their top-1 answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxslim.errors import ModelError
from onnxslim.ir.dialect import is_fake_quant
from onnxslim.ir.graph import Array, DType, Graph, Node, Value
from onnxslim.ir.quant_math import dequantize
from onnxslim.runtime.integer import IntegerEvaluator
from onnxslim.runtime.session import Session

__all__ = ["Int8Contract", "LayerDifference", "compare_int8"]

_GIVEN = ".given"


@dataclass(frozen=True)
class LayerDifference:
    """Largest differences of one layer's output, in steps of its grid, given the same inputs; None
    where the fake-quant graph has no such value.

    `from_tie`: of all elements that differ, the largest distance in steps of the exact value, before rounding,
    from the middle between two integers; 0 where none differ, infinite where nothing was rounded. Float32 may round
    to either side of a tie that it cannot tell from the value; a wrong multiplier or bias shows away from ties. How
    many elements differ says nothing: one pair of integers whose sum is a tie may fill a whole image.
    """

    value: str
    fake_quant_to_integer: int | None
    runtime_to_integer: int
    from_tie: float


@dataclass(frozen=True)
class Int8Contract:
    """Per layer the largest differences, and over all samples the share of equal top-1 answers.

    `margin`: of all answers that differ, the largest distance between the best two outputs of the integer evaluator,
    as a share of the distance between its largest and its least; 0 where all are equal.
    """

    layers: tuple[LayerDifference, ...]
    samples: int
    fake_quant_to_integer: float
    runtime_to_integer: float
    fake_quant_to_runtime: float
    margin: float = 0.0

    @property
    def largest(self) -> int:
        """The largest difference of any layer, in steps."""
        found = [layer.runtime_to_integer for layer in self.layers]
        found += [layer.fake_quant_to_integer or 0 for layer in self.layers]
        return max(found, default=0)

    @property
    def agreement(self) -> float:
        """The smallest of the three top-1 agreements."""
        return min(self.fake_quant_to_integer, self.runtime_to_integer, self.fake_quant_to_runtime)

    @property
    def from_tie(self) -> float:
        """The largest distance of any layer from a tie, in steps."""
        return max((layer.from_tie for layer in self.layers), default=0.0)

    @property
    def holds(self) -> bool:
        """At most 1 step a layer, top-1 agreement at least 99.5 %."""
        return self.largest <= 1 and self.agreement >= 0.995


@dataclass(frozen=True)
class _Cut:
    """A dequantised value: its name, the integers it is made of, what those were rounded from, and its grid."""

    value: str
    integers: str
    source: str | None
    scale: Array
    zero_point: Array

    def steps(self, values: Array) -> Array:
        """The integers that give these values, int32."""
        return np.asarray(np.rint(values / self.scale), np.int32) + self.zero_point.astype(np.int32)

    def from_tie(self, values: Array) -> Array:
        """How far from a tie these values are, in steps."""
        steps = values.astype(np.float64) / self.scale
        return np.asarray(np.abs(steps - np.floor(steps) - 0.5))


def compare_int8(
    fake_quant: Graph, qdq: Graph, batches: Iterable[Mapping[str, Array]], *, threads: int = 1
) -> Int8Contract:
    """Compares the three on batches of float inputs.

    `fake_quant` is the trained graph after ExpandFakeQuant, `qdq` the one that LowerToQdq made of it,
    before its names are shortened: values are matched by name. Top-1 is over axis 1 of the first
    output. Raises ModelError where nothing can be matched.
    """
    if any(map(is_fake_quant, fake_quant.nodes())):
        raise ModelError(f"Graph '{fake_quant.name}' has FakeQuant nodes: run ExpandFakeQuant first")
    cuts, fake_cuts = _cuts(qdq), {cut.value for cut in _cuts(fake_quant)}
    if not fake_cuts & {cut.value for cut in cuts}:
        raise ModelError(f"Graphs '{fake_quant.name}' and '{qdq.name}' have no quantised value of the same name")
    shared = [cut for cut in cuts if cut.value in fake_cuts]
    sessions = (
        Session(_cut(fake_quant, shared, requantise=False), threads=threads, fuse_qdq=False),
        Session(_cut(qdq, cuts, requantise=True), threads=threads),
    )
    whole = Session(fake_quant, threads=threads, fuse_qdq=False), Session(qdq, threads=threads)
    tally = _Tally(cuts)
    evaluator = IntegerEvaluator(qdq)
    for feeds in batches:
        results = evaluator.run(feeds, keep=[n for cut in cuts for n in (cut.integers, cut.source) if n is not None])
        answers = [next(iter(found.values())) for found in (whole[0].run(dict(feeds)), whole[1].run(dict(feeds)))]
        tally.answers([*answers, results[qdq.outputs[0].name]])
        given = {c.value + _GIVEN: dequantize(results[c.integers], c.scale, c.zero_point) for c in cuts}
        for what, session, among in (("fake_quant", sessions[0], shared), ("runtime", sessions[1], cuts)):
            found = session.run(_accepted(session, {**feeds, **given}))
            for cut in among:
                source = None if cut.source is None else results[cut.source]
                tally.layer(what, cut, cut.steps(found[cut.value]) - results[cut.integers], source)
    return tally.result()


def _accepted(session: Session, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The feeds that a session has inputs for."""
    names = {port.name for port in session.inputs}
    return {name: array for name, array in feeds.items() if name in names}


def _cuts(graph: Graph) -> list[_Cut]:
    """Every activation that is dequantised, in order."""
    cuts = []
    for node in graph.nodes():
        if node.op != "DequantizeLinear" or not _is_activation(graph, node):
            continue
        scale = graph.constant_of(graph.operand(node, 1))
        zero_point = graph.constant_of(graph.input(node, 2)) if node.arity[0] > 2 else None
        if scale is None or scale.size != 1:
            continue
        integers = graph.operand(node, 0)
        offset = np.zeros((), integers.dtype.numpy) if zero_point is None else zero_point
        source = _rounded_from(graph, integers)
        cuts.append(_Cut(graph.result(node).name, integers.name, source, scale.reshape(()), offset.reshape(())))
    return cuts


def _rounded_from(graph: Graph, integers: Value) -> str | None:
    """What a QuantizeLinear, a Clip behind it or not, made these integers of."""
    source = graph.producer(integers)
    if source is not None and source.op == "Clip" and not source.domain:
        source = graph.producer(graph.operand(source, 0))
    if source is None or source.op != "QuantizeLinear":
        return None
    return graph.operand(source, 0).name


def _is_activation(graph: Graph, node: Node) -> bool:
    """Whether a DequantizeLinear's integers depend on an input of the graph."""
    value: Value | None = graph.operand(node, 0)
    while value is not None:
        source = graph.producer(value)
        if source is None:
            return value.array is None
        if source.op not in ("QuantizeLinear", "Clip"):
            return True
        value = graph.input(source, 0)
    return False


def _cut(graph: Graph, cuts: list[_Cut], *, requantise: bool) -> Graph:
    """Each cut value becomes an output, and is read from an input instead.

    `requantise` puts a pair on the cut's grid behind that input: what integer kernels are fused from,
    and exact, since the values fed are on the grid.
    """
    twin = graph.copy()
    for value in twin.outputs:
        twin.remove_output(value)
    for cut in cuts:
        value = twin.value(cut.value)
        shape = None if value.shape is None else [None, *value.shape[1:]]
        given = twin.add_input(cut.value + _GIVEN, DType.FLOAT, shape)
        uses = twin.uses(value)
        if requantise:
            pair = twin.producer(value)
            assert pair is not None
            grid, domain = twin.node_inputs(pair)[1:], pair.domain
            integers = twin.op("QuantizeLinear", given, *grid, domain=domain)
            given = twin.op("DequantizeLinear", integers, *grid, domain=domain)
        for use in uses:
            twin.set_input(use.node, use.slot, given)
        twin.add_output(value)
    return twin


class _Tally:
    """Differences and agreements, gathered over batches."""

    def __init__(self, cuts: list[_Cut]) -> None:
        self.cuts = cuts
        self.largest: dict[tuple[str, str], int] = {}
        self.from_tie: dict[str, float] = {}
        self.samples = 0
        self.equal = [0, 0, 0]
        self.asked = 0
        self.margin = 0.0

    def answers(self, outputs: list[Array]) -> None:
        """Adds the first outputs of the fake-quant graph, the runtime and the integer evaluator."""
        fake, runtime, integer = (a.argmax(axis=1) if a.ndim > 1 else a for a in outputs)
        self.samples += len(outputs[0])
        self.asked += fake.size
        for place, (a, b) in enumerate(((fake, integer), (runtime, integer), (fake, runtime))):
            self.equal[place] += int((a == b).sum())
        differ = (fake != integer) | (runtime != integer)
        if outputs[2].ndim > 1 and differ.any():
            ordered = np.moveaxis(np.sort(outputs[2].astype(np.float64), axis=1), 1, -1)[differ]
            spread = np.maximum(ordered[:, -1] - ordered[:, 0], np.finfo(np.float64).tiny)
            self.margin = max(self.margin, float(((ordered[:, -1] - ordered[:, -2]) / spread).max()))

    def layer(self, what: str, cut: _Cut, difference: Array, source: Array | None) -> None:
        """Adds one comparison: differences in steps, by element, and the values before rounding."""
        key = what, cut.value
        self.largest[key] = max(self.largest.get(key, 0), int(np.abs(difference).max(initial=0)))
        differing = difference != 0
        if differing.any():
            distance = np.inf if source is None else float(cut.from_tie(source[differing]).max())
            self.from_tie[cut.value] = max(self.from_tie.get(cut.value, 0.0), distance)

    def result(self) -> Int8Contract:
        layers = []
        for cut in self.cuts:
            found = [self.largest.get((what, cut.value)) for what in ("fake_quant", "runtime")]
            layers.append(LayerDifference(cut.value, found[0], found[1] or 0, self.from_tie.get(cut.value, 0.0)))
        fake, runtime, both = (count / max(1, self.asked) for count in self.equal)
        return Int8Contract(tuple(layers), self.samples, fake, runtime, both, self.margin)
