"""What an op is, as far as more than one part of the engine asks: where its weights and biases stand, which of their
axes are channels, whether it works element by element.

One literal table by domain and op. What a single rule table knows of an op (its gradient, how it couples channels, what
it costs) stands there; what an attribute means in numbers is in `ops`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from onnxslim.ir.dialect import FAKE_QUANT
from onnxslim.ir.graph import Dim, Node, Shape

__all__ = ["FACTS", "OpFacts", "bias_slot", "channel_axes", "channel_counts", "facts_of", "weight_slot"]

Elementwise: TypeAlias = Literal["unary", "limited", "broadcast"]


@dataclass(frozen=True)
class OpFacts:
    """Slots are of inputs.

    weights: slots of what may hold weights that the data is multiplied with and summed over; the first is that of a
    layer's. outs, ins: the axes of these (for anything but a window: of a matrix) along which the channels that are
    made and read lie; None where they lie otherwise. A true attribute called `turned` exchanges the two.
    scales, biases: slots of what multiplies channels, and is added to them, one number each.
    linear: whether the result is linear in weights and bias together.
    statistics: slots of running statistics. settings: slots of numbers that are no weights; settings_are: in words.
    window: whether a window slides over the spatial axes of [N, C, *spatial]: a convolution or a pool.
    elementwise: `unary` of one input; `limited` of the first, the others hold for all elements; `broadcast` of all,
    as they broadcast. discrete: whether no floats come out.
    keeps_shape: whether the first output has the shape of the first input, though what each element becomes depends on
    others, or on where it stands.
    """

    weights: tuple[int, ...] = ()
    outs: int | None = None
    ins: int | None = None
    turned: str = ""
    scales: tuple[int, ...] = ()
    biases: tuple[int, ...] = ()
    linear: bool = False
    statistics: tuple[int, ...] = ()
    settings: tuple[int, ...] = ()
    settings_are: str = "a grid of quantisation"
    window: bool = False
    elementwise: Elementwise | None = None
    discrete: bool = False
    keeps_shape: bool = False

    @property
    def is_like_first(self) -> bool:
        """Whether the first output has the shape of the first input."""
        return self.keeps_shape or self.elementwise in ("unary", "limited")


_MICROSOFT = "com.microsoft"
_NOTHING = OpFacts()
_CONV = OpFacts(weights=(1,), outs=0, ins=1, biases=(2,), window=True)
_GEMM = OpFacts(weights=(1, 0), outs=1, ins=0, turned="transB", biases=(2,))
_MATMUL = OpFacts(weights=(1, 0), outs=1, ins=0)
_RECURRENT = OpFacts(weights=(1, 2), biases=(3,))
_POOL = OpFacts(window=True)
_NORM = OpFacts(scales=(1,), biases=(2,), keeps_shape=True)
_GRID = OpFacts(settings=(1, 2), keeps_shape=True)
_QLINEAR = (1, 2, 4, 5, 6, 7)

_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf",
    "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal",
    "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan",
    "Tanh", "ThresholdedRelu",
)  # fmt: skip
_TESTS = ("BitwiseNot", "IsInf", "IsNaN", "Not")
_BROADCAST = ("Add", "Div", "Max", "Mean", "Min", "Mod", "Mul", "Pow", "Sub", "Sum", "Where")
_COMPARISONS = (
    "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Or", "Xor",
)  # fmt: skip

FACTS: Mapping[tuple[str, str], OpFacts] = {
    **{("", op): OpFacts(elementwise="unary") for op in _UNARY},
    **{("", op): OpFacts(elementwise="unary", discrete=True) for op in _TESTS},
    **{("", op): OpFacts(elementwise="broadcast") for op in _BROADCAST},
    **{("", op): OpFacts(elementwise="broadcast", discrete=True) for op in _COMPARISONS},
    ("", "AveragePool"): _POOL,
    ("", "BatchNormalization"): OpFacts(scales=(1,), biases=(2,), statistics=(3, 4), keeps_shape=True),
    ("", "CastLike"): OpFacts(elementwise="limited"),
    ("", "Clip"): OpFacts(elementwise="limited", settings=(1, 2), settings_are="a bound"),
    ("", "Conv"): OpFacts(weights=(1,), outs=0, ins=1, biases=(2,), window=True, linear=True),
    ("", "ConvInteger"): OpFacts(weights=(1,), outs=0, ins=1, window=True),
    ("", "ConvTranspose"): OpFacts(weights=(1,), outs=1, ins=0, biases=(2,), window=True, linear=True),
    ("", "DeformConv"): OpFacts(weights=(1,), outs=0, ins=1, biases=(3,), window=True, linear=True),
    ("", "DequantizeLinear"): _GRID,
    ("", "Dropout"): OpFacts(elementwise="limited", settings=(1,), settings_are="a rate"),
    ("", "Einsum"): OpFacts(weights=tuple(range(8))),
    ("", "GRU"): _RECURRENT,
    ("", "Gemm"): OpFacts(weights=(1, 0), outs=1, ins=0, turned="transB", biases=(2,), linear=True),
    ("", "GroupNormalization"): _NORM,
    ("", "InstanceNormalization"): _NORM,
    ("", "LSTM"): OpFacts(weights=(1, 2), biases=(3, 7)),
    ("", "LayerNormalization"): _NORM,
    ("", "LpPool"): _POOL,
    ("", "MatMul"): _MATMUL,
    ("", "MatMulInteger"): _MATMUL,
    ("", "MaxPool"): _POOL,
    ("", "MaxUnpool"): _POOL,
    ("", "MeanVarianceNormalization"): OpFacts(keeps_shape=True),
    ("", "PRelu"): OpFacts(elementwise="broadcast", scales=(1,)),
    ("", "Pad"): OpFacts(settings=(2,), settings_are="what is padded with"),
    ("", "QLinearConv"): OpFacts(weights=(3,), outs=0, ins=1, biases=(8,), window=True, settings=_QLINEAR),
    ("", "QLinearMatMul"): OpFacts(weights=(3, 0), outs=1, ins=0, settings=_QLINEAR),
    ("", "QuantizeLinear"): _GRID,
    ("", "RNN"): _RECURRENT,
    ("", "Resize"): OpFacts(settings=(1, 2), settings_are="a size"),
    ("", "SimplifiedLayerNormalization"): OpFacts(scales=(1,), keeps_shape=True),
    ("", "Upsample"): OpFacts(settings=(1,), settings_are="a size"),
    (_MICROSOFT, "Attention"): OpFacts(weights=(1,), outs=1, ins=0, biases=(2,)),
    (_MICROSOFT, "BiasGelu"): OpFacts(elementwise="broadcast", biases=(1,)),
    (_MICROSOFT, "DequantizeLinear"): _GRID,
    (_MICROSOFT, "FastGelu"): OpFacts(elementwise="broadcast", biases=(1,)),
    (_MICROSOFT, "FusedConv"): _CONV,
    (_MICROSOFT, "FusedGemm"): _GEMM,
    (_MICROSOFT, "FusedMatMul"): OpFacts(weights=(1, 0), outs=1, ins=0, turned="transB"),
    (_MICROSOFT, "Gelu"): OpFacts(elementwise="unary"),
    (_MICROSOFT, "QLinearAveragePool"): _POOL,
    (_MICROSOFT, "QuantizeLinear"): _GRID,
    (_MICROSOFT, "QuickGelu"): OpFacts(elementwise="unary"),
    (_MICROSOFT, "SkipLayerNormalization"): OpFacts(scales=(2,), biases=(3, 4), keeps_shape=True),
    (_MICROSOFT, "SkipSimplifiedLayerNormalization"): OpFacts(scales=(2,), biases=(3,), keeps_shape=True),
    (f"{_MICROSOFT}.nchwc", "Conv"): _CONV,
    FAKE_QUANT: OpFacts(settings=(1, 2, 3)),
}


def facts_of(node: Node) -> OpFacts:
    """Of an op that the table does not have: that it has none of all this."""
    return FACTS.get((node.domain, node.op), _NOTHING)


def weight_slot(node: Node) -> int:
    """The slot of a layer's weights; the second one of an op that the table does not have."""
    weights = facts_of(node).weights
    return weights[0] if weights else 1


def bias_slot(node: Node) -> int | None:
    """The slot of a layer's bias; None for an op that takes none."""
    biases = facts_of(node).biases
    return biases[0] if biases else None


def channel_axes(node: Node, rank: int) -> tuple[int, int] | None:
    """The axes of a layer's weights, of that rank, along which the channels lie that it makes, and that it reads; None
    where the weights have no such axes: stacks of matrices, recurrent ones."""
    facts = facts_of(node)
    if facts.outs is None or facts.ins is None or (not facts.window and rank != 2):
        return None
    turned = bool(facts.turned) and bool(node.attr(facts.turned, 0))
    return (facts.ins, facts.outs) if turned else (facts.outs, facts.ins)


def channel_counts(facts: OpFacts, weight: Shape, group: int) -> tuple[Dim, Dim]:
    """How many channels a convolution with weights of that shape makes, and reads: along their first axis lie those of
    all groups, along the second those of one."""
    if facts.outs is None or facts.ins is None:
        return None, None
    counts = (weight[0], weight[1] * group if isinstance(weight[1], int) else None)
    return counts[facts.outs], counts[facts.ins]
