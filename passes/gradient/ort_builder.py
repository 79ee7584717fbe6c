"""`differentiate_with_ort`: the same gradients by ONNX Runtime's GradientGraphBuilder, as a second opinion.

    loss, wrt  →  a new graph with d loss / d w for every w in wrt

The builder knows fewer ops than `differentiate`, and gives wrong gradients for some forms of those it
knows. So the graph is first rewritten to forms that it gets right — each rewrite keeps the function —
and forms that have none are refused. It needs the training wheel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
import onnx

from onnxslim.errors import GradientError, UnsupportedError
from onnxslim.ir.dialect import FAKE_QUANT, FakeQuant
from onnxslim.ir.graph import DType, Graph, Node, Role, Value
from onnxslim.ir.onnx_io import from_proto, to_bytes
from onnxslim.ir.ops import is_training, window
from onnxslim.ir.quant_math import qrange
from onnxslim.ir.shapes import infer_shapes

__all__ = ["differentiate_with_ort"]

_CONTRIB = "com.microsoft"


def differentiate_with_ort(graph: Graph, loss: Value, wrt: Sequence[Value]) -> tuple[Graph, dict[str, Value]]:
    """The graph with the gradient of its output `loss` to each value of `wrt`, by that value's name.

    `wrt` are graph inputs, shapes static; `graph` itself is used up. A value that the loss does not
    depend on gets zeros. Raises GradientError naming a node whose gradient the builder gets wrong, or
    with the builder's own words; UnsupportedError where the installed runtime has no builder.
    """
    builder_of, quiet = _builder()
    for node in graph.nodes():
        rewrite = _REWRITES.get((node.domain, node.op))
        if rewrite is not None:
            rewrite(graph, node)
    infer_shapes(graph)
    before, wanted = nx.ancestors(graph.view, loss.id), [value.name for value in wrt]
    names = _numbered(graph)
    kept, seed = [v.name for v in graph.outputs], loss.name
    try:
        sought = {value.name for value in wrt if value.id in before}
        builder = builder_of(to_bytes(graph), {seed}, sought, seed, quiet)
        builder.build()
        data = builder.get_model()
    except Exception as error:  # the runtime's own exception types are many, and none of them is public
        raise GradientError(f"ONNX Runtime's gradient builder refused graph '{graph.name}': {error}") from error
    made = onnx.ModelProto.FromString(data)
    made.graph.doc_string = ""
    result = from_proto(made)
    for value in result.outputs:
        if value.name not in kept:
            result.remove_output(value)
    # The builder starts from an initialiser or an input of this name: d loss / d loss.
    one = result.find(f"{seed}_grad")
    if one is not None and result.producer(one) is None and one.array is None:
        if result.is_input(one):
            result.remove_input(one)
        result.set_array(one, np.ones((), np.float32))
    gradients = {}
    for name, value in zip(wanted, wrt):
        found = result.find(f"{value.name}_grad")
        if found is None:
            found = result.add_constant(f"{value.name}_grad", np.zeros(value.static_shape, np.float32))
        result.set_type(found, value.dtype, value.shape)
        result.set_role(found, Role.GRADIENT, name)
        gradients[name] = found
    _named_again(result, names)
    return result, gradients


def _numbered(graph: Graph) -> dict[str, str]:
    """Gives all values names that the builder's, made of theirs, cannot meet; the names of before, by the new ones."""
    prefix = "v"
    while any(value.name.startswith(prefix) for value in graph.values()):
        prefix += "v"
    names = {}
    for value in graph.values():
        names[f"{prefix}{value.id}"] = value.name
        graph.rename(value, f"{prefix}{value.id}")
    return names


def _named_again(graph: Graph, names: Mapping[str, str]) -> None:
    taken = set(names.values())
    for value in graph.values():
        if value.name not in names and value.name in taken:
            graph.rename(value, graph.fresh_name(f"{value.name}_of_builder"))
    for value in graph.values():
        if value.name in names:
            graph.rename(value, names[value.name])


def _builder() -> tuple[Callable[..., Any], object]:
    """The builder, and options for it that keep its log to errors."""
    import onnxruntime
    from onnxruntime.capi import _pybind_state as state

    if not hasattr(state, "GradientGraphBuilder"):
        raise UnsupportedError(
            "`gradient: ort` needs onnxruntime-training-cpu, whose gradient builder this ONNX Runtime does not have: "
            "use `gradient: own`"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return state.GradientGraphBuilder, options


def _fake_quant(graph: Graph, node: Node) -> None:
    """FakeQuant(x, s, z) → com.microsoft.FakeQuant; per channel: FakeQuant(x / s, 1, z)·s.

    The kernel's gradient is zero outside the grid, as ours is. Per-channel zero points must be 0.
    """
    grid = FakeQuant.of(node)
    qmin, qmax = qrange(grid.bits, grid.signed, grid.narrow)
    x, scale, zero_point = (graph.operand(node, slot) for slot in range(3))
    y = graph.result(node)
    name = node.name or y.name
    graph.detach(node)
    if not scale.shape:
        _ort_fake_quant(graph, name, x, scale, zero_point, y, qmin, qmax)
        return
    rank = len(x.static_shape)
    axis = (grid.axis or 0) % rank
    shape = graph.add_constant(f"{name}/axes", np.array([-1 if a == axis else 1 for a in range(rank)], np.int64))
    factor = graph.op("Reshape", scale, shape, name=f"{name}/scale")
    whole = graph.op("Div", x, factor, name=f"{name}/divided")
    one = graph.add_constant(f"{name}/one", np.ones((), np.float32))
    zero = graph.add_constant(f"{name}/zero", np.zeros((), np.float32))
    rounded = graph.add_value(graph.fresh_name(f"{name}/rounded"), x.dtype, x.shape)
    _ort_fake_quant(graph, name, whole, one, zero, rounded, qmin, qmax)
    graph.add_node("Mul", [rounded, factor], [y], name=f"{name}/multiplied")


def _ort_fake_quant(
    graph: Graph, name: str, x: Value, scale: Value, zero_point: Value, y: Value, qmin: int, qmax: int
) -> None:
    mask = graph.add_value(graph.fresh_name(f"{name}/mask"), DType.BOOL, y.shape)
    graph.add_node(
        "FakeQuant",
        [x, scale, zero_point],
        [y, mask],
        {"quant_min": qmin, "quant_max": qmax},
        domain=_CONTRIB,
        name=name,
    )


def _batch_norm(graph: Graph, node: Node) -> None:
    """Training mode → BatchNormInternal, which has the gradient; evaluation mode → x·k + c, because the
    builder would use the batch's statistics there."""
    epsilon = float(node.attr("epsilon", 1e-5))
    x, gamma, beta, mean, var = (graph.operand(node, slot) for slot in range(5))
    y, name = graph.result(node), node.name or graph.result(node).name
    if is_training(graph, node):
        outputs = [graph.result(node, slot) for slot in range(3)]
        momentum = float(node.attr("momentum", 0.9))
        graph.detach(node)
        kept = ("saved_mean", "saved_inverse")
        saved = [graph.add_value(graph.fresh_name(f"{name}/{k}"), x.dtype, mean.shape) for k in kept]
        attributes = {"epsilon": epsilon, "momentum": momentum, "training_mode": 1}
        graph.add_node(
            "BatchNormInternal", [x, gamma, beta, mean, var], [*outputs, *saved], attributes, domain=_CONTRIB, name=name
        )
        return
    graph.detach(node)
    epsilon_value = graph.add_constant(f"{name}/epsilon", np.float32(epsilon))
    deviation = graph.op("Sqrt", graph.op("Add", var, epsilon_value, name=f"{name}/var"), name=f"{name}/deviation")
    k = graph.op("Div", gamma, deviation, name=f"{name}/k")
    c = graph.op("Sub", beta, graph.op("Mul", mean, k, name=f"{name}/moved"), name=f"{name}/c")
    spread = [1, -1, *[1] * (len(x.static_shape) - 2)]
    shape = graph.add_constant(f"{name}/axes", np.array(spread, np.int64))
    k, c = (graph.op("Reshape", v, shape, name=f"{name}/{n}_spread") for v, n in ((k, "k"), (c, "c")))
    graph.add_node("Add", [graph.op("Mul", x, k, name=f"{name}/scaled"), c], [y], name=name)


def _sum(graph: Graph, node: Node) -> None:
    """Sum(a, b, …) → Add(Add(a, b), …): the builder has no Sum."""
    first, *others = [v for v in graph.node_inputs(node) if v is not None]
    y, name = graph.result(node), node.name or graph.result(node).name
    graph.detach(node)
    if not others:
        graph.add_node("Identity", [first], [y], name=name)
        return
    for i, value in enumerate(others[:-1]):
        first = graph.op("Add", first, value, name=f"{name}/{i}")
    graph.add_node("Add", [first, others[-1]], [y], name=name)


def _conv(graph: Graph, node: Node) -> None:
    """auto_pad → pads: the gradients of SAME are wrong."""
    if node.attr("auto_pad", "NOTSET") != "NOTSET":
        pads = window(graph, node).pads
        graph.set_attribute(node, "auto_pad", None)
        graph.set_attribute(node, "pads", list(pads))


def _where(graph: Graph, node: Node) -> None:
    """Branches are expanded to the output's shape: the gradient of one that is broadcast has a wrong shape."""
    shape = graph.result(node).static_shape
    for slot in (1, 2):
        value = graph.operand(node, slot)
        if value.static_shape != shape:
            target = graph.add_constant(f"{node.name}/shape", np.array(shape, np.int64))
            graph.set_input(node, slot, graph.op("Expand", value, target, name=f"{node.name}/expanded"))


def _transpose(graph: Graph, node: Node) -> None:
    """perm is written out."""
    if node.attr("perm") is None:
        graph.set_attribute(node, "perm", list(reversed(range(len(graph.operand(node, 0).static_shape)))))


def _max_pool(graph: Graph, node: Node) -> None:
    """The gradient reads the places of the maxima, and crashes the process where that output is missing."""
    y = graph.result(node)
    outputs = graph.node_outputs(node)
    if len(outputs) < 2 or outputs[1] is None:
        graph.set_output(node, 1, graph.add_value(graph.fresh_name(f"{y.name}/places"), DType.INT64, y.shape))


def _split(graph: Graph, node: Node) -> None:
    if any(v is None or not graph.is_used(v) for v in graph.node_outputs(node)):
        raise GradientError(
            f"{node}: with an output that nothing reads, ONNX Runtime's builder gives a gradient of the wrong "
            "shape; use `gradient: own`"
        )


def _gelu(graph: Graph, node: Node) -> None:
    if node.attr("approximate", "none") in ("tanh", b"tanh"):
        raise GradientError(
            f"{node}: ONNX Runtime's builder takes the exact Gelu's gradient for the tanh form; use `gradient: own`"
        )


_REWRITES: dict[tuple[str, str], Callable[[Graph, Node], None]] = {
    FAKE_QUANT: _fake_quant,
    ("", "BatchNormalization"): _batch_norm,
    ("", "Conv"): _conv,
    ("", "Gelu"): _gelu,
    ("", "MaxPool"): _max_pool,
    ("", "Split"): _split,
    ("", "Sum"): _sum,
    ("", "Transpose"): _transpose,
    ("", "Where"): _where,
}
