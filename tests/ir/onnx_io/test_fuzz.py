"""Damaged models end in a graph that verifies, or in an error of ours: the short way of benchmarks/fuzz.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnxslim import simplify
from onnxslim.errors import ExternalDataError, ModelError, ModelFormatError, OnnxSlimError, VerifyError
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import from_proto, read, to_proto, write
from onnxslim.ir.verify import verify

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    from fuzz import Child
    from fuzz_cases import SECRET, Case, lay_out, run_case
    from fuzz_networks import networks
    from mutations import STRUCTURAL
    from nesting import nested_bodies, nested_functions
finally:
    sys.path.pop(0)


def base() -> onnx.ModelProto:
    """A convolution, a batch norm, shape arithmetic, an If, a local function, a sparse and an old-style constant."""
    chance = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(chance.standard_normal((4, 2, 3, 3)).astype(np.float32), "w"),
        *(numpy_helper.from_array(np.ones(4, np.float32), n) for n in ("g", "b", "m", "v")),
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([-1], np.int64), "rest"),
        numpy_helper.from_array(chance.standard_normal((64, 5)).astype(np.float32), "d"),
    ]
    branch = [helper.make_node("Relu", ["f"], ["inner"])]
    other = [helper.make_node("Neg", ["f"], ["inner"])]
    bodies = [helper.make_graph(nodes, "body", [], [onnx.ValueInfoProto(name="inner")]) for nodes in (branch, other)]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["batch"], axis=0),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["n", "target"], ["f"]),
        helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", 9, [], [True])),
        helper.make_node("If", ["yes"], ["i"], then_branch=bodies[0], else_branch=bodies[1]),
        helper.make_node("double", ["i"], ["t"], domain="local"),
        helper.make_node("MatMul", ["t", "d"], ["y"]),
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    function = helper.make_function(
        "local", "double", ["a"], ["z"], [helper.make_node("Add", ["a", "a"], ["z"])], opsets
    )
    info = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ["N", 2, 4, 4]), ("y", ["N", 5]))]
    graph = helper.make_graph(nodes, "base", info[:1], info[1:], weights)
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("fuzz"))


def test_the_base_is_sound(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(base().SerializeToString())
    graph = simplify(folder / "model.onnx").graph
    verify(graph)
    assert "BatchNormalization" not in [n.op for n in graph.nodes()]


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(sorted(STRUCTURAL)), min_size=1, max_size=3), st.integers(0, 1 << 32))
def test_damaged_models_give_a_sound_graph_or_an_error_of_ours(folder: Path, names: list[str], seed: int) -> None:
    model, chance = base(), Random(seed)
    for name in names:
        STRUCTURAL[name](chance, model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    try:
        graph = simplify(folder / "model.onnx").graph
        write(graph, folder / "out.onnx")
    except OnnxSlimError:
        return
    assert SECRET[:64] not in (folder / "out.onnx").read_bytes()
    verify(read(folder / "out.onnx"))


def test_models_of_another_meaning_compute_what_they_did(tmp_path: Path) -> None:
    """The first cases of the fuzzer's networks, in a process of their own, which the runtime may end."""
    for model in networks():
        (tmp_path / f"network-{model.graph.name}.onnx").write_bytes(model.SerializeToString())
    child = Child([sys.executable, str(BENCHMARKS / "fuzz.py"), "--serve", str(tmp_path), "--kind", "changed"])
    try:
        ends = [child.ask(number) for number in range(60)]
    finally:
        child.stop()
    assert [(what, ended) for what, ended in ends if ended.finding] == []
    equal = sum("with the original's outputs" in ended.how for _, ended in ends)
    assert equal > 15, ends  # a third, most of them cases that ONNX Runtime runs


def test_commands_end_in_a_message_where_the_runtime_would_die(folder: Path) -> None:
    """Filters of no width: ONNX Runtime 1.19.2 divides by zero as it loads them, or never ends."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ["N", 3, 8, 8]), ("y", None))]
    weight = numpy_helper.from_array(np.ones((5, 3, 3, 0), np.float32), "w")
    model = helper.make_model(
        helper.make_graph(nodes, "net", info[:1], info[1:], [weight]),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=9,
    )  # fmt: skip
    case = Case(model.SerializeToString(), "no width", {"x": [3, 3, 8, 8]})
    (folder / "model.onnx").write_bytes(case.data)
    steps: list[str] = []
    ended = run_case("trained", case, folder / "model.onnx", steps.append, reference=False)
    assert (ended.how, ended.finding) == ("commands: evaluate 2, prune 2, quantize 2", "")
    assert steps == ["onnxslim evaluate", "onnxslim prune", "onnxslim quantize"]


# ---------------------------------------------------------------- each kind of damage, by name


def refusal(damage: Callable[[onnx.ModelProto], object], kind: type[ModelError] = ModelFormatError) -> str:
    model = base()
    damage(model)
    with pytest.raises(kind) as caught:
        simplify(from_proto(model))
    return str(caught.value)


def attribute(model: onnx.ModelProto, op: str, name: str) -> AttributeProto:
    return next(a for n in model.graph.node if n.op_type == op for a in n.attribute if a.name == name)


def test_a_cycle() -> None:
    def damage(model: onnx.ModelProto) -> None:
        model.graph.node[0].input[0] = "n"

    assert "cycle: node '' (Conv) → node '' (BatchNormalization)" in refusal(damage)


def test_a_duplicate_producer() -> None:
    assert "already produced by node '' (Conv)" in refusal(lambda m: m.graph.node.append(m.graph.node[0]))


def test_a_missing_producer() -> None:
    assert "reads 'c', which nothing produces" in refusal(lambda m: m.graph.node.pop(0))


@pytest.mark.parametrize("dims", [[1 << 62], [-4, 2, 3, 3], [4, 2, 3, 4], [1 << 40, 1 << 40], [1] * 100], ids=str)
def test_absurd_dims_of_a_weight(dims: list[int]) -> None:
    def damage(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[:] = dims

    assert "'w'" in refusal(damage)


@pytest.mark.parametrize("dim", [1 << 32, 1 << 62, (1 << 63) - 1])
def test_a_vector_of_absurd_length_is_not_followed_element_by_element(dim: int) -> None:
    infos = [helper.make_tensor_value_info(n, 1, [dim]) for n in ("x", "y")]
    nodes = [helper.make_node("Mul", ["x", "x"], ["z"]), helper.make_node("Add", ["z", "x"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "long", infos[:1], infos[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    graph = simplify(from_proto(model)).graph
    assert graph.value("y").shape == (dim,)


@pytest.mark.parametrize("op, size", [("ConstantOfShape", 1 << 36), ("Expand", 1 << 36), ("Tile", 1 << 31)])
def test_a_result_of_absurd_size_is_not_computed(op: str, size: int) -> None:
    graph = Graph("huge")
    x = graph.add_input("x", graph.add_constant("one", np.ones(1, np.float32)).dtype, [1])
    n = graph.add_constant("n", np.array([size], np.int64))
    operands = [n] if op == "ConstantOfShape" else [graph.value("one"), n]
    graph.add_output(graph.op("Add", x, graph.op("ReduceSum", graph.op(op, *operands))))
    kept = simplify(graph).graph
    assert op in [node.op for node in kept.nodes()]


def test_huge_declared_tensors_without_data() -> None:
    def damage(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].CopyFrom(TensorProto(name="w", data_type=1, dims=[1 << 20, 1 << 20]))

    assert "expected 1099511627776 elements" in refusal(damage)


def test_huge_declared_tensors_without_data_in_attributes_and_bodies() -> None:
    def damage(model: onnx.ModelProto) -> None:
        attribute(model, "Constant", "value").t.CopyFrom(TensorProto(name="c", data_type=1, dims=[1 << 40]))

    def damage_body(model: onnx.ModelProto) -> None:
        attribute(model, "If", "then_branch").g.initializer.add(name="c", data_type=1, dims=[1 << 40])

    assert "Tensor 'c'" in refusal(damage)
    assert "Tensor 'c'" in refusal(damage_body)


@pytest.mark.parametrize("depth", [40, 1000, 3000])
def test_deeply_nested_bodies(depth: int, tmp_path: Path) -> None:
    (tmp_path / "deep.onnx").write_bytes(base().SerializeToString() + nested_bodies(depth))
    with pytest.raises(ModelFormatError, match="deep.onnx"):
        read(tmp_path / "deep.onnx")


def test_deeply_nested_bodies_that_never_were_a_file() -> None:
    model = base()
    graph = model.graph
    for _ in range(3000):
        graph = graph.node.add(op_type="If").attribute.add(name="then_branch", type=AttributeProto.GRAPH).g
    with pytest.raises(ModelFormatError, match="at most 100 messages inside one another"):
        from_proto(model)


@pytest.mark.parametrize("depth, width", [(3000, 1), (40, 2), (30, 3)])
def test_functions_whose_calls_multiply_are_carried_through(depth: int, width: int) -> None:
    model = base()
    nested_functions(model, depth, width)
    graph = simplify(from_proto(model)).graph
    assert len(to_proto(graph).functions) == depth + 1


@pytest.mark.parametrize("depth", [1, 2, 3000])
def test_functions_that_call_themselves(depth: int) -> None:
    message = refusal(lambda m: nested_functions(m, depth, 1, recursive=True))
    assert "expected local functions that do not call themselves, got 'f0' → " in message


@pytest.mark.parametrize("location", ["../secret.bin", "link.bin", "door/secret.bin", "sub/../../secret.bin"])
@pytest.mark.parametrize("where", ["initialiser", "attribute", "body"])
def test_ways_out_of_the_folder(location: str, where: str, folder: Path) -> None:
    model = base()
    tensor = {
        "initialiser": model.graph.initializer[0],
        "attribute": attribute(model, "Constant", "value").t,
        "body": attribute(model, "If", "then_branch").g.initializer.add(),
    }[where]
    tensor.CopyFrom(TensorProto(name="w", data_type=1, dims=[4, 2, 3, 3], data_location=TensorProto.EXTERNAL))
    tensor.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExternalDataError, match="outside of the model's folder"):
        read(folder / "model.onnx")


def test_attributes_of_another_type() -> None:
    def damage(model: onnx.ModelProto) -> None:
        attribute(model, "Gather", "axis").CopyFrom(helper.make_attribute("axis", "0"))

    assert "expected its attribute 'axis' to be INT, got STRING" in refusal(damage, VerifyError)


def test_attributes_that_refer_to_a_functions() -> None:
    def damage(model: onnx.ModelProto) -> None:
        attribute(model, "Gather", "axis").ref_attr_name = "elsewhere"

    assert "got a reference to 'elsewhere'" in refusal(damage)


def test_segments_of_tensors() -> None:
    def damage(model: onnx.ModelProto) -> None:
        attribute(model, "Constant", "value").t.segment.begin = 1

    assert "is a segment of a larger one" in refusal(damage)


@pytest.mark.parametrize("number", [-1, 1 << 31, (1 << 63) - 1])
def test_opsets_that_no_version_has(number: int) -> None:
    def damage(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = number

    assert "expected versions of opsets" in refusal(damage)


def test_an_opset_of_zero_has_no_ops() -> None:
    def damage(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 0

    assert "does not exist in opset 0" in refusal(damage, VerifyError)


def test_an_opset_of_the_future_is_taken_for_the_newest_known() -> None:
    model = base()
    model.opset_import[0].version = 1_000_000_000
    assert simplify(from_proto(model)).graph.opset == 1_000_000_000


def test_a_split_into_absurdly_many() -> None:
    graph = Graph("split")
    x = graph.add_input("x", graph.add_constant("one", np.ones(1, np.float32)).dtype, [4])
    for value in graph.node_outputs(graph.add_node("Split", [x], ["a", "b"], {"num_outputs": 1 << 40})):
        assert value is not None
        graph.add_output(value)
    with pytest.raises(VerifyError, match="splits into 1099511627776; expected 2"):
        verify(graph)


def test_vectors_that_are_no_shapes_verify() -> None:
    """Strict inference with data propagation takes them for shapes, and refuses the sum."""
    infos = [helper.make_tensor_value_info(n, 1, s) for n, s in (("a", [2]), ("b", [3]), ("y", [2, 3]))]
    nodes = [helper.make_node("Unsqueeze", ["a", "one"], ["column"]), helper.make_node("Add", ["column", "b"], ["y"])]
    axes = [numpy_helper.from_array(np.array([1], np.int64), "one")]
    graph = helper.make_graph(nodes, "vectors", infos[:2], infos[2:], axes)
    verify(from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)))
