"""The gradient rules, by (domain, op): one file a family, a plain table."""

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

__all__ = ["RULES"]

RULES: dict[tuple[str, str], Rule] = {
    ("", op): rule
    for family in (elementwise, movement, reduction, linear, convolution, pooling, normalization)
    for op, rule in family.RULES.items()
} | {("onnxslim", "FakeQuant"): fake_quant.fake_quant}
RULES |= layout.RULES
