from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from onnxslim.errors import GradientError
from onnxslim.ir.graph import DType, Graph
from onnxslim.runtime.session import Session
from passes.gradient import differentiate
from passes.gradient.rules import movement

CASES = (
    *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Pad", "Reshape", "Slice", "SpaceToDepth"),
    *("Split", "Squeeze", "Transpose", "Unsqueeze", "CumSum", "GatherElements", "GatherND", "Resize"),
    *("ReverseSequence", "ScatterElements", "ScatterND", "Tile", "TopK", "Trilu"),
)
SHAPES = array_shapes(min_dims=1, max_dims=4, max_side=4)
SEEDS = st.integers(0, 99)
FEW = settings(max_examples=8)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_every_rule_has_a_case() -> None:
    assert sorted(CASES) == sorted(movement.RULES)


@FEW
@given(shape=SHAPES, seed=SEEDS, data=st.data())
def test_reshapes(shape: tuple[int, ...], seed: int, data: st.DataObject, check: Callable, spaced: Callable) -> None:
    x, rank = spaced(shape, seed), len(shape)
    check("Reshape", [x, ints(-1)])
    check("Flatten", [x], axis=data.draw(st.integers(-rank, rank)))
    check("Unsqueeze", [x, ints(0, -1)])
    wide = x.reshape(1, *shape, 1)
    check("Squeeze", [wide, ints(0, -1)])
    check("Squeeze", [wide])


@FEW
@given(shape=SHAPES, seed=SEEDS, data=st.data())
def test_transpose(shape: tuple[int, ...], seed: int, data: st.DataObject, check: Callable, spaced: Callable) -> None:
    perm = data.draw(st.none() | st.permutations(range(len(shape))))
    check("Transpose", [spaced(shape, seed)], **({} if perm is None else {"perm": perm}))


@FEW
@given(shape=SHAPES, seed=SEEDS, data=st.data())
def test_concat(shape: tuple[int, ...], seed: int, data: st.DataObject, check: Callable, spaced: Callable) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    parts = []
    for i, size in enumerate(sizes):
        part = list(shape)
        part[axis] = size
        parts.append(spaced(part, seed + i))
    wrt = list(range(len(sizes)))
    check("Concat", parts, wrt, axis=axis)
    check("Concat", parts, wrt[-1:], axis=axis)


@FEW
@given(shape=SHAPES, seed=SEEDS, data=st.data())
def test_split(shape: tuple[int, ...], seed: int, data: st.DataObject, check: Callable, spaced: Callable) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
    whole = list(shape)
    whole[axis] = sum(sizes)
    unused = data.draw(st.sampled_from([(), (0,), (1,)]))
    inputs = [spaced(whole, seed), ints(*sizes)]
    check("Split", inputs, outputs=len(sizes), unused=unused, axis=axis)


def test_split_into_equal_parts(check: Callable, spaced: Callable) -> None:
    check("Split", [spaced((2, 6), 1)], outputs=3, axis=1, num_outputs=3)
    check("Split", [spaced((2, 7), 1)], outputs=3, axis=1, num_outputs=3)


@settings(max_examples=40)
@given(shape=SHAPES, seed=SEEDS, data=st.data())
def test_slice(shape: tuple[int, ...], seed: int, data: st.DataObject, check: Callable, spaced: Callable) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    starts, ends, steps = [], [], []
    for axis in axes:
        size, step = shape[axis], data.draw(st.sampled_from([1, 1, 2, 3, -1, -2]))
        at = sorted(data.draw(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1))))
        start, end = (at[0], at[1] + 1) if step > 0 else (at[1], at[0] - 1)
        far = data.draw(st.booleans())
        if step > 0:
            end = data.draw(st.sampled_from([end, end - size])) if end < size else (2**31 if far else end)
        else:
            start = 2**31 if far and start == size - 1 else start
            end = -(2**31) if end < 0 else end
        starts.append(start)
        ends.append(end)
        steps.append(step)
    signed = [a - len(shape) if data.draw(st.booleans()) else a for a in axes]
    check("Slice", [spaced(shape, seed), ints(*starts), ints(*ends), ints(*signed), ints(*steps)])


def test_slice_without_axes_and_steps(check: Callable, spaced: Callable) -> None:
    check("Slice", [spaced((3, 4, 2), 1), ints(1, -3), ints(3, -1)])
    check("Slice", [spaced((3, 4), 1), ints(0, 0), ints(3, 4)])


@FEW
@given(shape=SHAPES, seed=SEEDS, data=st.data())
def test_gather(shape: tuple[int, ...], seed: int, data: st.DataObject, check: Callable, spaced: Callable) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[axis]
    chosen = data.draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=6))
    kind = data.draw(st.sampled_from([np.int32, np.int64]))
    dims = data.draw(st.sampled_from([(-1,), (1, -1)]))
    check("Gather", [spaced(shape, seed), np.array(chosen, kind).reshape(dims)], axis=axis)


@pytest.mark.parametrize("indices", [np.int64(1), np.int64(-2), np.int64([2, 0, 1]), np.int64([[0, 0], [2, 0]])])
@pytest.mark.parametrize("axis", [0, 1])
def test_gather_scalars_permutations_and_repeats(indices: Any, axis: int, check: Callable, spaced: Callable) -> None:
    check("Gather", [spaced((3, 3, 2), 5), np.asarray(indices)], axis=axis)


def test_gather_with_computed_indices(spaced: Callable) -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (3, 2))
    best = graph.op("ArgMax", x, axis=0, keepdims=0)
    graph.set_type(best, DType.INT64, (2,))
    rows = graph.op("Gather", x, best, axis=0)
    graph.set_type(rows, DType.FLOAT, (2, 2))
    loss = graph.op("ReduceSum", rows, keepdims=0)
    graph.set_type(loss, DType.FLOAT, ())
    gradient = differentiate(graph, loss, [x])["x"]
    graph.add_output(gradient)
    found = Session(graph).run({"x": np.float32([[1, 9], [5, 2], [3, 4]])})[gradient.name]
    np.testing.assert_array_equal(found, [[1, 1], [1, 1], [0, 0]])


@FEW
@given(shape=SHAPES, seed=SEEDS, data=st.data())
def test_pad(shape: tuple[int, ...], seed: int, data: st.DataObject, check: Callable, spaced: Callable) -> None:
    pads = data.draw(st.lists(st.integers(0, 2), min_size=2 * len(shape), max_size=2 * len(shape)))
    fill = data.draw(st.sampled_from([None, np.asarray(np.float32(1.5))]))
    check("Pad", [spaced(shape, seed), ints(*pads), fill], [0] if fill is None else [0, 2])


def test_the_value_that_is_padded_with_gets_its_gradient(check: Callable, spaced: Callable) -> None:
    """Of one element, as opset 13 has it too; and alone, where nothing else of the Pad is trained."""
    check("Pad", [spaced((2, 3), 0), ints(1, 0, 0, 2), np.full(1, 0.5, np.float32)], [2])
    check("Pad", [spaced((2, 3), 0), ints(0, 0, 0, 0), np.asarray(np.float32(0.5))], [0, 2])


@FEW
@given(shape=SHAPES, seed=SEEDS, data=st.data())
def test_expand(shape: tuple[int, ...], seed: int, data: st.DataObject, check: Callable, spaced: Callable) -> None:
    small = [1 if data.draw(st.booleans()) else d for d in shape]
    check("Expand", [spaced(small, seed), ints(2, *shape)])
    check("Expand", [spaced(small, seed), ints(*shape)])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str, check: Callable, spaced: Callable) -> None:
    check("DepthToSpace", [spaced((2, 8, 2, 3), 1)], blocksize=2, mode=mode)


def test_space_to_depth(check: Callable, spaced: Callable) -> None:
    check("SpaceToDepth", [spaced((2, 3, 4, 6), 1)], blocksize=2)


def refused(op: str, inputs: list[Any], *, match: str, shape: tuple[int, ...] = (4, 4), **attributes: Any) -> None:
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (3, 3))
    others = [
        graph.add_input(a, DType.INT64, (2,)) if isinstance(a, str) else graph.add_constant("c", a) for a in inputs
    ]
    y = graph.op(op, x, *others, name="here", **attributes)
    graph.set_type(y, DType.FLOAT, shape)
    loss = graph.op("ReduceSum", y, keepdims=0)
    graph.set_type(loss, DType.FLOAT, ())
    with pytest.raises(GradientError, match=match):
        differentiate(graph, loss, [x])


def test_refusals_name_the_node() -> None:
    refused("Pad", [ints(-1, 0, 0, 1)], mode="reflect", match=r"node 'here' \(Pad\).*negative")
    refused("Pad", ["pads"], match=r"node 'here' \(Pad\).*constant")
    refused("Pad", [ints(-1, 0, 0, 1)], match=r"node 'here' \(Pad\).*negative")
    refused("Slice", ["starts", "ends"], match=r"node 'here' \(Slice\).*constant")
    refused("Tile", ["repeats"], match=r"node 'here' \(Tile\).*repeats.*constant")
    refused("Hardmax", [], match=r"node 'here' \(Hardmax\).*no gradient rule for Hardmax")


@FEW
@given(shape=SHAPES, seed=SEEDS, data=st.data())
def test_tile(shape: tuple[int, ...], seed: int, data: st.DataObject, check: Callable, spaced: Callable) -> None:
    repeats = data.draw(st.lists(st.integers(1, 3), min_size=len(shape), max_size=len(shape)))
    check("Tile", [spaced(shape, seed), ints(*repeats)])


@FEW
@given(shape=SHAPES, seed=SEEDS, data=st.data(), reverse=st.booleans(), exclusive=st.booleans())
def test_cumulative_sum(
    shape: tuple[int, ...],
    seed: int,
    data: st.DataObject,
    reverse: bool,
    exclusive: bool,
    check: Callable,
    spaced: Callable,
) -> None:
    axis = np.array(data.draw(st.integers(-len(shape), len(shape) - 1)), np.int64)
    x = spaced(shape, seed)

    def forward(x: np.ndarray, *_: Any) -> np.ndarray:
        turned = np.flip(x, axis) if reverse else x
        y = np.cumsum(turned, axis)
        y = y - turned if exclusive else y
        return (np.flip(y, axis) if reverse else y).reshape(-1)

    check("CumSum", [x, axis], forward=forward, reverse=int(reverse), exclusive=int(exclusive))


@FEW
@given(shape=array_shapes(min_dims=2, max_dims=4, max_side=4), seed=SEEDS, upper=st.booleans(), k=st.integers(-2, 2))
def test_triangles(shape: tuple[int, ...], seed: int, upper: bool, k: int, check: Callable, spaced: Callable) -> None:
    check("Trilu", [spaced(shape, seed), np.array(k, np.int64)], upper=int(upper))


@FEW
@given(shape=SHAPES, seed=SEEDS, data=st.data())
def test_gathered_elements(
    shape: tuple[int, ...], seed: int, data: st.DataObject, check: Callable, spaced: Callable
) -> None:
    """Repeated indices add up."""
    axis = data.draw(st.integers(0, len(shape) - 1))
    index = np.random.default_rng(seed).integers(-shape[axis], shape[axis], shape)
    check("GatherElements", [spaced(shape, seed), index], axis=axis)


def test_gathered_points(check: Callable, spaced: Callable) -> None:
    check("GatherND", [spaced((3, 4, 2), 1), np.array([[0, 1], [2, 3], [0, 1]])])


@pytest.mark.parametrize("reduction", ["none", "add"])
@pytest.mark.parametrize("wrt", [[0], [2], [0, 2]])
def test_scattered(reduction: str, wrt: list[int], check: Callable, spaced: Callable) -> None:
    index = np.array([[0, 2, 1], [3, 0, 2]])
    check(
        "ScatterElements", [spaced((4, 3), 1), index, spaced((2, 3), 2)], wrt, axis=0, reduction=reduction
    )  # fmt: skip
    points = np.array([[3], [1]])
    check("ScatterND", [spaced((4, 3), 1), points, spaced((2, 3), 2)], wrt, reduction=reduction)


@pytest.mark.parametrize("largest", [0, 1])
def test_largest(largest: int, check: Callable, spaced: Callable) -> None:
    def forward(x: np.ndarray, *_: Any) -> np.ndarray:
        ranked = np.sort(x, axis=1)
        return (ranked[:, ::-1][:, :2] if largest else ranked[:, :2]).reshape(-1)

    check("TopK", [spaced((3, 5), 1), ints(2)], forward=forward, axis=1, largest=largest, spare=1)


def test_reversed_sequences(check: Callable, spaced: Callable) -> None:
    check("ReverseSequence", [spaced((4, 3, 2), 1), ints(1, 4, 2)], time_axis=0, batch_axis=1)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("transform", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("scales", [(2.0, 2.0), (1.5, 0.5), (3.0, 1.0)])
def test_resize(mode: str, transform: str, scales: tuple[float, float], check: Callable, spaced: Callable) -> None:
    """Against ONNX Runtime's own kernel, which is linear: exact differences of it."""
    shape = (2, 2, 4, 6)
    sizes = ints(2, 2, *(int(n * s) for n, s in zip(shape[2:], scales)))
    attributes = {"mode": mode, "coordinate_transformation_mode": transform, "nearest_mode": "floor"}
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, shape)
    empty = graph.add_constant("empty", np.zeros(0, np.float32))
    graph.add_output(graph.op("Resize", x, empty, empty, graph.add_constant("sizes", sizes), name="y", **attributes))
    session = Session(graph)

    def forward(x: np.ndarray, *_: Any) -> np.ndarray:
        return np.asarray(session.run({"x": x.astype(np.float32)})["y"].reshape(-1), np.float64)

    linear = np.stack([forward(e.reshape(shape)) for e in np.eye(int(np.prod(shape)))], axis=1)
    check(
        "Resize", [spaced(shape, 1), np.zeros(0, np.float32), np.zeros(0, np.float32), sizes],
        forward=lambda x, *_: linear @ x.reshape(-1), **attributes,
    )  # fmt: skip
