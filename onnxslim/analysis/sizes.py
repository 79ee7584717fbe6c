"""The free axes of a model's inputs: which there are, and how they are given numbers.

An exporter leaves an axis free by a symbol (`height`) or by nothing. A symbol is a hint: axes of one name need not be
equal, and many exporters write `?` everywhere. Sizes are therefore kept axis by axis; a symbol that is given a number
gives it to all axes of its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxslim.errors import DataError
from onnxslim.ir.graph import Dim, Graph, Shape, Value
from onnxslim.ir.shapes import has_rule, infer_shapes

__all__ = [
    "FreeAxis",
    "data_inputs",
    "forget_inferred",
    "free_axes",
    "only_data_input",
    "placed",
    "set_input_shapes",
    "sized",
    "sizes_at",
    "unsized",
    "with_sizes",
]


@dataclass(frozen=True)
class FreeAxis:
    """An axis of an input without a number. `str` is how options name it: its symbol, or `input[axis]`."""

    input: str
    axis: int
    symbol: str | None

    def __str__(self) -> str:
        return self.place if self.symbol is None else self.symbol

    @property
    def place(self) -> str:
        """`input[axis]`."""
        return f"{self.input}[{self.axis}]"


def data_inputs(graph: Graph) -> list[Value]:
    """The inputs that must be fed: initialisers among the inputs have a value of their own."""
    return [value for value in graph.inputs if value.array is None]


def only_data_input(graph: Graph) -> Value:
    """The one input of a model that the data feed; DataError where there are several or none."""
    inputs = data_inputs(graph)
    if len(inputs) != 1:
        names = ", ".join(f"'{v.name}'" for v in inputs) or "none"
        raise DataError(f"Graph '{graph.name}': expected one input to feed images to, got {names}")
    return inputs[0]


def free_axes(graph: Graph) -> list[FreeAxis]:
    """Of all inputs that must be fed, in order; inputs of unknown rank have none to name."""
    return [
        FreeAxis(value.name, axis, dim if isinstance(dim, str) else None)
        for value in data_inputs(graph)
        for axis, dim in enumerate(value.shape or ())
        if not isinstance(dim, int)
    ]


def sized(graph: Graph, sizes: Mapping[str, int]) -> dict[str, Shape]:
    """The shapes of the inputs, by name, with numbers for the axes that `sizes` names: by symbol, or as `input[axis]`.

    Raises DataError where a name is of no free axis, or a size is below 1.
    """
    free = free_axes(graph)
    for name, size in sizes.items():
        if name not in {name for axis in free for name in (str(axis), axis.place)}:
            known = ", ".join(dict.fromkeys(map(str, free))) if free else "none: all sizes are written into the model"
            raise DataError(f"size {name}={size}: no input has a free axis of that name; free are: {known}")
        if type(size) is not int or size < 1:  # True is an int
            raise DataError(f"size {name}={size}: expected a whole number of at least 1")
    given = {(a.input, a.axis): sizes.get(a.place, sizes.get(str(a))) for a in free}
    shapes: dict[str, Shape] = {}
    for value in data_inputs(graph):
        if value.shape is not None:
            found = [given.get((value.name, axis)) for axis in range(len(value.shape))]
            shapes[value.name] = tuple(dim if size is None else size for dim, size in zip(value.shape, found))
    return shapes


def placed(graph: Graph, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes axis by axis, by `input[axis]`; see `sized`."""
    shapes = sized(graph, sizes)
    found = {axis.place: shapes[axis.input][axis.axis] for axis in free_axes(graph)}
    return {place: size for place, size in found.items() if isinstance(size, int)}


def with_sizes(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """A copy whose free axes have the given numbers, all shapes inferred anew; see `sized`."""
    twin = graph.copy()
    set_input_shapes(twin, sized(twin, sizes))
    return twin


def sizes_at(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The sizes, as options give them, at which the inputs have these shapes; of first axes, the batch, none."""
    return {
        axis.place: shapes[axis.input][axis.axis]
        for axis in free_axes(graph)
        if axis.axis > 0 and axis.input in shapes and len(shapes[axis.input]) > axis.axis
    }


def unsized(graph: Graph, sizes: Mapping[str, int]) -> list[FreeAxis]:
    """The free axes, but for the batch on first axes, that `sizes` leaves free."""
    return [axis for axis in free_axes(graph) if axis.axis > 0 and str(axis) not in sizes and axis.place not in sizes]


def set_input_shapes(graph: Graph, shapes: Mapping[str, Sequence[Dim]]) -> None:
    """Gives inputs other shapes of the same rank, in place; all other shapes are inferred anew.

    Values behind ops that inference knows nothing of keep what is declared of them, with the new size for a symbol
    where all its axes got the same.
    """
    found: dict[str, set[Dim]] = {}
    for name, shape in shapes.items():
        value = graph.value(name)
        if value.shape is not None and len(value.shape) != len(shape):
            raise DataError(f"Input '{name}' has {len(value.shape)} axes, expected as many sizes, got {tuple(shape)}")
        for old, new in zip(value.shape or (), shape):
            if isinstance(old, str):
                found.setdefault(old, set()).add(new)
        graph.set_type(value, shape=tuple(shape))
    symbols = {symbol: next(iter(sizes)) for symbol, sizes in found.items() if len(sizes) == 1}
    forget_inferred(graph, symbols)
    infer_shapes(graph)


def forget_inferred(graph: Graph, symbols: Mapping[str, Dim]) -> None:
    """Clears the shapes that inference can find again; in the others, symbols get their sizes."""
    for value in graph.values():
        if value.array is not None or value.shape is None or graph.is_input(value):
            continue
        producer = graph.producer(value)
        if producer is not None and not has_rule(graph, producer):
            graph.set_type(value, shape=[symbols.get(d, d) if isinstance(d, str) else d for d in value.shape])
        else:
            graph.clear_shape(value)
