"""Why a group is pinned, in the names of the file that the user has."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim.analysis.channels import find_groups
from onnxslim.ir.graph import DType
from onnxslim.ir.onnx_io import from_proto
from onnxslim.runtime.checker import random_feeds, relative_error
from passes.simplify import canonicalize
from tests.passes.prune.conftest import Net, session

FIRST = helper.make_node("MatMul", ["x", "a.w"], ["a"], "first")


def pinned(*middle: onnx.NodeProto, opset: int = 18, **constants: np.ndarray) -> tuple[str, ...]:
    """Why the channels of `first` stay, in x [N, 6, 16] → first → middle, which makes m → last."""
    rng = np.random.default_rng(0)
    weights = {"a.w": rng.normal(size=(16, 8)), "b.w": rng.normal(size=(8, 5))}
    tensors = {name: array.astype(np.float32) for name, array in weights.items()} | constants
    graph = helper.make_graph(
        [FIRST, *middle, helper.make_node("MatMul", ["m", "b.w"], ["y"], "last")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6, 5])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    canonicalize()(model)
    return find_groups(model.copy()).by_name["first"].pinned


SCALE = np.ones(8, np.float32)
NORMS = [
    ("RMSNormalization", "", 23, 1),  # written out into opset 18
    ("LayerNormalization", "", 17, 1),
    ("SimplifiedLayerNormalization", "", 18, 1),
    ("SkipSimplifiedLayerNormalization", "com.microsoft", 18, 2),
    ("Softmax", "", 11, 1),
    ("MeanVarianceNormalization", "", 18, 1),
]


@pytest.mark.parametrize(("op", "domain", "opset", "reads"), NORMS)
def test_a_mean_over_channels_pins_them_under_the_name_of_the_file(
    op: str, domain: str, opset: int, reads: int
) -> None:
    scales = [] if op in ("Softmax", "MeanVarianceNormalization") else ["s"]
    attributes = {"Softmax": {"axis": 2}, "MeanVarianceNormalization": {"axes": [2]}}.get(op, {})
    node = helper.make_node(op, [*["a"] * reads, *scales], ["m"], "norm", domain=domain, **attributes)
    (why,) = pinned(node, opset=opset, s=SCALE)
    kind = f"{domain}.{op}" if domain else op
    assert why in (f"node 'norm' ({kind}) normalises over it", f"node 'norm' ({kind}) reduces over it")


def test_a_node_without_a_name_is_named_by_what_it_makes() -> None:
    nodes = helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Softmax", ["r"], ["m"])
    assert pinned(*nodes) == ("node 'm' (Softmax) normalises over it",)


def test_what_pins_is_named_not_what_hands_it_on() -> None:
    """The branch that is added comes from a CumSum; Relu and Transpose hand it on."""
    why = pinned(
        helper.make_node("CumSum", ["x", "z"], ["c"], "cumulated"),
        helper.make_node("Slice", ["c", "from", "to", "z"], ["half"], "half"),
        helper.make_node("Relu", ["half"], ["r"], "relu"),
        helper.make_node("Add", ["a", "r"], ["m"], "add"),
        z=np.array(2, np.int64).reshape(1),
        **{"from": np.array([0], np.int64), "to": np.array([8], np.int64)},
    )
    assert why == ("node 'add' (Add) meets what node 'cumulated' (CumSum) makes there, whose axis cannot be cut",)


def test_a_mask_would_be_wrong_where_a_mean_of_squares_counts_channels() -> None:
    """RMS over eight channels of which two are zero is not RMS over the other six: the group has to stay."""
    net = Net("N", 6)
    scale = net.constant("s", np.ones(8, np.float32))
    y = net.op("SimplifiedLayerNormalization", net.gemm(net.x, 8, "a"), scale, name="rms", epsilon=1e-6)
    net.graph.set_type(y, DType.FLOAT, ("N", 8))
    graph = net.finish(net.gemm(y, 3, "b"))
    assert find_groups(graph).by_name["a"].pinned
    feeds = random_feeds(graph, seed=1, batch=4)
    zeroed, cut = graph.copy(), graph.copy()
    for name, axis in (("a.w", 0), ("a.b", 0), ("s", 0), ("b.w", 1)):
        array = np.array(graph.value(name).array)
        kept = array.take(range(6), axis)
        cut.set_array(cut.value(name), kept)
        np.moveaxis(array, axis, 0)[6:] = 0
        zeroed.set_array(zeroed.value(name), array)
    for node in cut.nodes():
        cut.set_type(cut.result(node), DType.FLOAT, ("N", 3 if node.name == "b" else 6))
    right = next(iter(session(zeroed).run(feeds).values()))
    got = next(iter(session(cut).run(feeds).values()))
    assert relative_error(right, got) > 1e-2  # the norm is √(8/6) too small
