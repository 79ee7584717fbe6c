"""Whether the operands of a node fit one another where onnx's inference does not look: channels of weights, biases and
norms. ONNX Runtime refuses what does not; a pass that multiplied them would fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnxslim.graph import Dim, Graph, Node, Shape, Value

__all__ = ["misfit"]


def misfit(graph: Graph, node: Node) -> str | None:
    """What does not fit, in words that follow the node's name; None where nothing is wrong, or known."""
    rule = None if node.domain else _RULES.get(node.op)
    return (
        None if rule is None else rule(graph, node, [None if v is None else v.shape for v in graph.node_inputs(node)])
    )


def _norm(slots: Sequence[int]) -> Callable[[Graph, Node, list[Shape | None]], str | None]:
    """One number a channel, the second axis of the first input."""

    def rule(graph: Graph, node: Node, shapes: list[Shape | None]) -> str | None:
        x = shapes[0]
        if x is None or len(x) < 2 or not node.attr("spatial", 1):
            return None
        for slot in slots:
            why = _expected(graph.input(node, slot), (x[1],), f"one number a channel of {list(x)}")
            if why is not None:
                return why
        return None

    return rule


def _convolution(graph: Graph, node: Node, shapes: list[Shape | None]) -> str | None:
    x, w, group = shapes[0], shapes[1], node.attr("group", 1)
    if x is None or w is None:
        return None
    if len(x) < 3 or len(w) != len(x):
        return f"expected a weight of {max(3, len(x))} axes for an input {list(x)}, got {list(w)}"
    if not isinstance(group, int) or group < 1:
        return f"expected a group of at least 1, got {group}"
    transposed = node.op == "ConvTranspose"
    inputs, filters = (w[0], w[1]) if transposed else (w[1], w[0])
    wanted = _times(inputs, 1 if transposed else group)
    if not _same(x[1], wanted):
        return f"expected {wanted} channels of its input, as its weight {list(w)} and group {group} have, got {x[1]}"
    divided = inputs if transposed else filters
    if isinstance(divided, int) and divided % group:
        return f"expected filters that its group divides, got a weight {list(w)} and group {group}"
    outputs = _times(filters, group if transposed else 1)
    return _expected(graph.input(node, 2), (outputs,), f"one number for each of {outputs} output channels")


def _times(dim: Dim, factor: int) -> Dim:
    return dim * factor if isinstance(dim, int) else None


def _same(a: Dim, b: Dim) -> bool:
    return not isinstance(a, int) or not isinstance(b, int) or a == b


def _expected(value: Value | None, shape: tuple[Dim, ...], what: str) -> str | None:
    got = None if value is None else value.shape
    if value is None or got is None or (len(got) == len(shape) and all(map(_same, got, shape))):
        return None
    return f"expected '{value.name}' to have {what}, got the shape {list(got)}"


_RULES: Mapping[str, Callable[[Graph, Node, list[Shape | None]], str | None]] = {
    "BatchNormalization": _norm((1, 2, 3, 4)),
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "InstanceNormalization": _norm((1, 2)),
}
