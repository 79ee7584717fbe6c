"""One pruner plans as often as it is asked, each time from the whole graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Graph
from onnxslim.pruning.pruner import Pruner
from onnxslim.pruning.scope import Scope


def test_what_was_asked_before_leaves_no_trace(network: Callable[..., Graph]) -> None:
    """A footprint is counted once and set to and fro: sizes, levels and cuts are those of a pruner that begins."""
    graph, losses = network((16, 24)), {"conv1": {0.5: 0.1}, "conv2": {0.5: 0.01}}
    targets = {"macs": 0.5, "params": 0.6}
    used = Pruner(graph, Scope(multiple=1))
    used.require_reachable({"macs": 0.3})
    with pytest.raises(UnsupportedError, match="cannot be reached"):
        used.plan(used.ideal("uniform"), {"macs": 1e-4})
    used.plan(used.ideal("sensitivity", losses), {"bytes": 0.4})
    for strategy in ("uniform", "global", "sensitivity"):
        fresh = Pruner(graph, Scope(multiple=1))
        plan, expected = (p.plan(p.ideal(strategy, losses), targets) for p in (used, fresh))  # type: ignore[arg-type]
        assert plan.cuts == expected.cuts
        assert (plan.before, plan.after, plan.level) == (expected.before, expected.after, expected.level)
        assert [row.macs for row in plan.groups] == [row.macs for row in expected.groups]
        assert plan.after.macs <= 0.5 * plan.before.macs
