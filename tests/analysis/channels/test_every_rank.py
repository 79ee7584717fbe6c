"""Every op that docs/ops.md says couples, ends or pins channels: at the ranks that it takes, at free sizes, with and
without shapes in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxslim.analysis.channels import Group, find_groups
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import from_proto
from onnxslim.ir.shapes import infer_shapes
from onnxslim.stages.base import prepared
from tests.analysis.channels.op_cases import RANKS, SIZES, axis_names
from tests.analysis.channels.op_networks import CASES, Part, network
from tests.passes.prune.conftest import cut_errors, some_units

PAGE = Path(__file__).resolve().parents[3] / "docs" / "ops.md"


def check(graph: Graph, parts: list[Part], rank: int) -> None:
    groups = find_groups(graph)
    made: dict[str, list[Group]] = {}
    for group in groups.groups:
        for node in group.makers:
            made.setdefault(node.name, []).append(group)
    for case, branch, _ in parts:
        for maker in branch.makers:
            pinned = [group.pinned for group in made[maker]]
            if case.does == "pins":
                assert all(why and all(f"'{branch.name}'" in text for text in why) for why in pinned), pinned
            else:
                assert not any(pinned), (branch.name, pinned)
            assert max(group.units for group in made[maker]) > 1, branch.name
    shape = [*(SIZES[name] for name in axis_names(rank)), 3]
    feeds = [{"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}]
    cuts = some_units(groups, np.random.default_rng(0))
    assert max(cut_errors(graph, cuts, feeds, groups)) <= 1e-5


def test_every_op_of_the_page_has_cases() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    place = rows[0].index("channels")
    said = {row[0].strip("| `"): row[place].strip() for row in rows[2:] if row[place].strip()}
    shown = {(case.op, case.does) for case in CASES}
    assert set(said.items()) <= shown
    assert {op for op, _ in shown} == set(said)


@pytest.mark.parametrize("free", ["batch", "all"])
@pytest.mark.parametrize("rank", RANKS)
def test_ops_do_with_channels_what_the_page_says(rank: int, free: str) -> None:
    """One branch a case; half of the units of all groups are cut at once, and compared with a mask."""
    graph, parts = network(rank, free, 18)
    check(prepared(graph), parts, rank)


@pytest.mark.parametrize("free", ["batch", "all"])
@pytest.mark.parametrize("rank", RANKS)
def test_ops_of_newer_opsets(rank: int, free: str) -> None:
    """As they are, and written out for the opset in which pruning works."""
    graph, parts = network(rank, free, 20)
    infer_shapes(graph)
    check(graph, parts, rank)
    check(prepared(graph), parts, rank)


def test_upsample_hands_channels_on_as_what_it_stands_for() -> None:
    """The op is of opsets up to 9, which are converted."""
    nodes = [
        helper.make_node("Conv", ["x", "a.w"], ["a"], name="a"),
        helper.make_node("Upsample", ["a", "scales"], ["y"], name="upsample"),
        helper.make_node("Conv", ["y", "b.w"], ["b"], name="b"),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "a.w": rng.normal(size=(4, 3, 1, 1)).astype(np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "b.w": rng.normal(size=(2, 4, 1, 1)).astype(np.float32),
    }
    proto = helper.make_model(
        helper.make_graph(
            nodes, "net",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, "H", "W"])],
            [helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 9)], ir_version=8,
    )  # fmt: skip
    graph = prepared(from_proto(proto))
    groups = find_groups(graph)
    assert [(group.name, group.units) for group in groups.free] == [("a", 4)]
    feeds = [{"x": rng.normal(size=(2, 3, 4, 4)).astype(np.float32)}]
    assert max(cut_errors(graph, {"a": [0, 2]}, feeds, groups)) <= 1e-5
