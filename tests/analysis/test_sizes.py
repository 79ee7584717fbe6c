"""Free axes, and how they get numbers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.analysis.sizes import free_axes, set_input_shapes, sized, with_sizes
from onnxslim.errors import DataError
from onnxslim.ir.graph import DType, Graph


def network() -> Graph:
    graph = Graph("net")
    x = graph.add_input("x", DType.FLOAT, ["N", 1, "H", None])
    w = graph.add_constant("w", np.ones((4, 1, 3, 3), np.float32))
    y = graph.op("Conv", x, w, name="y")
    graph.set_type(y, DType.FLOAT, ["N", 4, "h", None])
    graph.add_output(y)
    return graph


def test_free_axes_are_named_by_symbol_or_place() -> None:
    assert [str(axis) for axis in free_axes(network())] == ["N", "H", "x[3]"]


def test_sizes_give_shapes_and_what_follows_from_them() -> None:
    graph = network()
    assert sized(graph, {"H": 8, "x[3]": 9}) == {"x": ("N", 1, 8, 9)}
    twin = with_sizes(graph, {"H": 8, "x[3]": 9})
    assert twin.value("y").shape == ("N", 4, 6, 7)
    assert graph.value("y").shape == ("N", 4, "h", None)


def test_a_shape_of_another_rank_is_refused() -> None:
    with pytest.raises(DataError, match="Input 'x' has 4 axes, expected as many sizes"):
        set_input_shapes(network(), {"x": (1, 2)})
