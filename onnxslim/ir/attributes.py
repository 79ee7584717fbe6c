"""What numbers an op's attributes may hold.

ONNX writes most of these bounds in prose only, and its checker does not look at them; nor does ONNX Runtime at all of
them: a negative pad or a stride of 0 ends its process. `attribute_fault` knows them, from one table by attribute (they
mean the same in every op) and one of what an op says otherwise; windows and axes are measured against shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import onnx

from onnxslim.ir.dialect import DIALECT, OwnOp
from onnxslim.ir.graph import Graph, Node, Shape
from onnxslim.ir.onnx_io.bodies import bodies_of
from onnxslim.ir.op_facts import FACTS, OpFacts, channel_counts

__all__ = ["attribute_fault", "nodes_faults"]

_INT, _INTS, _FLOAT = onnx.AttributeProto.INT, onnx.AttributeProto.INTS, onnx.AttributeProto.FLOAT
_INTEGER = (1 << 31) - 1
"""The most that a size, a stride or a count may be: kernels multiply them in 64 bits."""
_POSITIVE = (1, _INTEGER)
_NOT_NEGATIVE = (0, _INTEGER)
_SWITCH = (0, 1)

Bounds: TypeAlias = tuple[float, float]

_BOUNDS: Mapping[str, Bounds] = {
    "antialias": _SWITCH,
    "align_corners": _SWITCH,
    "batch_dims": _NOT_NEGATIVE,
    "bits": (1, 8),
    "block_size": _NOT_NEGATIVE,
    "blocksize": _POSITIVE,
    "ceil_mode": _SWITCH,
    "count_include_pad": _SWITCH,
    "dilations": _POSITIVE,
    "exclusive": _SWITCH,
    "group": _POSITIVE,
    "groups": _POSITIVE,
    "hidden_size": _POSITIVE,
    "kernel_shape": _POSITIVE,
    "kv_num_heads": _NOT_NEGATIVE,
    "max_gram_length": _POSITIVE,
    "max_skip_count": _NOT_NEGATIVE,
    "min_gram_length": _POSITIVE,
    "num_groups": _POSITIVE,
    "num_heads": _NOT_NEGATIVE,
    "num_outputs": _POSITIVE,
    "offset_group": _POSITIVE,
    "output_height": _POSITIVE,
    "output_padding": _NOT_NEGATIVE,
    "output_width": _POSITIVE,
    "pads": _NOT_NEGATIVE,
    "pooled_shape": _POSITIVE,
    "q_num_heads": _NOT_NEGATIVE,
    "rotary_embedding_dim": _NOT_NEGATIVE,
    "sample_size": _POSITIVE,
    "sampling_ratio": (0, 1 << 12),  # as many points in each direction, for every pixel
    "shape": _NOT_NEGATIVE,
    "size": _POSITIVE,
    "spatial_scale": (0, math.inf),
    "split": _NOT_NEGATIVE,
    "storage_order": _SWITCH,
    "strides": _POSITIVE,
}
"""Least and most of an attribute's numbers; only of integers and floats that the table names."""

_OTHERWISE: Mapping[tuple[str, str], Bounds | None] = {
    ("Pad", "pads"): None,  # negative ones crop
    ("Reshape", "shape"): None,  # with marks
}
"""By op and attribute: other bounds, or none."""

_AXES: Mapping[str, tuple[int, int]] = {
    "ArgMax": (0, -1),
    "ArgMin": (0, -1),
    "Compress": (0, -1),
    "Concat": (0, -1),
    "Flatten": (0, 0),
    "Gather": (0, -1),
    "GatherElements": (0, -1),
    "Hardmax": (0, -1),
    "LayerNormalization": (0, -1),
    "LogSoftmax": (0, -1),
    "LpNormalization": (0, -1),
    "OneHot": (1, 0),
    "RMSNormalization": (0, -1),
    "ScatterElements": (0, -1),
    "Softmax": (0, -1),
    "Split": (0, -1),
    "TopK": (0, -1),
}
"""How far `axis` may go: the input's rank plus these, at the low and at the high end."""

Shapes: TypeAlias = Callable[[int], "Shape | None"]
"""The shape of the input in a slot, where it is known."""


def attribute_fault(graph: Graph, node: Node, *, proven: bool) -> str | None:
    """What is wrong with the numbers in a node's attributes, its bodies' included; None where nothing is. proven:
    whether inference gave what nodes make its shapes; else those are what a file says, and are not believed."""

    def shape(slot: int) -> Shape | None:
        value = graph.input(node, slot) if slot < node.arity[0] else None
        return value.shape if value is not None and (proven or graph.producer(value) is None) else None

    fault = _fault(node.op, node.domain, node.attributes, shape)
    if fault is None:
        inner = (n for body in bodies_of(node.attributes.values()) for n in body.node)
        fault = next(nodes_faults(inner), None)
    return fault


def nodes_faults(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """The same of nodes of bodies and functions, and of bodies in them, by what the attributes alone say."""
    for node in nodes:
        fault = _fault(node.op_type, node.domain, {a.name: a for a in node.attribute}, lambda slot: None)
        if fault is not None:
            yield f"{node.op_type} that makes '{next(iter(node.output), '')}' inside: {fault}"
        for body in bodies_of(node.attribute):
            yield from nodes_faults(body.node)


Attributes: TypeAlias = Mapping[str, onnx.AttributeProto]


def _fault(op: str, domain: str, attributes: Attributes, shape: Shapes) -> str | None:
    own = DIALECT.get((domain, op))
    if own is not None:
        return _own_fault(own, attributes)
    for name, attribute in attributes.items():
        if name not in _BOUNDS:
            continue
        bounds = _OTHERWISE.get((op, name), _BOUNDS[name])
        fault = None if bounds is None else _outside(name, attribute, bounds)
        if fault is not None:
            return fault
    facts = FACTS.get((domain, op))
    if facts is not None and facts.window:
        return _window_fault(op, facts, attributes, shape)
    if domain:
        return None
    if op in _AXES:
        return _axis_fault(op, attributes, shape(0))
    return _SPECIAL[op](attributes, shape) if op in _SPECIAL else None


def _own_fault(own: OwnOp, attributes: Attributes) -> str | None:
    for name, attribute in attributes.items():
        declared = own.attributes.get(name)
        if declared is None:
            continue
        fault, choices = _outside(name, attribute, declared.bounds), declared.choices
        if choices and attribute.s.decode("utf-8", "replace") not in choices:
            fault = f"expected its attribute '{name}' to be {' or '.join(choices)}, got {attribute.s!r}"
        if fault is not None:
            return fault
    return None


def _numbers(attributes: Attributes, name: str) -> list[int]:
    """Its integers; none where the attribute is absent."""
    attribute = attributes.get(name)
    return [] if attribute is None else [int(n) for n in attribute.ints]


def _integer(attributes: Attributes, name: str, default: int) -> int:
    return int(attributes[name].i) if name in attributes else default


def _outside(name: str, attribute: onnx.AttributeProto, bounds: Bounds) -> str | None:
    kind = attribute.type
    numbers: Sequence[float]
    if kind == _INTS:
        numbers = attribute.ints
    elif kind == _INT:
        numbers = (attribute.i,)
    elif kind == _FLOAT:
        numbers = (attribute.f,)
    else:
        return None
    least, most = bounds
    if not numbers or (least <= min(numbers) and max(numbers) <= most and math.isfinite(numbers[0])):
        return None  # of integers, all are finite
    got = list(numbers) if kind == _INTS else numbers[0]
    wanted = f"at least {least:g}" if most in (_INTEGER, math.inf) else f"{least:g} to {most:g}"
    too = f", at most {most:.0f}" if most == _INTEGER and any(n > most for n in numbers) else ""
    return f"expected its attribute '{name}' to be {wanted}{too}, got {got}"


def _window_fault(op: str, facts: OpFacts, attributes: Attributes, shape: Shapes) -> str | None:
    """Of a convolution or pool: as many numbers as there are spatial axes, that the filters agree with, and pads and
    paddings of the output that a window can have."""
    x, w = shape(0), shape(facts.weights[0]) if facts.weights else None
    kernel = _numbers(attributes, "kernel_shape")
    ranks = {len(s) - 2: f"the rank of {what}" for what, s in (("its input", x), ("its filters", w)) if s is not None}
    if kernel:
        ranks.setdefault(len(kernel), "its attribute 'kernel_shape'")
    if len(ranks) > 1:
        return "expected as many spatial axes everywhere, got " + " and ".join(f"{n} by {s}" for n, s in ranks.items())
    if not ranks:
        return None
    spatial, source = next(iter(ranks.items()))
    if spatial < 1:
        return f"expected at least one spatial axis, got {spatial} by {source}"
    for name, count in (("strides", 1), ("dilations", 1), ("pads", 2), ("output_padding", 1)):
        numbers = _numbers(attributes, name)
        if numbers and len(numbers) != count * spatial:
            return f"expected its attribute '{name}' to have {count * spatial} numbers ({source}), got {numbers}"
    if w is not None and any(isinstance(d, int) and d < 1 for d in w[2:]):
        return f"expected its filters to have at least one number along each spatial axis, got shape {list(w)}"
    if kernel and w is not None and any(isinstance(d, int) and d != k for d, k in zip(w[2:], kernel)):
        return f"expected its attribute 'kernel_shape' to be {list(w[2:])} as its filters are, got {kernel}"
    if not facts.weights:
        pads = _numbers(attributes, "pads")
        dilated = [d * (k - 1) + 1 for k, d in zip(kernel, _numbers(attributes, "dilations") or [1] * spatial)]
        if any(pad >= size for pad, size in zip(pads, dilated * 2)):
            return f"expected its attribute 'pads' to be smaller than its kernel {dilated}, got {pads}"
        return None
    if op == "ConvTranspose":
        return _padding_fault(attributes, spatial) or _group_fault(facts, attributes, x, w)
    return _group_fault(facts, attributes, x, w)


def _padding_fault(attributes: Attributes, spatial: int) -> str | None:
    strides = _numbers(attributes, "strides") or [1] * spatial
    dilations = _numbers(attributes, "dilations") or [1] * spatial
    padding = _numbers(attributes, "output_padding")
    if any(p >= max(s, d) for p, s, d in zip(padding, strides, dilations)):
        return (
            f"expected its attribute 'output_padding' to be smaller than the stride or the dilation, got {padding} "
            f"with strides {strides} and dilations {dilations}"
        )
    sizes = _numbers(attributes, "output_shape")
    if sizes and (min(sizes) < 1 or len(sizes) not in (spatial, spatial + 2)):
        return f"expected its attribute 'output_shape' to be {spatial} sizes of at least 1, got {sizes}"
    return None


def _group_fault(facts: OpFacts, attributes: Attributes, x: Shape | None, w: Shape | None) -> str | None:
    group = _integer(attributes, "group", 1)
    filters = None if w is None else w[0]
    if isinstance(filters, int) and filters % group:
        return f"expected its attribute 'group' to divide {filters}, the first axis of its filters, got {group}"
    channels, wanted = None if x is None else x[1], None if w is None else channel_counts(facts, w, group)[1]
    if isinstance(channels, int) and isinstance(wanted, int) and channels != wanted:
        return f"expected {wanted} channels, for filters {list(w or ())} in {group} groups, got an input of {channels}"
    return None


def _axis_fault(op: str, attributes: Attributes, shape: Shape | None) -> str | None:
    if shape is None or "axis" not in attributes:
        return None
    low, high = _AXES[op]
    axis, rank = _integer(attributes, "axis", 0), len(shape)
    least, most = -rank - low, rank + high
    if rank and not least <= axis <= most:
        return f"expected its attribute 'axis' to be {least} to {most} for an input of {rank} axes, got {axis}"
    return None


def _transpose_fault(attributes: Attributes, shape: Shapes) -> str | None:
    perm, x = _numbers(attributes, "perm"), shape(0)
    if perm and (sorted(perm) != list(range(len(perm))) or (x is not None and len(x) != len(perm))):
        axes = "its axes" if x is None else f"{len(x)} axes"
        return f"expected its attribute 'perm' to be an order of {axes}, got {perm}"
    return None


_GATES: Mapping[str, int] = {"GRU": 3, "LSTM": 4, "RNN": 1}


def _recurrent_fault(op: str) -> Callable[[Attributes, Shapes], str | None]:
    """Of its inputs, by their names in ONNX's definition: how many axes, and their sizes where those follow from
    `hidden_size` (or the last axis of R), `direction` and the gates."""

    def fault(attributes: Attributes, shape: Shapes) -> str | None:
        recurrence, x, gates = shape(2), shape(0), _GATES[op]
        last = recurrence[2] if recurrence is not None and len(recurrence) == 3 else None
        hidden = _integer(attributes, "hidden_size", 0) or (last if isinstance(last, int) else 0)
        directions = 2 if "direction" in attributes and attributes["direction"].s == b"bidirectional" else 1
        features = x[2] if x is not None and len(x) == 3 else None
        state = (None, directions, hidden) if _integer(attributes, "layout", 0) else (directions, None, hidden)
        inputs: Sequence[tuple[str, Shape]] = (
            ("X", (None, None, None)),
            ("W", (directions, gates * hidden, features)),
            ("R", (directions, gates * hidden, hidden)),
            ("B", (directions, 2 * gates * hidden)),
            ("sequence_lens", (None,)),
            ("initial_h", state),
            ("initial_c", state),
            ("P", (directions, 3 * hidden)),
        )
        for slot, (name, wanted) in enumerate(inputs):
            found = shape(slot)
            if found is None:
                continue
            if len(found) != len(wanted):
                return f"expected its input {name} to have {len(wanted)} axes, got shape {list(found)}"
            for axis, (size, got) in enumerate(zip(wanted, found)):
                if isinstance(size, int) and size and isinstance(got, int) and got != size:
                    how = f"hidden_size {hidden}, {directions} direction{'s' * (directions > 1)}"
                    how += f" and {features} features of X" * (name == "W" and axis == 2)
                    return f"expected axis {axis} of its input {name} to be {size} for {how}, got {got}"
        return None

    return fault


def _blocks_fault(attributes: Attributes, shape: Shapes) -> str | None:
    """Channels of DepthToSpace are blocks."""
    x, size = shape(0), _integer(attributes, "blocksize", 1)
    channels = x[1] if x is not None and len(x) == 4 else None
    if isinstance(channels, int) and channels % (size * size):
        return f"expected the square of its attribute 'blocksize' to divide {channels} channels, got {size}"
    return None


_SPECIAL: Mapping[str, Callable[[Attributes, Shapes], str | None]] = {
    "DepthToSpace": _blocks_fault,
    "GRU": _recurrent_fault("GRU"),
    "LSTM": _recurrent_fault("LSTM"),
    "RNN": _recurrent_fault("RNN"),
    "Transpose": _transpose_fault,
}
