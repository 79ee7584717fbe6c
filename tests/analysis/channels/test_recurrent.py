"""Hidden units of LSTM, GRU and RNN: what of weights, biases and states goes with one."""

from __future__ import annotations

import numpy as np
import pytest

import onnxslim
from onnxslim.analysis.channels import find_groups
from onnxslim.analysis.cost import cost
from onnxslim.ir.graph import Graph
from onnxslim.pruning.footprint import Footprint
from passes.prune import CutChannels
from tests.analysis.channels.conftest import Net, each, groups_of, index

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
HIDDEN = 5


def network(op: str, directions: int, *, given: bool = False, peepholes: bool = False, **attributes: object) -> Net:
    """x [6, N, 4] → op "r" with every operand it may have → Y [6, directions, N, hidden]."""
    net, rows = Net(6, 2, 4), GATES[op] * HIDDEN
    states = [net.weight(f"r.{name}", directions, 2, HIDDEN) for name in ("h", "c")[: 2 if op == "LSTM" else 1]]
    if given:
        states[0] = net.graph.add_input("h0", net.x.dtype, (directions, 2, HIDDEN))
    operands = [
        net.weight("r.w", directions, rows, 4),
        net.weight("r.r", directions, rows, HIDDEN),
        net.weight("r.b", directions, 2 * rows),
        None,
        *states,
        *([net.weight("r.p", directions, 3 * HIDDEN)] if peepholes else []),
    ]
    direction = "bidirectional" if directions == 2 else "forward"
    net.op(op, net.x, *operands, name="r", hidden_size=HIDDEN, direction=direction, outputs=2, **attributes)
    return net


def finished(net: Net, directions: int) -> Graph:
    """Y [6, directions, N, hidden] → [6, N, directions · hidden] → MatMul, and Y_h through a sum."""
    node = next(n for n in net.graph.nodes() if n.name == "r")
    y, last = net.graph.node_outputs(node)
    assert y is not None
    assert last is not None
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.constant("s", [6, 2, directions * HIDDEN]))
    made = net.op("MatMul", y, net.weight("b.w", directions * HIDDEN, 3), name="b")
    return net.finish(made, net.op("ReduceSum", last, net.constant("axes", [2]), name="total"))


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("op", GATES)
def test_a_hidden_unit_goes_from_every_gate_in_both_directions(op: str, directions: int) -> None:
    graph = finished(network(op, directions), directions)
    group = groups_of(graph).by_name["r"]  # every cut of it is run, and compared with the mask
    assert (group.units, group.width, group.pinned) == (HIDDEN, 1, ())
    found = index(group)
    assert found["r.r:2"] == each(HIDDEN)
    for name, times in (("r.w:1", GATES[op]), ("r.r:1", GATES[op]), ("r.b:1", 2 * GATES[op]), ("b.w:0", directions)):
        assert found[name] == each(HIDDEN, times, step=HIDDEN)
    cut = graph.copy()
    CutChannels({"r": [1, 3]})(cut)
    assert next(n for n in cut.nodes() if n.name == "r").attr("hidden_size") == 3
    footprint = Footprint(graph, {"r": group})
    footprint.set("r", 3)
    whole = cost(cut)
    assert (footprint.size.macs, footprint.size.params) == (whole.macs, whole.params)


def test_peepholes_and_other_activations() -> None:
    graph = finished(network("LSTM", 1, peepholes=True, activations=["Sigmoid", "Sigmoid", "Sigmoid"]), 1)
    assert index(groups_of(graph).by_name["r"])["r.p:1"] == each(HIDDEN, 3, step=HIDDEN)
    assert groups_of(finished(network("GRU", 2, linear_before_reset=1), 2)).by_name["r"].pinned == ()


def test_a_state_that_is_handed_in_pins() -> None:
    graph = finished(network("LSTM", 1, given=True), 1)
    (why,) = find_groups(graph).by_name["r"].pinned
    assert why == "node 'r' (LSTM) meets 'h0' there, whose axis cannot be cut"


def test_layers_follow_one_another() -> None:
    """The hidden units of the first are the features of the second."""
    net = network("GRU", 1)
    y = net.graph.node_outputs(next(n for n in net.graph.nodes() if n.name == "r"))[0]
    assert y is not None
    y = net.op("Squeeze", y, net.constant("axes", [1]))
    w, r = net.weight("q.w", 1, 16, HIDDEN), net.weight("q.r", 1, 16, 4)
    y = net.op("LSTM", y, w, r, name="q", hidden_size=4)
    found = groups_of(net.finish(net.op("MatMul", y, net.weight("b.w", 4, 2), name="b"))).by_name
    assert index(found["r"])["q.w:2"] == each(HIDDEN)
    assert index(found["q"])["q.r:1"] == each(4, 4, step=4)
    assert np.array_equal(found["q"].members[0].index, np.arange(4).reshape(4, 1))


@pytest.mark.parametrize("criterion", ["l1", "fpgm", "random"])
def test_units_are_scored_and_cut_to_a_target(criterion: str) -> None:
    graph = finished(network("LSTM", 2), 2)
    found = onnxslim.prune(graph, params=0.6, multiple=1, criterion=criterion)
    assert found.plan.after.params <= 0.6 * found.plan.before.params
    assert cost(found.graph).params == found.plan.after.params
    assert 1 <= next(n for n in found.graph.nodes() if n.op == "LSTM").attr("hidden_size") < HIDDEN
