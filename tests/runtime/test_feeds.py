"""find_feeds: inputs at which a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from onnxslim.errors import DataError, ModelError
from onnxslim.ir.graph import Dim, DType, Graph, Value
from onnxslim.runtime.child import Child
from onnxslim.runtime.feeds import find_feeds


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    with Child(seconds=60) as found:
        yield found


def image(shape: Sequence[Dim]) -> tuple[Graph, Value]:
    graph = Graph("net")
    return graph, graph.add_input("x", DType.FLOAT, shape)


def ending(graph: Graph, value: Value) -> Graph:
    graph.set_type(value, DType.FLOAT)
    graph.add_output(value)
    return graph


def shapes(graph: Graph, child: Child, **options: object) -> list[dict[str, tuple[int, ...]]]:
    found = find_feeds(graph, child, **options)  # type: ignore[arg-type]
    return [{name: array.shape for name, array in sample.feeds.items()} for sample in found]


def convolution(graph: Graph, x: Value, kernel: int, name: str) -> Value:
    w = graph.add_constant(f"{name}/w", np.ones((1, 1, kernel, kernel), np.float32))
    return graph.op("Conv", x, w, name=name)


def test_images_are_as_large_as_the_model_needs_and_height_differs_from_width(child: Child) -> None:
    graph, x = image(["N", 1, "H", "W"])
    y = convolution(graph, x, 50, "c")  # nothing is left of 32 × 64
    assert shapes(ending(graph, y), child) == [{"x": (2, 1, 64, 96)}]


def test_a_square_that_is_baked_in_is_found(child: Child) -> None:
    graph, x = image(["N", 1, "H", "W"])
    flat = graph.op("Flatten", x, name="flat")
    w = graph.add_constant("w", np.ones((28 * 28, 2), np.float32))
    assert shapes(ending(graph, graph.op("MatMul", flat, w, name="y")), child) == [{"x": (2, 1, 28, 28)}]


def test_a_batch_of_one_is_tried(child: Child) -> None:
    graph, x = image(["N", 6])
    target = graph.add_constant("target", np.array([1, 2, 3]))
    assert shapes(ending(graph, graph.op("Reshape", x, target, name="y")), child) == [{"x": (1, 6)}]


def test_axes_without_a_name_are_equal_where_the_model_wants_that(child: Child) -> None:
    graph, a = image([None, None])
    b = graph.add_input("b", DType.FLOAT, [None, None])
    joined = graph.op("Concat", a, b, name="y", axis=0)
    found = shapes(ending(graph, joined), child)
    assert found == [{"x": (2, 32), "b": (2, 32)}]


@pytest.mark.parametrize("symbol", ["?", "N"])
def test_equal_symbols_are_once_equal_and_once_not(child: Child, symbol: str) -> None:
    """Nothing ties the axes together: another sample has them differ."""
    graph, x = image([symbol, 1, symbol, symbol])
    equal, differing = shapes(ending(graph, graph.op("Relu", x, name="y")), child)
    assert len({equal["x"][axis] for axis in (0, 2, 3)}) == 1
    assert len({differing["x"][axis] for axis in (2, 3)}) == 2


def test_equal_symbols_stay_equal_where_the_model_wants_that(child: Child) -> None:
    graph, a = image(["n", 3])
    b = graph.add_input("b", DType.FLOAT, ["n", 4])
    joined = graph.op("Concat", a, b, name="y", axis=1)
    assert shapes(ending(graph, joined), child) == [{"x": (2, 3), "b": (2, 4)}]


def test_sizes_are_taken_by_symbol_and_by_place(child: Child) -> None:
    graph, x = image(["N", None, "W"])
    y = ending(graph, graph.op("Relu", x, name="y"))
    assert shapes(y, child, sizes={"W": 7, "x[1]": 5}) == [{"x": (2, 5, 7)}]
    assert shapes(y, child, sizes={"N": 1, "W": 7, "x[1]": 5}) == [{"x": (1, 5, 7)}]
    with pytest.raises(DataError, match=r"size H=7: no input has a free axis of that name; free are: N, x\[1\], W"):
        shapes(y, child, sizes={"H": 7})
    with pytest.raises(DataError, match="size W=0: expected a whole number of at least 1"):
        shapes(y, child, sizes={"W": 0})


def test_the_model_is_at_fault_where_it_runs_on_nothing(child: Child) -> None:
    graph, x = image(["N", 3])
    w = graph.add_constant("w", np.ones((4, 2), np.float32))
    y = ending(graph, graph.op("MatMul", x, w, name="y"))
    with pytest.raises(ModelError, match=r"Graph 'net' itself runs on none of \d+ sizes tried for its free axes N"):
        find_feeds(y, child)
    with pytest.raises(ModelError, match=r"Graph 'net' itself does not run on random inputs x \[2, 3\]: "):
        find_feeds(y, child, sizes={"N": 2})


def test_given_inputs_are_the_only_sample(child: Child) -> None:
    graph, x = image(["N", "W"])
    y = ending(graph, graph.op("Relu", x, name="y"))
    (sample,) = find_feeds(y, child, given={"x": np.ones((3, 9), np.float32)})
    assert str(sample) == "x [3, 9]"
    with pytest.raises(DataError, match="needs input 'x'"):
        find_feeds(y, child, given={"other": np.ones((3, 9), np.float32)})


def test_an_input_of_unknown_rank_needs_data(child: Child) -> None:
    graph = Graph("net")
    x = graph.add_input("x", DType.FLOAT, None)
    y = ending(graph, graph.op("Relu", x, name="y"))
    with pytest.raises(DataError, match="Input 'x' needs data of its own"):
        find_feeds(y, child)
    assert [str(s) for s in find_feeds(y, child, given={"x": np.ones(4, np.float32)})] == ["x [4]"]


def test_large_sizes_are_tried_where_they_are_given_and_only_there(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxslim.runtime.feeds._MOST", 100)
    graph, x = image(["N", 1, "H", "W"])
    y = ending(graph, graph.op("Relu", x, name="y"))
    assert shapes(y, child) == [{"x": (1, 1, 8, 12)}]
    assert shapes(y, child, sizes={"H": 50, "W": 60}) == [{"x": (2, 1, 50, 60)}]
    assert shapes(y, child, sizes={"N": 101}) == [{"x": (101, 1, 1, 2)}]
