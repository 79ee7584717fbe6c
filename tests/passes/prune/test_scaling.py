"""Groups of large graphs are found and cut in seconds: the short way of benchmarks/pruning_scaling.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onnxslim.analysis.channels import find_groups

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
try:
    from pruning_scaling import KINDS, LONGEST_S, NODES_OF_LONGEST, measure, model
finally:
    sys.path.pop(0)


@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_nodes_take_seconds(kind: str) -> None:
    nodes, found, cut = measure(kind, NODES_OF_LONGEST)
    assert nodes >= NODES_OF_LONGEST
    assert found + cut < LONGEST_S


def test_the_models_are_what_they_are_called() -> None:
    counts = {kind: [len(group.makers) for group in find_groups(model(kind, 100)).free] for kind in KINDS}
    assert set(counts["chain"]) == {1}
    assert max(counts["residual"]) > 20
    assert set(counts["depthwise"]) == {1, 2}
