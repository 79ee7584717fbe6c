"""Pruning in mid-training: what survives keeps its moments, and training goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from onnxslim.analysis.channels import find_groups
from onnxslim.errors import CheckpointError
from onnxslim.training.loop import Trainer
from onnxslim.training.optimizers import AdamW, Optimizer, Sgd
from onnxslim.training.ports import Kind
from passes.prune import CutChannels


@pytest.mark.parametrize("optimizer", [Sgd(), AdamW()])
@pytest.mark.parametrize("quantize", [False, True])
def test_moments_of_surviving_channels_are_bit_equal(
    trainer: Callable[..., Trainer], quantize: bool, optimizer: Optimizer
) -> None:
    first = trainer(quantize=quantize, epochs=2, optimizer=optimizer)
    result = first.run()
    graph = result.graph.copy()
    gone = {"conv1": [1], "conv2": [0, 3, 6]}
    outcome = CutChannels(gone)(graph)
    state = result.state.cut(outcome.survivors)
    kept1, kept2 = [0, 2, 3], [1, 2, 4, 5, 7]
    old, new = result.state.arrays, state.arrays
    weight = next(p for p, a in old.items() if p.kind is Kind.PARAMETER and a.shape == (8, 4, 3, 3))
    for port in (weight, *(weight.moment(moment) for moment in optimizer.moments)):
        assert np.array_equal(new[port], old[port][kept2][:, kept1])
        assert np.abs(new[port]).max() > 0
    assert {array.shape for array in new.values()} != {array.shape for array in old.values()}
    for port, array in new.items():
        assert array.shape == graph.value(str(port.belongs_to.owner)).shape
    on = replace(trainer(quantize=quantize, epochs=4, optimizer=optimizer), start=state)
    on.student = graph
    on.__post_init__()
    finished = on.run()
    assert [record["epoch"] for record in finished.history] == [1, 2, 3, 4]
    assert finished.history[-1]["loss"] < finished.history[0]["loss"]
    assert len(find_groups(finished.graph).by_name) == len(find_groups(graph).by_name)


def test_a_state_of_another_shape_is_refused(trainer: Callable[..., Trainer]) -> None:
    result = trainer(quantize=False, epochs=1).run()
    outcome = CutChannels({"conv1": [0]})(result.graph.copy())
    state = result.state.cut(outcome.survivors)
    with pytest.raises(CheckpointError, match="The state to start from belongs to another model"):
        trainer(quantize=False, epochs=2, start=state).run()
