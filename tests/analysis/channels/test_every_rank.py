"""Every op that works element by element, at ranks 2 to 5, at free sizes, with and without shapes in the file."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.analysis.channels import find_groups
from onnxslim.onnx_io import from_proto, to_proto
from onnxslim.stages.base import prepared
from tests.analysis.channels.conftest import Net
from tests.analysis.channels.test_rules import BINARY, UNARY
from tests.passes.prune.conftest import cut_errors, some_units

SKIPPED = ("Acosh",)  # of numbers from 1 on, which test_rules gives it
SIZES = {"N": 2, "H": 3, "W": 2, "D": 2}


@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_elementwise_ops_hand_channels_on(rank: int, annotated: bool) -> None:
    """One branch an op: product, op, product; half of the units of all are cut at once."""
    net = Net("N", *list("HWD")[: rank - 2], 3)
    outputs = []
    for op in [*UNARY, *BINARY]:
        if op in SKIPPED:
            continue
        reads = [
            net.graph.op("Sigmoid", net.graph.op("MatMul", net.x, net.weight(f"{op}.{k}.w", 3, 4), name=f"{op}.{k}"))
            for k in range(2 if op in BINARY else 1)
        ]
        attributes = {"fmod": 1} if op == "Mod" else {}
        y = net.graph.op(op, *reads, name=op, **attributes)
        outputs.append(net.graph.op("MatMul", y, net.weight(f"{op}.out.w", 4, 2), name=f"{op}.out"))
    proto = to_proto(net.finish(*outputs))
    if not annotated:
        del proto.graph.value_info[:]
    graph = prepared(from_proto(proto))
    groups = find_groups(graph)
    assert len(groups.free) >= len(outputs)
    shape = [2, *list(SIZES.values())[1 : rank - 1], 3]
    feeds = [{"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}]
    cuts = some_units(groups, np.random.default_rng(0))
    assert max(cut_errors(graph, cuts, feeds, groups)) <= 1e-5
