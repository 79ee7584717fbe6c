"""`build_step`: the graph that one worker runs each step — forward, losses, gradients, what observers see.

student (+ teacher) + losses → differentiate → one graph
    in:  images, labels, [teacher outputs]; parameters, scales, [running statistics] by name
    out: loss, loss.<name>, correct, grad.<parameter>, batch_mean.* and batch_var.*, observed.<range>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from onnxslim.analysis.batch import with_batch
from onnxslim.analysis.regions import cuts_at_zero
from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Array, DType, Graph, Role, Value
from onnxslim.ir.rewrite import Context, Pass, Pipeline
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.verify import verify
from onnxslim.runtime.capabilities import capabilities
from onnxslim.training.names import move_names, users_names
from onnxslim.training.parameters import Trained, is_fake_quant, trained_of
from passes.distill import PREFIX, Loss, MergeTeacher, Taps, attach_losses, softmax_behind
from passes.gradient import GradientOptions, differentiate
from passes.gradient.ort_builder import differentiate_with_ort
from passes.gradient.train_batchnorm import TrainBatchnorm
from passes.layout import ExpandBlocked, ExpandLanes, ShapePorts, ToBlocked, ToLanes
from passes.quantize import ExpandFakeQuant
from passes.simplify import EliminateCommon, EliminateDead, MergeMovements

__all__ = ["LAYOUTS", "WIDTH", "Layout", "Step", "StepOptions", "build_step"]

Layout: TypeAlias = Literal["plain", "blocked", "lanes"]
LAYOUTS: tuple[Layout, ...] = ("plain", "blocked", "lanes")

WIDTH = 8
"""Of the lanes where the runtime has no blocked kernels: any serves, this one fits AVX2 and NEON."""


@dataclass(frozen=True)
class StepOptions:
    """teacher_as_input: the teacher's logits are fed (from a cache) instead of computed in the graph.
    frozen_batchnorm: batch norm uses its running statistics. labelled: whether labels are fed.
    layout: plain, channels in the vector lanes where that helps (blocked), or images (lanes).
    sample: the shape of one sample, for the axes that student and teacher leave free."""

    losses: tuple[Loss, ...]
    teacher_as_input: bool = False
    frozen_batchnorm: bool = False
    labelled: bool = True
    gradient: Literal["own", "ort"] = "own"
    layout: Layout = "plain"
    sample: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Step:
    """A step graph for `batch` samples, ready for a session.

    data: names of the inputs fed anew each step; state: of those read from the training state. laid: how many
    nodes the layout changed.
    """

    graph: Graph
    batch: int
    data: tuple[str, ...]
    state: tuple[str, ...]
    trained: Trained
    laid: int = 0

    def fed_from(self, state: Mapping[str, Array]) -> dict[str, Array]:
        """What the graph reads of the training state: the same memory, in the shapes that it computes with."""
        return {name: state[name].reshape(self.graph.value(name).static_shape) for name in self.state}


def build_step(student: Graph, batch: int, options: StepOptions, teacher: Graph | None = None) -> Step:
    """The step graph of a student in the working opset; `student` is not changed. Its tensors are called as
    `inner_name` says.

    Raises GradientError naming the node where something on the way has no gradient.
    """
    with users_names():
        student = move_names(student.copy())
        teacher = None if teacher is None else move_names(teacher.copy())
        return _built(student, batch, options, teacher)


def _built(student: Graph, batch: int, options: StepOptions, teacher: Graph | None) -> Step:
    trained = trained_of(student, frozen_batchnorm=options.frozen_batchnorm)
    graph = with_batch(student, batch, options.sample)
    data = [v.name for v in graph.inputs if v.array is None]
    logits = graph.outputs[0]
    infer_shapes(graph)
    if not options.frozen_batchnorm:
        TrainBatchnorm()(graph)
    state = _feed_state(graph, trained, options.frozen_batchnorm)
    label = None
    if options.labelled:
        label = graph.add_input("label", DType.INT64, (batch,))
        data.append(label.name)
    target = None
    if teacher is not None and options.teacher_as_input:
        target = graph.add_input(f"{PREFIX}{logits.name}", DType.FLOAT, logits.shape)
        data.append(target.name)
        target = _given(graph, target, teacher)
    elif teacher is not None:
        MergeTeacher()(graph, Context(graphs={"teacher": with_batch(teacher, batch, options.sample)}))
        target = graph.value(f"{PREFIX}{teacher.outputs[0].name}")
    loss, components = attach_losses(graph, options.losses, Taps(logits, target, label))
    outputs = [loss, *components.values(), *_observe(graph, trained)]
    if label is not None and len(logits.static_shape) == 2:
        outputs.append(_correct(graph, logits, label))
    infer_shapes(graph)
    for spec in trained.batchnorms:
        outputs += [graph.value(f"batch_mean.{spec.mean}"), graph.value(f"batch_var.{spec.mean}")]
    wrt = [graph.value(spec.name) for spec in trained.parameters]
    for value in graph.outputs:
        graph.remove_output(value)
    for value in outputs:
        graph.add_output(value)
    laid = _lay_out(graph, options, wrt)
    if options.gradient == "ort":
        graph, gradients = differentiate_with_ort(graph, loss, wrt)
    else:
        kernels = GradientOptions(capabilities().has_training_kernels, capabilities().lanes)
        gradients = differentiate(graph, loss, wrt, kernels)
    for name, gradient in gradients.items():
        graph.add_output(_named(graph, gradient, f"grad.{name}"))
    ExpandLanes(blocked=capabilities().lanes > 0)(graph)
    ExpandBlocked()(graph)
    ExpandFakeQuant()(graph)
    Pipeline((MergeMovements(), EliminateCommon(), ShapePorts(frozenset(state)), EliminateDead()))(graph)
    verify(graph)  # as a whole: passes have looked at what they edited, where its types were known by then
    fed = {v.name for v in graph.inputs}
    return Step(graph, batch, tuple(n for n in data if n in fed), tuple(n for n in state if n in fed), trained, laid)


def _given(graph: Graph, logits: Value, teacher: Graph) -> Value:
    """The teacher's output from its logits, which are what is fed."""
    softmax = softmax_behind(teacher, teacher.outputs[0])
    if softmax is None:
        return logits
    output = graph.op("Softmax", logits, name=f"{logits.name}/softmax", axis=softmax.axis)
    graph.set_type(output, logits.dtype, logits.shape)
    return output


def _feed_state(graph: Graph, trained: Trained, frozen_batchnorm: bool) -> list[str]:
    """Parameters, scales and (frozen) running statistics become inputs of the same name."""
    names = [spec.name for spec in trained.parameters]
    for node in graph.nodes():
        if is_fake_quant(node):
            names += [graph.operand(node, 1).name, graph.operand(node, 2).name]
        elif node.op == "BatchNormalization" and frozen_batchnorm:
            names += [graph.operand(node, 3).name, graph.operand(node, 4).name]
    names = list(dict.fromkeys(names))
    for name in names:
        value = graph.find(name)
        if value is None:  # another batch size made another constant of it
            raise UnsupportedError(
                f"Parameter '{name}' has the model's batch size in its shape, and cannot be trained with another: "
                "export the model with a free batch axis"
            )
        graph.set_array(value, None)
        graph.add_input(name, value.dtype, value.shape)
    return names


def _observe(graph: Graph, trained: Trained) -> list[Value]:
    """For each observer: float32 [2], the smallest and largest value that its FakeQuants read."""
    watched: dict[str, list[Value]] = {spec.range: [] for spec in trained.observers}
    for node in graph.nodes():
        observed = graph.input(node, 3) if is_fake_quant(node) else None
        if observed is not None and observed.name in watched:
            watched[observed.name].append(graph.operand(node, 0))
    found = []
    for name, values in watched.items():
        lows, highs = [], []
        for value in dict.fromkeys(values):
            base = f"observed/{value.name}"
            producer = graph.producer(value)
            if producer is not None and cuts_at_zero(graph, producer):
                lows.append(graph.add_constant(f"{base}/zero", np.zeros((), np.float32)))
            else:
                lows.append(graph.op("ReduceMin", value, name=f"{base}/min", keepdims=0))
            highs.append(graph.op("ReduceMax", value, name=f"{base}/max", keepdims=0))
        axis = graph.add_constant("observed/axis", np.zeros(1, np.int64))
        ends = []
        for op, parts in (("Min", lows), ("Max", highs)):
            end = parts[0] if len(parts) == 1 else graph.op(op, *parts, name=f"observed/{name}/{op}")
            ends.append(graph.op("Unsqueeze", end, axis, name=f"observed/{name}/{op}_1d"))
        both = graph.op("Concat", *ends, name=f"observed/{name}", axis=0)
        graph.rename(both, f"observed.{name}")
        graph.set_type(both, DType.FLOAT, (2,))
        found.append(both)
    return found


def _correct(graph: Graph, logits: Value, label: Value) -> Value:
    """How many samples have their largest logit at the label: float32 scalar `correct`."""
    best = graph.op("ArgMax", logits, name="correct/argmax", axis=1, keepdims=0)
    hits = graph.op(
        "Cast", graph.op("Equal", best, label, name="correct/hit"), name="correct/float", to=int(DType.FLOAT)
    )
    count = graph.op("ReduceSum", hits, name="correct", keepdims=0)
    graph.set_type(count, DType.FLOAT, ())
    return count


def _lay_out(graph: Graph, options: StepOptions, wrt: Sequence[Value]) -> int:
    """Rewrites what depends on the parameters for the layout; how many nodes that are."""
    if options.layout == "plain" or options.gradient == "ort":
        return 0
    lanes, nodes = capabilities().lanes or WIDTH, _depending_on(graph, wrt)
    if options.layout == "lanes":
        chosen: Pass = ToLanes(_width(graph, nodes, lanes), nodes)
    else:
        chosen = ToBlocked(lanes, nodes)
    return chosen(graph).rewrites


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


def _named(graph: Graph, value: Value, name: str) -> Value:
    """The value under that name; an Identity where the value is an input, a constant or named already."""
    if value.array is not None or graph.is_input(value) or value.name.startswith("grad."):
        copy = graph.op("Identity", value, name=name)
        graph.set_type(copy, value.dtype, value.shape)
        value = copy
    graph.rename(value, graph.fresh_name(name))
    graph.set_role(value, Role.GRADIENT, name.removeprefix("grad."))
    return value
