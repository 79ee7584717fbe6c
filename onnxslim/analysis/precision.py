"""In what numbers a model computes: float, fake-quantised (a run's intermediate model), or int8 as it ships.

A quantised model says so by its nodes: QuantizeLinear and DequantizeLinear pairs (QDQ), or ops that take integers by
themselves (QLinearConv, MatMulInteger, and the runtime's own of com.microsoft).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import onnx

from onnxslim.errors import UnsupportedError
from onnxslim.ir.dialect import FAKE_QUANT, FakeQuant, is_fake_quant
from onnxslim.ir.graph import DType, Graph, Node
from onnxslim.ir.onnx_io.bodies import bodies_of
from onnxslim.ir.quant_math import storage
from onnxslim.targets import Target, load_target, target_names

__all__ = [
    "TARGET_KEY", "Precision", "activation_type", "precision_of", "quantized_for", "quantized_type",
    "require_not_quantized",
]  # fmt: skip

TARGET_KEY = "onnxslim.target"
"""Key in `metadata_props`: the target that a model was quantised for."""

_PAIRS = ("QuantizeLinear", "DequantizeLinear")
_INTEGER_OPS = frozenset(
    {*_PAIRS, "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
)
_RUNTIME_OPS = frozenset({
    *_PAIRS, "ConvIntegerToFloat", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "GatherBlockQuantized",
    "MatMulBnb4", "MatMulIntegerToFloat", "MatMulNBits", "MulInteger", "NhwcMaxPool",
})  # fmt: skip
_ANY_TARGET = frozenset({
    "ConvInteger", "ConvIntegerToFloat", "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulBnb4", "MatMulInteger", "MatMulIntegerToFloat",
    "MatMulNBits",
})  # fmt: skip
"""Ops that quantise activations by themselves as they come, or not at all: they have no type for a target to choose."""
_RUNTIME_PREFIXES = ("QAttention", "QEmbed", "QGemm", "QLinear", "QMoE", "QOrdered")


@dataclass(frozen=True)
class Precision:
    """What a model computes in.

    kind: "float", "fake-quant" or "int8". ops: of an int8 model, its integer ops and how many there are of each.
    activations: of an int8 model in QDQ form, the element types that its activations are quantised to, sorted.
    target: the one that it is written for, as it notes or as its activations say; None where neither does.
    floats: the types of its float constants, sorted.
    """

    kind: Literal["float", "fake-quant", "int8"]
    ops: tuple[tuple[str, int], ...] = ()
    activations: tuple[DType, ...] = ()
    target: str | None = None
    floats: tuple[DType, ...] = ()

    def suits(self, target: Target) -> bool:
        """Whether what an int8 model does with activations is what the target does."""
        if not self.activations and all(op in _ANY_TARGET for op, _ in self.ops):
            return True
        return self.target == target.name or self.activations == (activation_type(target),)

    def __str__(self) -> str:
        if self.kind == "float":
            return " and ".join("float32" if t is DType.FLOAT else t.name.lower() for t in self.floats) or "float"
        if self.kind == "fake-quant":
            return self.kind
        types = " and ".join(t.name.lower() for t in self.activations)
        described = f"{types} activations" if types else ", ".join(op for op, _ in self.ops)
        kind = "int8" if set(self.activations) <= {DType.INT8, DType.UINT8} else "quantised"
        return f"{kind}, {described}" + ("" if self.target is None else f", for {self.target}")


def precision_of(graph: Graph) -> Precision:
    """Read off the nodes of a graph, of its bodies and of its local functions."""
    counts: Counter[str] = Counter()
    fake = False
    for domain, op in _ops(graph):
        fake |= (domain, op) == FAKE_QUANT
        if _is_integer(domain, op):
            counts[op] += 1
    floats = tuple(sorted({value.dtype for value in graph.initializers() if value.dtype.is_float}))
    if fake:
        return Precision("fake-quant", floats=floats)
    if not counts:
        return Precision("float", floats=floats)
    activations = _activations(graph)
    return Precision("int8", tuple(sorted(counts.items())), activations, _target(graph, activations), floats)


def require_not_quantized(graph: Graph, what: str) -> None:
    """Raises UnsupportedError where a model computes in int8 already. what: what was asked, such as "quantised"."""
    found = precision_of(graph)
    if found.kind == "int8":
        nodes = ", ".join(f"{count} {op}" for op, count in found.ops)
        raise UnsupportedError(
            f"Graph '{graph.name}' is quantised already ({nodes}), so it cannot be {what}: "
            "give the float model that it was made from"
        )


def activation_type(target: Target) -> DType:
    """What activations are stored in on a target."""
    return storage(target.activation_bits, target.activation_signed)


def quantized_for(graph: Graph) -> str | None:
    """The target that a graph was quantised for, as it notes, or as the types of its activations say; None of a float
    model, and where neither does."""
    found = precision_of(graph)
    return _target(graph, _grids(graph)) if found.kind == "fake-quant" else found.target


def _target(graph: Graph, activations: tuple[DType, ...]) -> str | None:
    """What is noted counts where that target can hold such activations: fewer bits than it takes, too."""
    targets, held = [load_target(name) for name in target_names()], set(activations)
    able = [t.name for t in targets if held <= {storage(b, t.activation_signed) for b in (8, t.activation_bits)}]
    noted = graph.metadata.get(TARGET_KEY)
    if noted in able:
        return noted
    same = [t.name for t in targets if held == {activation_type(t)}]
    return same[0] if len(same) == 1 else None


def _grids(graph: Graph) -> tuple[DType, ...]:
    """What the activations of a fake-quant graph will be stored in."""
    grids = [FakeQuant.of(node) for node in graph.nodes() if is_fake_quant(node)]
    return tuple(sorted({storage(grid.bits, grid.signed) for grid in grids if not grid.is_weight}))


def _activations(graph: Graph) -> tuple[DType, ...]:
    found = {quantized_type(graph, node) for node in graph.nodes() if node.op == "QuantizeLinear"}
    return tuple(sorted(found))


def quantized_type(graph: Graph, node: Node) -> DType:
    """The element type of what a QuantizeLinear gives."""
    zero_point = graph.input(node, 2)
    if zero_point is not None and zero_point.dtype is not DType.UNDEFINED:
        return zero_point.dtype
    return DType(int(node.attr("output_dtype", 0) or DType.UINT8))


def _is_integer(domain: str, op: str) -> bool:
    if domain == "com.microsoft":
        return op in _RUNTIME_OPS or op.startswith(_RUNTIME_PREFIXES)
    return not domain and op in _INTEGER_OPS


def _ops(graph: Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes():
        yield node.domain, node.op
        yield from _inner(n for body in bodies_of(node.attributes.values()) for n in body.node)
    for function in graph.functions:
        yield from _inner(function.node)


def _inner(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, str]]:
    for node in nodes:
        yield node.domain if node.domain != "ai.onnx" else "", node.op_type
        yield from _inner(n for body in bodies_of(node.attribute) for n in body.node)
