"""The passes that make a training step of a model: see `build_step` for their order.

Each edits the graph in place and is verified like any other. What one hands to the next — which input or output is
what, what is updated, where the taps are — stands in the `StepContext`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from onnxslim.analysis.batch import set_sizes, with_batch
from onnxslim.analysis.regions import cuts_at_zero
from onnxslim.errors import UnsupportedError
from onnxslim.ir.dialect import is_fake_quant
from onnxslim.ir.graph import Array, DType, Graph, Role, Shape, Value
from onnxslim.ir.rewrite import Context, Outcome, Pass
from onnxslim.runtime.capabilities import capabilities
from onnxslim.training.ports import STATE, Kind, Port, scale_port, statistic_port
from onnxslim.training.rules import Optimise
from onnxslim.training.update import Rule
from passes.distill import LABEL, STUDENT, Loss, Tap, Taps, attach_losses, softmax_behind
from passes.gradient import GradientOptions, differentiate
from passes.gradient.ort_builder import differentiate_with_ort
from passes.layout import ShapePorts, ToBlocked, ToLanes

__all__ = [
    "LAYOUTS",
    "WIDTH",
    "AttachLosses",
    "CountCorrect",
    "Differentiate",
    "FeedData",
    "FeedState",
    "FeedTeacher",
    "FetchStatistics",
    "FetchTaps",
    "LayOut",
    "Layout",
    "Observe",
    "SetSizes",
    "ShapeState",
    "StepContext",
    "StepPass",
]

Layout: TypeAlias = Literal["plain", "blocked", "lanes"]
LAYOUTS: tuple[Layout, ...] = ("plain", "blocked", "lanes")

WIDTH = 8
"""Of the lanes where the runtime has no blocked kernels: any serves, this one fits AVX2 and NEON."""


@dataclass(frozen=True, repr=False)
class StepContext(Context):
    """What the passes of a step hand on. ports: what inputs and outputs are called; updates: what is updated, and how;
    initial: what a loss's own parameters begin with."""

    ports: dict[Port, str] = field(default_factory=dict)
    updates: list[Rule] = field(default_factory=list)
    initial: dict[Port, Array] = field(default_factory=dict)

    @property
    def learns(self) -> list[Port]:
        """What the loss is differentiated to."""
        return [port for rule in self.updates for port in rule.learns]

    def give(self, graph: Graph, port: Port, name: str, dtype: DType, shape: Shape | None) -> Value:
        """A new input."""
        value = graph.add_input(graph.fresh_name(name), dtype, shape)
        self.ports[port] = value.name
        return value

    def fetch(self, graph: Graph, port: Port, value: Value) -> None:
        """A value becomes an output; where it cannot, or is one already, a copy of it."""
        if value.array is not None or graph.is_input(value) or graph.is_output(value):
            copy = graph.op("Identity", value, name=f"{value.name}/output")
            graph.set_type(copy, value.dtype, value.shape)
            value = copy
        graph.add_output(value)
        self.ports[port] = value.name


class StepPass(Pass):
    """A pass that reads or fills what a `StepContext` holds."""

    def run(self, graph: Graph, context: Context) -> Outcome:
        if not isinstance(context, StepContext):
            raise TypeError(f"Pass '{self.name}' is one of a training step's, and needs a StepContext")
        return Outcome(self.edit(graph, context))

    @abstractmethod
    def edit(self, graph: Graph, step: StepContext) -> int:
        """Rewrites the graph in place; how many rewrites."""


@dataclass(frozen=True)
class SetSizes(Pass):
    """inputs [?, …] → [batch, …], all shapes numbers: see `set_sizes`. Exact, sample by sample."""

    batch: int
    sample: tuple[int, ...] | None = None
    name: ClassVar[str] = "set_sizes"

    def run(self, graph: Graph, context: Context) -> Outcome:
        before = [value.shape for value in graph.inputs]
        count = set_sizes(graph, self.batch, self.sample)
        return Outcome(count or int(before != [value.shape for value in graph.inputs]))


@dataclass(frozen=True)
class FeedState(StepPass):
    """Parameters, scales and (frozen) running statistics: initialisers → inputs. Exact, fed with the same numbers.

    Raises UnsupportedError for a parameter of which the batch size made another constant.
    """

    frozen_batchnorm: bool
    name: ClassVar[str] = "feed_state"
    keeps_types: ClassVar[bool] = True

    def edit(self, graph: Graph, step: StepContext) -> int:
        ports = dict.fromkeys(port for port in step.learns if port.kind is Kind.PARAMETER)
        for node in graph.nodes():
            slots = [graph.input(node, slot) for slot in range(5)]
            if is_fake_quant(node):
                ports |= dict.fromkeys(scale_port(value) for value in slots[1:3] if value is not None)
            elif node.op == "BatchNormalization" and self.frozen_batchnorm:
                ports |= dict.fromkeys(statistic_port(value) for value in slots[3:] if value is not None)
        for port in ports:
            value = graph.find(str(port.owner))
            if value is None:
                raise UnsupportedError(
                    f"Parameter '{port.owner}' has the model's batch size in its shape, and cannot be trained with "
                    "another: export the model with a free batch axis"
                )
            graph.set_array(value, None)
            graph.feed(value)
            step.ports[port] = value.name
        return len(ports)


@dataclass(frozen=True)
class FeedData(StepPass):
    """Notes the model's inputs; labels are one more: int64 [batch]."""

    batch: int
    labelled: bool
    name: ClassVar[str] = "feed_data"

    def edit(self, graph: Graph, step: StepContext) -> int:
        inputs = [value.name for value in graph.inputs if value.array is None]
        step.ports.update({Port(Kind.DATA, name): name for name in inputs})
        step.taps.update({("data", name): name for name in inputs})
        if self.labelled:
            step.taps[LABEL] = step.give(graph, Port(Kind.LABEL), "label", DType.INT64, (self.batch,)).name
        return int(self.labelled)


@dataclass(frozen=True)
class FeedTeacher(StepPass):
    """The teacher's values that losses read: inputs, which a cache feeds.

    Of the first output its logits are fed, in the shape of the student's, and a softmax made of them where the teacher
    ends in one.
    """

    losses: tuple[Loss, ...]
    batch: int
    sample: tuple[int, ...] | None = None
    teacher: str = "teacher"
    name: ClassVar[str] = "feed_teacher"

    def edit(self, graph: Graph, step: StepContext) -> int:
        teacher = step.graphs[self.teacher]
        names = {tap.name for loss in self.losses for tap in loss.reads if tap.source == self.teacher}
        names -= {"", teacher.outputs[0].name}
        sized = with_batch(teacher, self.batch, self.sample) if names else teacher
        for name in ("", *sorted(names)):
            value = None if name == "" else sized.find(name)
            if name and value is None:
                continue  # which the loss that reads it says
            shape = graph.outputs[0].shape if value is None else value.shape
            port = Port(Kind.TEACHER, self.teacher, name)
            given = step.give(graph, port, f"{self.teacher}.{name or graph.outputs[0].name}", DType.FLOAT, shape)
            step.taps[self.teacher, name] = self._output(graph, given, teacher).name if name == "" else given.name
        step.taps[self.teacher, teacher.outputs[0].name] = step.taps[self.teacher, ""]
        return 1 + len(names)

    def _output(self, graph: Graph, logits: Value, teacher: Graph) -> Value:
        softmax = softmax_behind(teacher, teacher.outputs[0])
        if softmax is None:
            return logits
        output = graph.op("Softmax", logits, name=f"{logits.name}/softmax", axis=softmax.axis)
        graph.set_type(output, logits.dtype, logits.shape)
        return output


@dataclass(frozen=True)
class AttachLosses(StepPass):
    """outputs → the weighted sum of the losses, and each of them. What a loss owns is fed, and trained."""

    losses: tuple[Loss, ...]
    name: ClassVar[str] = "attach_losses"

    def edit(self, graph: Graph, step: StepContext) -> int:
        found = {Tap(*tap): graph.value(name) for tap, name in step.taps.items() if graph.find(name) is not None}
        found[STUDENT] = graph.outputs[0]
        taps = Taps(found, step.seed)
        loss, terms = attach_losses(graph, self.losses, taps)
        for output in graph.outputs:
            graph.remove_output(output)
        step.fetch(graph, Port(Kind.LOSS), loss)
        for name, term in terms.items():
            step.fetch(graph, Port(Kind.TERM, name), term)
        for (owner, name), value in taps.parameters.items():
            port, array = Port(Kind.LOSS_PARAMETER, owner, name), value.array
            assert array is not None
            step.initial[port] = array
            step.updates.append(Optimise(port, array.shape, array.ndim > 1))
            graph.set_array(value, None)
            graph.feed(value)
            step.ports[port] = value.name
        return 1


@dataclass(frozen=True)
class Observe(StepPass):
    """One more output for each observed range, float32 [2]: the smallest and largest value its FakeQuants read."""

    name: ClassVar[str] = "observe"

    def edit(self, graph: Graph, step: StepContext) -> int:
        wanted = {port for rule in step.updates for port in rule.reads if port.kind is Kind.BATCH}
        watched: dict[Port, list[Value]] = {}
        for node in graph.nodes():
            observed = graph.input(node, 3) if is_fake_quant(node) else None
            if observed is not None and statistic_port(observed).batch in wanted:
                watched.setdefault(statistic_port(observed).batch, []).append(graph.operand(node, 0))
        for port in (port for rule in step.updates for port in rule.reads if port in watched):
            step.fetch(graph, port, self._range(graph, list(dict.fromkeys(watched[port]))))
        return len(watched)

    def _range(self, graph: Graph, values: Sequence[Value]) -> Value:
        """Of all of these values together, float32 [2]."""
        lows, highs = [], []
        for value in values:
            base = f"{value.name}/observed"
            producer = graph.producer(value)
            if producer is not None and cuts_at_zero(graph, producer):
                lows.append(graph.add_constant(f"{base}/zero", np.zeros((), np.float32)))
            else:
                lows.append(graph.op("ReduceMin", value, name=f"{base}/min", keepdims=0))
            highs.append(graph.op("ReduceMax", value, name=f"{base}/max", keepdims=0))
        base = f"{values[0].name}/observed"
        axis = graph.add_constant(f"{base}/axis", np.zeros(1, np.int64))
        ends = []
        for op, parts in (("Min", lows), ("Max", highs)):
            end = parts[0] if len(parts) == 1 else graph.op(op, *parts, name=f"{base}/{op}")
            ends.append(graph.op("Unsqueeze", end, axis, name=f"{base}/{op}_1d"))
        both = graph.op("Concat", *ends, name=base, axis=0)
        graph.set_type(both, DType.FLOAT, (2,))
        return both


@dataclass(frozen=True)
class CountCorrect(StepPass):
    """One more output, a float32 scalar: how many samples have their largest logit at the label. Of logits [N, C]."""

    name: ClassVar[str] = "count_correct"

    def edit(self, graph: Graph, step: StepContext) -> int:
        logits, label = graph.value(step.taps[STUDENT]), step.taps.get(LABEL)
        if label is None or len(logits.static_shape) != 2:
            return 0
        best = graph.op("ArgMax", logits, name="correct/argmax", axis=1, keepdims=0)
        hit = graph.op("Equal", best, graph.value(label), name="correct/hit")
        hits = graph.op("Cast", hit, name="correct/float", to=int(DType.FLOAT))
        count = graph.op("ReduceSum", hits, name="correct", keepdims=0)
        graph.set_type(count, DType.FLOAT, ())
        step.fetch(graph, Port(Kind.CORRECT), count)
        return 1


@dataclass(frozen=True)
class FetchStatistics(StepPass):
    """The batch's means and variances, as `TrainBatchnorm` hands them out: outputs where an update reads them."""

    name: ClassVar[str] = "fetch_statistics"

    def edit(self, graph: Graph, step: StepContext) -> int:
        made = {v.owner: v for v in graph.values() if v.role is Role.STATISTIC and graph.producer(v) is not None}
        wanted = {port: made.get(str(port.belongs_to.owner)) for rule in step.updates for port in rule.reads
                  if port.kind is Kind.BATCH and port not in step.ports}  # fmt: skip
        for port, value in wanted.items():
            if value is not None:
                step.fetch(graph, port, value)
        return len(wanted)


@dataclass(frozen=True)
class FetchTaps(StepPass):
    """Values of the student's become outputs, by their names, where they are still there; before any layout, so that
    they keep their shapes."""

    names: tuple[str, ...]
    name: ClassVar[str] = "fetch_taps"

    def edit(self, graph: Graph, step: StepContext) -> int:
        values = {name: graph.find(step.taps["student", name]) for name in self.names}
        for name, value in values.items():
            if value is not None:
                step.fetch(graph, Port(Kind.TAP, name), value)
        return len(values)


@dataclass(frozen=True)
class LayOut(StepPass):
    """What depends on what is learnt, in a layout: `ToLanes`, `ToBlocked`; nothing for the plain one."""

    layout: Layout
    name: ClassVar[str] = "lay_out"

    def edit(self, graph: Graph, step: StepContext) -> int:
        if self.layout == "plain":
            return 0
        nodes = _depending_on(graph, [graph.value(step.ports[port]) for port in step.learns])
        lanes = capabilities().lanes or WIDTH
        chosen: Pass = ToBlocked(lanes, nodes)
        if self.layout == "lanes":
            chosen = ToLanes(_width(graph, nodes, lanes), nodes)
        return chosen.run(graph, step).rewrites


@dataclass(frozen=True)
class Differentiate(StepPass):
    """loss → one more output for each value that is learnt: the loss's gradient to it, in its shape.

    builder: `own`, or ONNX Runtime's. Raises GradientError naming the node where something on the way has no gradient.
    """

    builder: Literal["own", "ort"] = "own"
    name: ClassVar[str] = "differentiate"

    def edit(self, graph: Graph, step: StepContext) -> int:
        loss = graph.value(step.ports[Port(Kind.LOSS)])
        learns = {port: graph.value(step.ports[port]) for port in step.learns}
        if self.builder == "ort":
            made, gradients = differentiate_with_ort(graph, loss, list(learns.values()))
            graph.become(made)
            learns = {port: graph.value(step.ports[port]) for port in learns}
        else:
            kernels = GradientOptions(capabilities().has_training_kernels, capabilities().lanes)
            gradients = differentiate(graph, loss, list(learns.values()), kernels)
        for port, value in learns.items():
            step.fetch(graph, port.gradient, gradients[value.name])
            graph.set_role(graph.value(step.ports[port.gradient]), Role.GRADIENT, value.name)
        return len(learns)


@dataclass(frozen=True)
class ShapeState(StepPass):
    """`ShapePorts`, of the inputs that are fed from the training state and of all outputs."""

    name: ClassVar[str] = "shape_state"

    def edit(self, graph: Graph, step: StepContext) -> int:
        state = frozenset(name for port, name in step.ports.items() if port.kind in STATE)
        return ShapePorts(state).run(graph, step).rewrites


def _width(graph: Graph, nodes: frozenset[int], lanes: int) -> int:
    """How many images lie side by side: as the runtime's blocked kernels have it where depthwise convolutions run in
    them; else all of them, since what gathers rows of memory takes a time a row."""
    convolutions = [node for node in graph.nodes() if node.id in nodes and node.op == "Conv"]
    if not convolutions or any(node.attr("group", 1) > 1 for node in convolutions):
        return lanes
    return graph.operand(convolutions[0], 0).static_shape[0]


def _depending_on(graph: Graph, values: Sequence[Value]) -> frozenset[int]:
    """Ids of the nodes that read those values, directly or through others: not the teacher's."""
    net, found = graph.view, set[int]()
    frontier = [value.id for value in values]
    while frontier:
        following = [id for id in net.successors(frontier.pop()) if id not in found]
        found.update(following)
        frontier += following
    return frozenset(found)
