"""What a model costs: multiply-accumulates for one sample, parameters, bytes of its constants.

MACs are those of contractions (convolutions, matrix products, recurrent cells); a bias, batch norm,
pool or elementwise op counts as none, as is usual. Of an If the dearer branch counts, of a Loop or Scan its body as
often as it runs; weights in bodies count like others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from onnx import numpy_helper

from onnxslim.analysis.batch import with_batch
from onnxslim.analysis.bodies import Body, open_bodies
from onnxslim.analysis.scope import label
from onnxslim.analysis.sizes import with_sizes
from onnxslim.brief import Brief
from onnxslim.errors import ModelError, UnsupportedError
from onnxslim.ir.dialect import is_fake_quant
from onnxslim.ir.graph import CAPTURE, DType, Graph, Node, Role, Value
from onnxslim.ir.op_facts import FACTS, facts_of
from onnxslim.ir.ops import fused_order
from onnxslim.ir.shapes import infer_shapes

__all__ = [
    "MACS",
    "Cost",
    "NodeCost",
    "cost",
    "element_bits",
    "is_counted",
    "node_macs",
    "one_sample",
    "parameters",
    "stored_bytes",
    "stored_in_bodies",
]


@dataclass(frozen=True)
class NodeCost:
    """One node: `name` (of its first output where it has none), op, MACs for one sample (None where they depend on
    sizes that are not known), parameters it reads first."""

    name: str
    op: str
    macs: int | None
    params: int


@dataclass(frozen=True, repr=False)
class Cost(Brief):
    """macs: multiply-accumulates for one sample; None where they depend on sizes that are not known. params: elements
    of weights. bytes: of all constants, as stored. unknown: nodes that may multiply, whose cost is not known: those
    that no rule counts are not in `macs`, those of unknown sizes make it None."""

    macs: int | None
    params: int
    bytes: int
    by_node: tuple[NodeCost, ...]
    unknown: tuple[str, ...] = ()


def cost(graph: Graph, sizes: Mapping[str, int] | None = None) -> Cost:
    """Cost of a graph with a symbolic or static batch axis; the graph is not changed.

    sizes: of other free axes of its inputs, by symbol or as `input[axis]`.
    """
    sample, batch = one_sample(graph, sizes)
    weights = {value.id for value in parameters(sample)}
    counted: set[int] = set()
    rows: list[NodeCost] = []
    unknown: list[str] = []
    for node in sample.nodes():
        name = label(sample, node)
        macs = node_macs(sample, node)
        if macs is None:
            unknown.append(name)
        params = 0
        for value in sample.reads(node):
            if value.id in weights and value.id not in counted:
                counted.add(value.id)
                params += math.prod(value.static_shape)
        params += stored_in_bodies(sample, node).params
        counts = macs is None and is_counted(node)
        rows.append(NodeCost(name, node.op, None if counts else (macs or 0) // batch, params))
    total = None if any(r.macs is None for r in rows) else sum(r.macs or 0 for r in rows)
    size = stored_bytes(sample) + sum(stored_in_bodies(sample, node).bytes for node in sample.nodes())
    return Cost(total, sum(r.params for r in rows), size, tuple(rows), tuple(unknown))


def is_counted(node: Node) -> bool:
    """Whether there is a rule for the op's MACs, so that only sizes can make them unknown."""
    return (node.domain, node.op) in (*MACS, ("", "If"))


def one_sample(graph: Graph, sizes: Mapping[str, int] | None = None) -> tuple[Graph, int]:
    """A copy fit for counting, and the number of samples it takes at once: Constant nodes are
    initialisers, shapes are inferred, other free axes have the given `sizes`, and the batch is 1 where the model
    leaves it open."""
    twin = with_sizes(graph, sizes) if sizes else graph.copy()
    _store_constants(twin)
    first = [v.shape[0] for v in twin.inputs if v.array is None and v.role is Role.ACTIVATION and v.shape]
    static = [d for d in first if isinstance(d, int)]
    if not static:
        try:
            return with_batch(twin, 1), 1
        except UnsupportedError:
            static = [1]  # its own batch is inside; the shapes it declares are the best there is
    infer_shapes(twin)
    return twin, max(static[0], 1)


def _store_constants(graph: Graph) -> None:
    """Constant nodes as initialisers."""
    for node in graph.nodes():
        tensor = node.attributes.get("value")
        if node.op == "Constant" and not node.domain and tensor is not None:
            value = graph.result(node)
            graph.detach(node)
            graph.set_array(value, numpy_helper.to_array(tensor.t))


def parameters(graph: Graph) -> list[Value]:
    """The constants that are weights: float tensors, and integers that are dequantised, but not scales,
    zero points, running statistics, shapes and limits. What a body captures is what it is for in there. Those that a
    body has of its own: `stored_in_bodies`."""
    captured: set[int] = set()
    for node in graph.nodes():
        for body in open_bodies(graph, node):
            inner = {value.id for value in parameters(body.graph)}
            captured.update(outer.id for id, (outer, _) in body.outer.items() if id in inner)
    return [v for v in graph.initializers() if v.id in captured or _is_parameter(graph, v)]


class Stored(NamedTuple):
    """params: elements of weights. bytes: of all constants."""

    params: int
    bytes: int


def stored_in_bodies(graph: Graph, node: Node) -> Stored:
    """What the bodies of a node (If, Loop, Scan) have of their own, and bodies within them."""
    params = size = 0
    for body in open_bodies(graph, node):
        _store_constants(body.graph)
        weights = {value.id for value in parameters(body.graph)}
        for value in body.graph.initializers():
            if value.id not in body.outer:
                params += math.prod(value.static_shape) if value.id in weights else 0
                size += _bytes(value)
        for inner in body.graph.nodes():
            within = stored_in_bodies(body.graph, inner)
            params, size = params + within.params, size + within.bytes
    return Stored(params, size)


def _is_parameter(graph: Graph, value: Value) -> bool:
    if value.role is Role.PARAMETER:
        return True
    if value.role in (Role.STATISTIC, Role.SCALE, Role.MOMENT) or value.shape == ():
        return False
    for node, slot in graph.uses(value):
        if slot >= CAPTURE:
            continue  # which its body says
        if node.op == "DequantizeLinear":
            if slot == 0:
                return True
        elif value.dtype.is_float and slot not in (*facts_of(node).statistics, *facts_of(node).settings):
            return True
    return False


def stored_bytes(graph: Graph) -> int:
    """Bytes of all initialisers as a file stores them; sub-byte types are packed."""
    return sum(_bytes(v) for v in graph.initializers())


def _bytes(value: Value) -> int:
    assert value.array is not None
    if value.dtype is DType.STRING:
        return sum(len(s) if isinstance(s, bytes) else len(str(s).encode()) for s in value.array.ravel().tolist())
    return (value.array.size * element_bits(value) + 7) // 8


def element_bits(value: Value) -> int:
    """Bits of an element of a constant as a file stores it; sub-byte types are packed."""
    assert value.array is not None
    return _PACKED.get(value.dtype, 8 * value.array.itemsize)


_PACKED: Mapping[DType, int] = {
    DType.FLOAT4E2M1: 4,
    DType.INT2: 2,
    DType.INT4: 4,
    DType.UINT2: 2,
    DType.UINT4: 4,
}


def node_macs(graph: Graph, node: Node) -> int | None:
    """MACs for all samples of the graph's batch; None where they cannot be known."""
    rule = MACS.get((node.domain, node.op)) or (None if node.domain else _BODIES.get(node.op))
    if rule is None:
        facts = facts_of(node)
        known = not node.domain or facts.keeps_shape or facts.elementwise is not None or is_fake_quant(node)
        return 0 if known and node.op not in _UNKNOWN else None
    try:
        return rule(graph, node)
    except (ModelError, IndexError, ValueError):  # an axis is dynamic, or an operand has other axes than the op takes
        return None


def _convolution(graph: Graph, node: Node) -> int:
    """Each output element is one product with a filter [I/group, *kernel]; each input element of a transposed one is
    multiplied with a filter [O/group, *kernel] (what `pads` crop is computed too)."""
    facts = facts_of(node)
    image = graph.result(node) if facts.outs == 0 else graph.operand(node, 0)
    return math.prod(image.static_shape) * math.prod(graph.operand(node, facts.weights[0]).static_shape[1:])


def _gemm(graph: Graph, node: Node) -> int:
    depth = graph.operand(node, 0).static_shape[0 if node.attr("transA", 0) else 1]
    return math.prod(graph.result(node).static_shape) * depth


def _product(graph: Graph, node: Node) -> int:
    sizes = graph.operand(node, 0).static_shape
    return math.prod(graph.result(node).static_shape) * sizes[fused_order(node, 0, len(sizes))[-1]]


def _recurrent(graph: Graph, node: Node) -> int:
    """Per time step and sample, one product with W [directions, gates·hidden, input] and R."""
    steps, batch = graph.operand(node, 0).static_shape[:2]
    return steps * batch * sum(math.prod(graph.operand(node, slot).static_shape) for slot in (1, 2))


def _attention(graph: Graph, node: Node) -> int:
    """One product with the merged weights [input, Q + K + V], Q·Kᵀ, and the scores times V; with what is remembered."""
    batch, length, depth = graph.operand(node, 0).static_shape
    columns, value = graph.operand(node, 1).static_shape[1], graph.result(node).static_shape[2]
    past = graph.input(node, 4)
    seen = length + (0 if past is None else past.static_shape[3])
    return batch * length * (depth * columns + seen * ((columns - value) // 2 + value))


_UNKNOWN = ("Attention", "DeformConv", "Einsum")
MACS: Mapping[tuple[str, str], Callable[[Graph, Node], int]] = {
    **{key: _convolution for key, facts in FACTS.items() if facts.window and facts.weights and key[1] not in _UNKNOWN},
    ("", "GRU"): _recurrent,
    ("", "Gemm"): _gemm,
    ("", "LSTM"): _recurrent,
    ("", "MatMul"): _product,
    ("", "MatMulInteger"): _product,
    ("", "QLinearMatMul"): _product,
    ("", "RNN"): _recurrent,
    ("com.microsoft", "Attention"): _attention,
    ("com.microsoft", "FusedGemm"): _gemm,
    ("com.microsoft", "FusedMatMul"): _product,
}
"""By domain and op."""


def _branches(graph: Graph, node: Node) -> int:
    return max(_within(body) for body in open_bodies(graph, node))


def _iterations(graph: Graph, node: Node) -> int:
    """Where the number of iterations is a constant, and the condition is not computed."""
    (body,) = open_bodies(graph, node)
    count, on = graph.constant_of(graph.input(node, 0)), graph.input(node, 1)
    start = graph.constant_of(on)
    handed_on = body.graph.producer(body.graph.outputs[0])
    goes_on = handed_on is not None and handed_on.op == "Identity" and handed_on.arity[0] == 1
    own = goes_on and handed_on is not None and body.graph.operand(handed_on, 0) in body.graph.inputs[1:2]
    if count is None or not own or (on is not None and (start is None or not start.any())):
        raise ModelError(f"{node} has no constant number of iterations")
    return int(count.reshape(-1)[0]) * _within(body)


def _steps(graph: Graph, node: Node) -> int:
    (body,) = open_bodies(graph, node)
    count = int(node.attr("num_scan_inputs", 0))
    axis = (node.attr("scan_input_axes") or [0])[0]
    if 0 < graph.opset < 9:
        raise ModelError(f"{node} has a batch axis")
    steps: int = graph.operand(node, node.arity[0] - count).static_shape[axis]
    return steps * _within(body)


def _within(body: Body) -> int:
    infer_shapes(body.graph)
    counts = [node_macs(body.graph, node) for node in body.graph.nodes()]
    if None in counts:
        raise ModelError(f"the cost of a body of {body.node} is not known")
    return sum(count or 0 for count in counts)


_BODIES: Mapping[str, Callable[[Graph, Node], int]] = {"If": _branches, "Loop": _iterations, "Scan": _steps}
