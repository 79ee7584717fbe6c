"""Every op that docs/ops.md calls differentiable is differentiated: at each rank that it takes, whatever the file says
of its shapes, and rightly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onnxslim.ir.text import to_text
from passes.gradient import differentiable_ops

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
try:
    import gradient_ops as op_cases
finally:
    sys.path.pop(0)

CASES: dict[str, list[op_cases.Case]] = {}
for one in op_cases.cases():
    CASES.setdefault(one.name, []).append(one)


def test_every_op_has_cases() -> None:
    ops = [f"{domain}.{op}" if domain else op for domain, op in differentiable_ops()]
    assert sorted(CASES) == [op for op in sorted(ops) if not op.startswith(("onnxslim.blocked", "onnxslim.lanes"))]


@pytest.mark.parametrize(
    "op", ["Add", "BatchNormalization", "Concat", "MatMul", "Relu", "Softmax", "com.microsoft.Gelu"]
)
def test_ops_of_any_rank_are_tried_at_each(op: str) -> None:
    assert {case.rank for case in CASES[op]} == set(op_cases.RANKS)


@pytest.mark.parametrize("op", sorted(CASES))
@pytest.mark.filterwarnings("ignore:overflow")
def test_gradient_with_free_sizes(op: str) -> None:
    """Without value_info; against central differences of ONNX Runtime's own forward pass."""
    assert [text for case in CASES[op] if (text := op_cases.wrong(case))] == []


@pytest.mark.parametrize("op", sorted(CASES))
def test_value_info_changes_nothing(op: str) -> None:
    """The same graph comes out where the file gives every size, and where it gives all but the batch's."""
    for case in CASES[op][-2:]:  # of the lowest rank, some change nothing and go
        shape = op_cases.made_shape(case)
        free = "none" if case.rank % 2 else "batch"
        told = [*shape] if free == "none" else [f"d{axis}" for axis in range(len(shape))]
        graph, _ = op_cases.differentiated(op_cases.model(case, free=free, value_info=told), case)
        plain, _ = op_cases.differentiated(op_cases.model(case), case)
        assert to_text(graph).split("\n")[1:] == to_text(plain).split("\n")[1:], (op, case.rank)
