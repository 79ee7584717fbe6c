"""The gradient rules, by (domain, op): one file a family, a plain table."""

from onnxslim.analysis.trainable import FLAT
from onnxslim.ir.dialect import FAKE_QUANT
from passes.gradient.rules import (
    convolution,
    elementwise,
    fake_quant,
    layout,
    linear,
    movement,
    normalization,
    pooling,
    reduction,
)
from passes.gradient.tape import Rule

__all__ = ["CONSTANT_INPUTS", "RULES"]

RULES: dict[tuple[str, str], Rule] = {
    **{
        ("", op): rule
        for family in (elementwise, movement, reduction, linear, convolution, pooling, normalization)
        for op, rule in family.RULES.items()
    },
    **layout.RULES,
    FAKE_QUANT: fake_quant.fake_quant,
}

CONSTANT_INPUTS: dict[tuple[str, str], frozenset[int]] = {
    **{("", op): frozenset([0]) for op in FLAT},
    FAKE_QUANT: frozenset([1, 2, 3]),
}
"""Float inputs that a rule takes for constants, by slot: of ops whose slope is zero but at their steps, and the scale,
zero point and range of a fake-quant, which follow what they are observed on. For any other input that a gradient is
wanted of, a rule gives one, or `differentiate` raises."""
