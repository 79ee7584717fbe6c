"""The table of rules: ops that exist, and each op that works element by element."""

from __future__ import annotations

import onnx
import pytest

from onnxslim.analysis.channels.rules import ENDING, PINNING, RULES, SILENT
from onnxslim.analysis.channels.rules.elementwise import RULES as ELEMENTWISE
from tests.analysis.channels.conftest import Net, each, groups_of, index

FLOAT = onnx.TensorProto.FLOAT


def takes(op: str, operands: int) -> bool:
    """Whether opset 18 has the op with that many operands, float in and out."""
    if not onnx.defs.has(op, 18):
        return False
    schema = onnx.defs.get_schema(op, 18, "")
    types = [set(slot.types) for slot in (*schema.inputs[:operands], *schema.outputs)]
    return schema.min_input <= operands <= schema.max_input and all("tensor(float)" in kinds for kinds in types)


UNARY = sorted(op for domain, op in ELEMENTWISE if not domain and takes(op, 1) and op != "Cast")
BINARY = sorted(op for domain, op in ELEMENTWISE if op not in (*UNARY, "CastLike") and not domain and takes(op, 2))


def test_every_op_of_the_table_exists() -> None:
    assert [op for domain, op in RULES if not domain and not onnx.defs.has(op)] == [
        "SimplifiedLayerNormalization"  # ONNX Runtime's own, in the domain of onnx's
    ]
    assert not set(ENDING) & set(PINNING)
    assert set(ENDING) | set(PINNING) | set(SILENT) < set(RULES)
    assert len(UNARY) > 35
    assert set(BINARY) >= {"Add", "Div", "Mul", "PRelu", "Pow", "Sub"}


@pytest.mark.parametrize("op", UNARY)
def test_unary_ops(op: str) -> None:
    net = Net("N", 3, 4, 4)
    y = net.op("Sigmoid", net.conv(net.x, 4, "a"))
    y = net.op(op, net.op("Exp", y) if op == "Acosh" else y, name="y")
    (group,) = groups_of(net.finish(net.conv(y, 2, "b"))).free
    assert index(group)["y:1"] == each(4)


@pytest.mark.parametrize("op", BINARY)
def test_binary_ops(op: str) -> None:
    net = Net("N", 3, 4, 4)
    a, b = (net.op("Sigmoid", net.conv(net.x, 4, name)) for name in "ab")
    y = net.op(op, a, b, name="y", fmod=1 if op == "Mod" else None)
    (group,) = groups_of(net.finish(net.conv(y, 2, "c"))).free
    assert [node.name for node in group.makers] == ["a", "b"]
    assert index(group)["y:1"] == each(4)
