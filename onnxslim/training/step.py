"""`build_step`: the graph that one worker runs each step — forward, losses, gradients, what observers see.

    student (+ teacher) + losses  →  loss, its terms, gradients, statistics of the batch

What is fed and fetched is told by ports (`training/ports.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from onnxslim.analysis.batch import with_batch
from onnxslim.ir.graph import Array, Graph, Value
from onnxslim.ir.rewrite import Checker, Pass, Pipeline
from onnxslim.ir.verify import verify
from onnxslim.runtime.capabilities import capabilities
from onnxslim.training.parameters import updates_of
from onnxslim.training.ports import FED, STATE, Port
from onnxslim.training.scales import FOLLOWED, Scales
from onnxslim.training.step_passes import (
    LAYOUTS,
    WIDTH,
    AttachLosses,
    CountCorrect,
    Differentiate,
    FeedData,
    FeedState,
    FeedTeacher,
    FetchStatistics,
    FetchTaps,
    LayOut,
    Layout,
    Observe,
    SetSizes,
    ShapeState,
    StepContext,
)
from onnxslim.training.update import Rule
from passes.distill import Loss, MergeTeacher
from passes.gradient.train_batchnorm import TrainBatchnorm
from passes.layout import ExpandBlocked, ExpandLanes
from passes.quantize import ExpandFakeQuant
from passes.simplify import EliminateCommon, EliminateDead, InferShapes, MergeMovements

__all__ = ["LAYOUTS", "WIDTH", "Layout", "Step", "StepOptions", "build_step", "passes_of"]


@dataclass(frozen=True)
class StepOptions:
    """teacher_as_input: the teacher's values are fed (from a cache) instead of computed in the graph.
    frozen_batchnorm: batch norm uses its running statistics. labelled: whether labels are fed.
    layout: plain, channels in the vector lanes where that helps (blocked), or images (lanes).
    sample: the shape of one sample, for the axes that student and teacher leave free. watch: values of the student's
    that are fetched, by name. seed: what a loss's own parameters begin with is drawn for it. scales: how the grids of
    fake-quant nodes move."""

    losses: tuple[Loss, ...]
    teacher_as_input: bool = False
    frozen_batchnorm: bool = False
    labelled: bool = True
    gradient: Literal["own", "ort"] = "own"
    layout: Layout = "plain"
    sample: tuple[int, ...] | None = None
    watch: tuple[str, ...] = ()
    seed: int = 0
    scales: Scales = FOLLOWED


@dataclass(frozen=True)
class Step:
    """A step graph for `batch` samples, ready for a session.

    ports: what its inputs and outputs are called. updates: what its results are for. initial: what a loss's own
    parameters begin with. rewritten: how many nodes the layout changed.
    """

    graph: Graph
    batch: int
    ports: Mapping[Port, str]
    updates: tuple[Rule, ...]
    initial: Mapping[Port, Array] = field(default_factory=dict)
    rewritten: int = 0

    @property
    def data(self) -> tuple[Port, ...]:
        """Inputs that are fed anew each step: the model's, labels, the teacher's values."""
        return tuple(port for port in self.ports if port.kind in FED)

    @property
    def state(self) -> tuple[Port, ...]:
        """Inputs that are read from the training state."""
        return tuple(port for port in self.ports if port.kind in STATE)

    @property
    def outputs(self) -> dict[Port, Value]:
        """What comes out."""
        return {p: self.graph.value(name) for p, name in self.ports.items() if p.kind not in (*FED, *STATE)}

    def value(self, port: Port) -> Value:
        return self.graph.value(self.ports[port])

    def fed_from(self, state: Mapping[Port, Array]) -> dict[str, Array]:
        """What the graph reads of the training state: the same memory, in the shapes that it computes with."""
        return {self.ports[port]: state[port].reshape(self.value(port).static_shape) for port in self.state}

    def fed(self, feeds: Mapping[Port, Array], state: Mapping[Port, Array]) -> dict[str, Array]:
        """Everything that a session of the graph is fed."""
        return {**{self.ports[port]: feeds[port] for port in self.data}, **self.fed_from(state)}

    def found(self, results: Mapping[str, Array]) -> dict[Port, Array]:
        """What a session gave, by what it is."""
        return {port: results[name] for port, name in self.ports.items() if name in results}


def passes_of(batch: int, options: StepOptions, teachers: Sequence[str] = ()) -> tuple[Pass, ...]:
    """What makes a step of a model, in order."""
    own = options.gradient == "own"
    losses, sample = options.losses, options.sample
    return (
        SetSizes(batch, sample),
        InferShapes(),
        FeedData(batch, options.labelled),
        *(() if options.frozen_batchnorm else (TrainBatchnorm(),)),
        FeedState(options.frozen_batchnorm),
        *options.scales.passes(),
        *(FeedTeacher(losses, batch, sample, name) if options.teacher_as_input else MergeTeacher(name)
          for name in teachers),
        AttachLosses(losses),
        Observe(),
        CountCorrect(),
        FetchStatistics(),
        FetchTaps(options.watch),
        InferShapes(),
        LayOut(options.layout if own else "plain"),
        Differentiate(options.gradient),
        InferShapes(),
        ExpandLanes(blocked=capabilities().lanes > 0),
        ExpandBlocked(),
        ExpandFakeQuant(),
        MergeMovements(),
        EliminateCommon(),
        ShapeState(),
        EliminateDead(),
    )  # fmt: skip


def build_step(
    student: Graph,
    batch: int,
    options: StepOptions,
    teacher: Graph | Mapping[str, Graph] | None = None,
    checker: Checker | None = None,
) -> Step:
    """The step graph of a student in the working opset; `student` is not changed. teacher: one, or several by what
    losses call them. checker: looks at the graph before and after each pass, and names what changed the numbers.

    Raises GradientError naming the node where something on the way has no gradient.
    """
    graph, teachers = student.copy(), {"teacher": teacher} if isinstance(teacher, Graph) else dict(teacher or {})
    if not options.teacher_as_input:
        teachers = {name: with_batch(one, batch, options.sample) for name, one in teachers.items()}
    step = StepContext(graphs=teachers, seed=options.seed, checker=checker)
    step.updates.extend(updates_of(graph, frozen_batchnorm=options.frozen_batchnorm, scales=options.scales))
    step.taps.update({("student", value.name): value.name for value in graph.values()})
    step.taps["student", ""] = graph.outputs[0].name
    done = Pipeline(passes_of(batch, options, list(teachers)))(graph, step)
    verify(graph)  # as a whole: passes have looked at what they edited, where its types were known by then
    there = {value.name for value in (*graph.inputs, *graph.outputs)}
    ports = {port: name for port, name in step.ports.items() if name in there}
    return Step(graph, batch, ports, tuple(step.updates), step.initial, done.by_pass.get(LayOut.name, 0))
