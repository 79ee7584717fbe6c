"""Where a model's logits are: what its last softmax reads, which losses are defined on."""

from __future__ import annotations

from dataclasses import dataclass

from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Graph, Node, Value
from onnxslim.ir.ops import axes_of, axis_of

__all__ = ["Softmax", "logits_of", "require_logits", "softmax_behind", "with_logits"]

_MOVING = ("Cast", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_IDLE = ("Dropout", "FakeQuant", "Identity")
_ONE_BY_ONE = ("Sigmoid", "HardSigmoid")


@dataclass(frozen=True)
class Softmax:
    """output = moved(softmax(logits)): the last softmax of a model, and the ops behind it that only move numbers.

    node: the one whose result the softmax's is, written out or not. axis: of the output, along which it sums to one.
    behind: in order. graph: what all of them are of.
    """

    graph: Graph
    output: Value
    node: Node
    logits: Value
    axis: int
    behind: tuple[Node, ...]

    def moved(self) -> Value:
        """The logits, in the shape of the output; what is needed for it is added to the graph."""
        value = self.logits
        for node in self.behind:
            others = [self.graph.input(node, slot) for slot in range(1, node.arity[0])]
            name = f"{self.graph.result(node).name}/logits"
            value = self.graph.op(node.op, value, *others, name=name, **node.attributes)
        if self.behind:
            self.graph.set_type(value, self.output.dtype, self.output.shape)
        return value


def softmax_behind(graph: Graph, output: Value) -> Softmax | None:
    """The softmax that an output comes from, through ops that move, cast or quantise; None where there is none.

    A softmax may be written out: Exp(x) / ReduceSum(Exp(x)), with the maximum taken off or not, Exp(LogSoftmax(x)),
    Exp(x − ReduceLogSumExp(x)). One over a part of what becomes a row of classes is none: `require_logits` names it.
    """
    node, behind = _through(graph, output)
    found = None if node is None else _softmax(graph, node)
    if node is None or found is None:
        return None
    logits, axis = found
    if any(moving.op != "Cast" for moving in behind):
        last = _axis_in_output(graph, graph.result(node), axis, output)
        if last is None:
            return None
        axis = last
    return Softmax(graph, output, node, logits, axis, behind)


def logits_of(graph: Graph, output: Value) -> Value:
    """What goes into the output's softmax, in the output's shape; the output itself where there is no softmax.

    A LogSoftmax's results are logits as they are: it changes neither a softmax nor a LogSoftmax of them.
    """
    softmax = softmax_behind(graph, output)
    return output if softmax is None else softmax.moved()


def require_logits(graph: Graph, output: Value, loss: str) -> Value:
    """`logits_of`, for a loss over classes that exclude each other.

    Raises UnsupportedError where the output gives a probability of its own to every class, or to groups of them.
    """
    node, _ = _through(graph, output)
    if node is not None and node.op in _ONE_BY_ONE and not node.domain:
        raise UnsupportedError(
            f"The loss '{loss}' is over classes of which one is right, but the output '{output.name}' is a {node.op}, "
            "which gives every class a probability of its own: train with mean_square (against the teacher) or an "
            "ONNX loss, or export the model without it"
        )
    if node is not None and softmax_behind(graph, output) is None and _softmax(graph, node) is not None:
        raise UnsupportedError(
            f"The loss '{loss}' is over one softmax of all classes, but {node} behind the output '{output.name}' is "
            "over a part of them: train with mean_square (against the teacher) or an ONNX loss"
        )
    return logits_of(graph, output)


def with_logits(graph: Graph) -> Graph:
    """The model with logits for its first output, under the same name; the graph itself where it ends in no softmax."""
    twin = graph.copy()
    output, others = twin.outputs[0], twin.outputs[1:]
    logits = logits_of(twin, output)
    if logits is output:
        return graph
    for value in (output, *others):
        twin.remove_output(value)
    name = output.name
    twin.rename(output, twin.fresh_name(f"{name}/probabilities"))
    result = twin.op("Identity", logits, name=f"{name}/logits")
    twin.rename(result, name)
    twin.set_type(result, output.dtype, output.shape)
    for value in (result, *others):
        twin.add_output(value)
    return twin


def _axis_in_output(graph: Graph, made: Value, axis: int, output: Value) -> int | None:
    """Which axis of the output is that of what was moved: the classes of [batch, classes] where there are no other
    numbers in a sample; None where it is another's part, or cannot be told."""
    if made.shape is None or output.shape is None or len(output.shape) != 2:
        return None
    rest = [size for place, size in enumerate(made.shape) if place not in (0, axis)]
    return 1 if axis and made.shape[axis] == output.shape[1] and all(size == 1 for size in rest) else None


def _through(graph: Graph, output: Value) -> tuple[Node | None, tuple[Node, ...]]:
    """The node that computes an output's numbers, and those behind it that move them, in order."""
    behind: list[Node] = []
    node = graph.producer(output)
    while node is not None and (node.op in _IDLE or (node.op in _MOVING and not node.domain)):
        if node.op in _MOVING:
            behind.insert(0, node)
        node = graph.producer(graph.operand(node, 0))
    return node, tuple(behind)


def _softmax(graph: Graph, node: Node) -> tuple[Value, int] | None:
    """What a softmax reads, and its axis, where the node's result is one's."""
    made = graph.result(node)
    rank = None if made.shape is None else len(made.shape)
    if node.domain or rank is None:
        return None
    if node.op == "Softmax":
        return graph.operand(node, 0), axis_of(node, rank, -1)
    if node.op == "Exp":
        return _log_softmax(graph, graph.operand(node, 0), rank)
    if node.op not in ("Div", "Mul"):
        return None
    for top, bottom in ((0, 1), (1, 0)) if node.op == "Mul" else ((0, 1),):
        exponential, total = graph.producer(graph.operand(node, top)), graph.producer(graph.operand(node, bottom))
        if node.op == "Mul" and total is not None:
            total = graph.producer(graph.operand(total, 0)) if total.op == "Reciprocal" else None
        if exponential is None or exponential.op != "Exp" or total is None:
            continue
        if total.op == "ReduceSum" and graph.operand(total, 0) is graph.result(exponential):
            axis = _reduced(graph, total, rank)
            if axis is not None:
                return _without(graph, graph.operand(exponential, 0), "ReduceMax", axis, rank), axis
    return None


def _log_softmax(graph: Graph, value: Value, rank: int) -> tuple[Value, int] | None:
    """What Exp(value) is the softmax of."""
    node = graph.producer(value)
    if node is None:
        return None
    if node.op == "LogSoftmax":
        return graph.operand(node, 0), axis_of(node, rank, -1)
    below = graph.producer(graph.operand(node, 1)) if node.op == "Sub" else None
    if below is not None and below.op == "ReduceLogSumExp" and graph.operand(below, 0) is graph.operand(node, 0):
        axis = _reduced(graph, below, rank)
        return None if axis is None else (graph.operand(node, 0), axis)
    return None


def _without(graph: Graph, value: Value, op: str, axis: int, rank: int) -> Value:
    """x, where the value is x − op(x) along that axis; else the value."""
    node = graph.producer(value)
    below = graph.producer(graph.operand(node, 1)) if node is not None and node.op == "Sub" else None
    if node is not None and below is not None and below.op == op and _reduced(graph, below, rank) == axis:
        return graph.operand(node, 0)
    return value


def _reduced(graph: Graph, node: Node, rank: int) -> int | None:
    """The one axis that a reduction is over, kept as an axis of size 1."""
    axes = axes_of(graph, node, rank)
    return axes[0] if axes is not None and len(axes) == 1 and node.attr("keepdims", 1) else None
