"""Reverse-mode differentiation of a graph: one rule per op, gradients as ONNX ops in the same graph.

    loss, wrt  →  d loss / d w for every w in wrt

Only nodes between `wrt` and the loss are visited, so no dead gradient is built; what several
rules need of the forward graph is read, not computed again. A value that is read in several places
gets the sum of their gradients, in the order in which the nodes stand: the result is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np

from onnxslim.collector import paused
from onnxslim.errors import GradientError
from onnxslim.ir.graph import DType, Graph, Node, Role, Value
from onnxslim.ir.onnx_io.bodies import bodies_of
from onnxslim.ir.shapes import infer_shapes
from passes.gradient.decompose import DECOMPOSITIONS
from passes.gradient.rules import CONSTANT_INPUTS, RULES
from passes.gradient.tape import GradientOptions, Tape

__all__ = ["differentiable_ops", "differentiate", "refusal"]

_OLDEST_OPSET = 13


def differentiable_ops() -> list[tuple[str, str]]:
    """(domain, op) of every op with a rule or a decomposition, sorted."""
    return sorted({*RULES, *DECOMPOSITIONS})


def refusal(node: Node) -> str | None:
    """Why a node cannot be differentiated; None where it can."""
    if _has_rule(node) or (node.domain, node.op) in DECOMPOSITIONS:
        return None
    if any(True for _ in bodies_of(node.attributes.values())):
        return f"no gradient rule for {node.op}, whose bodies are not differentiated"
    return f"no gradient rule for {node.domain + '.' if node.domain else ''}{node.op}"


def _has_rule(node: Node) -> bool:
    return (node.domain, node.op) in RULES and not (node.op == "Pad" and node.attr("mode", "constant") != "constant")


@paused()
def differentiate(
    graph: Graph, loss: Value, wrt: Sequence[Value], options: GradientOptions | None = None
) -> dict[str, Value]:
    """Adds the gradient of a scalar `loss` to the graph, in place; returns it by name of `wrt`.

    Shapes must be static (`with_batch`), the opset 13 or later. A value of `wrt` that the loss does not
    depend on gets zeros.
    Raises GradientError naming the node that stands in the way and has no rule.
    """
    options = options or GradientOptions()
    written = _write_out(graph, loss, wrt, options)
    if graph.opset < _OLDEST_OPSET:
        raise GradientError(
            f"Graph '{graph.name}' has opset {graph.opset}; gradients are written in {_OLDEST_OPSET} and later, "
            "where Softmax means one axis: convert it first (ConvertOpset)"
        )
    if written:
        infer_shapes(graph)
    reached = _between(graph, loss, wrt)
    for node in graph.nodes():  # without a shape from these, rules of nodes behind them cannot even be asked
        made = [v for v in graph.node_outputs(node) if v is not None and v.id in reached and v.shape is None]
        if node.id in reached and made and refusal(node) is not None:
            raise _in_the_way(node, loss)
    gradients: dict[int, list[Value]] = {
        loss.id: [graph.add_constant("grad/one", np.ones(loss.static_shape, np.float32))]
    }
    for node in reversed(graph.nodes()):
        if node.id not in reached:
            continue
        dys = [_total(graph, v, gradients) if v is not None else None for v in graph.node_outputs(node)]
        if all(dy is None for dy in dys):
            continue
        rule = RULES.get((node.domain, node.op))
        if rule is None:
            raise _in_the_way(node, loss)
        inputs = graph.node_inputs(node)
        wanted = [v is not None and v.id in reached for v in inputs]
        found = rule(Tape(graph, node, dys, wanted, options))
        for value, gradient in _given(node, inputs, wanted, found):
            if gradient.shape is None:  # rules further back read the shape from the gradient
                graph.set_type(gradient, value.dtype, value.shape)
            gradients.setdefault(value.id, []).append(gradient)
    return {value.name: _result(graph, value, gradients) for value in wrt}


def _given(
    node: Node, inputs: Sequence[Value | None], wanted: Sequence[bool], found: Sequence[Value | None]
) -> list[tuple[Value, Value]]:
    """The inputs that a gradient is wanted of, with what the node's rule gave for them.

    Raises GradientError where it gave none for an input that it does not declare constant: a missing gradient would
    be a zero that nobody sees.
    """
    constant = CONSTANT_INPUTS.get((node.domain, node.op), frozenset())
    pairs = []
    for slot, (value, wants) in enumerate(zip(inputs, wanted)):
        gradient = found[slot] if slot < len(found) else None
        if value is None or not wants:
            continue
        if gradient is not None:
            pairs.append((value, gradient))
        elif slot not in constant:
            raise GradientError(
                f"{node}: its input {slot}, '{value.name}', is trained or depends on what is, and the gradient rule of "
                f"{node.op} has none for it: make it a constant, or leave what it depends on untrained"
            )
    return pairs


def _in_the_way(node: Node, loss: Value) -> GradientError:
    return GradientError(
        f"{node} stands between the loss '{loss.name}' and what is trained, but there is {refusal(node)}"
    )


def _write_out(graph: Graph, loss: Value, wrt: Sequence[Value], options: GradientOptions) -> bool:
    """Nodes on the way that have no rule but a decomposition become what they stand for; values keep their names."""
    reached, found = _between(graph, loss, wrt), False
    for node in graph.nodes():
        rule = DECOMPOSITIONS.get((node.domain, node.op))
        if node.id not in reached or rule is None or _has_rule(node):
            continue
        outputs = graph.node_outputs(node)
        tape = Tape(graph, node, [None] * len(outputs), [], options)
        made = [*rule(tape), *[None] * len(outputs)]
        for old, new in zip(outputs, made):
            if old is not None and new is None and graph.is_used(old):
                raise GradientError(f"{node}: its output '{old.name}' is read, and has no gradient rule")
        graph.detach(node)
        for old, new in zip(outputs, made):
            if old is None:
                continue
            if new is None:
                graph.remove_value(old)
            else:
                graph.add_node("Identity", [new], [old], name=f"{old.name}/written_out")
        if any(value is not None and value.shape is None for value in outputs):
            infer_shapes(graph)  # of an op that ONNX does not know: what follows must know its shape
        found = True
    return found


def _between(graph: Graph, loss: Value, wrt: Sequence[Value]) -> set[int]:
    """Ids of the nodes and values on a way from `wrt` to the loss."""
    net = graph.view
    before = nx.ancestors(net, loss.id) | {loss.id}
    after: set[int] = set()
    frontier = [v.id for v in wrt if v.id in before]
    while frontier:
        id = frontier.pop()
        if id not in after:
            after.add(id)
            frontier.extend(s for s in net.successors(id) if s in before and not _stops(graph, id, s))
    return after


def _stops(graph: Graph, source: int, target: int) -> bool:
    """Integers and booleans carry no gradient."""
    item = graph.item(target)
    return isinstance(item, Value) and item.dtype is not DType.UNDEFINED and not item.dtype.is_float


def _total(graph: Graph, value: Value, gradients: dict[int, list[Value]]) -> Value | None:
    parts = gradients.get(value.id)
    if not parts:
        return None
    if len(parts) > 1:
        total = graph.op("Sum" if len(parts) > 2 else "Add", *parts, name=f"grad/{value.name}/total")
        graph.set_type(total, value.dtype, value.shape)
        gradients[value.id] = [total]
    return gradients[value.id][0]


def _result(graph: Graph, value: Value, gradients: dict[int, list[Value]]) -> Value:
    total = _total(graph, value, gradients)
    if total is None:
        total = graph.add_constant(f"grad/{value.name}/zero", np.zeros(value.static_shape, np.float32))
    graph.set_type(total, value.dtype, value.shape)
    graph.set_role(total, Role.GRADIENT, value.name)
    return total
