"""The batch size of a model: another one, or any, also where an exporter wrote one into constants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from onnxslim.analysis.batch_constants import PROBE, BatchRewriter, static_sizes
from onnxslim.analysis.sizes import data_inputs, forget_inferred, set_input_shapes, unsized
from onnxslim.budget import MOST_BATCH
from onnxslim.errors import DataError, ModelError, UnsupportedError
from onnxslim.ir.graph import Dim, Graph, Role, Shape, Value
from onnxslim.ir.shapes import infer_shapes, inferred_types

__all__ = ["fixed_batch", "freed", "set_batch", "set_sizes", "with_batch"]

_ADVICE = "export the model again with a dynamic batch axis, or use the batch size it was exported with"


def with_batch(graph: Graph, batch: int, sample: Sequence[int] | None = None) -> Graph:
    """A copy with these sizes; see `set_sizes`."""
    twin = graph.copy()
    set_sizes(twin, batch, sample)
    return twin


def set_sizes(graph: Graph, batch: int, sample: Sequence[int] | None = None) -> int:
    """Gives all graph inputs `batch` on their first axis, in place, as `set_batch` does. sample: the shape of one
    sample of a graph's one input, for further axes that it leaves free."""
    if sample is not None:
        source = data_inputs(graph)[0]
        if source.shape is not None and unsized(graph, {}):
            if len(source.shape) != len(sample) + 1:
                raise DataError(f"Input '{source.name}' has {len(source.shape)} axes, got samples of {tuple(sample)}")
            fixed = [d if isinstance(d, int) else s for d, s in zip(source.shape[1:], sample)]
            set_input_shapes(graph, {source.name: (source.shape[0], *fixed)})
    return set_batch(graph, batch)


def fixed_batch(graph: Graph) -> int | None:
    """The batch size written into a model: the number on the first axis of all its inputs; None where there is none."""
    first = {value.shape[0] for value in _inputs(graph) if value.shape}
    size = next(iter(first)) if len(first) == 1 else None
    return size if isinstance(size, int) else None


def freed(graph: Graph) -> Graph:
    """A copy that takes any batch, where a size is written into the model and only that; else the graph as it is."""
    if fixed_batch(graph) is None:
        return graph
    twin = graph.copy()
    try:
        set_batch(twin, "batch")
    except UnsupportedError:
        return graph
    return twin


def _inputs(graph: Graph) -> list[Value]:
    """Those that have a batch on their first axis."""
    return [v for v in graph.inputs if v.array is None and v.role is Role.ACTIVATION and v.shape]


def set_batch(graph: Graph, batch: int | str) -> int:
    """Gives all graph inputs `batch` (a number, or a name where any may come) on their first axis, in place,
    shapes inferred anew; how many nodes had the old one in their constants.

        Reshape(x, [2, c, …])    → Reshape(x, [-1, c, …])       where x has batch 2
        Expand(x, [2, c, …])     → Expand(x, [1, c, …])         where x has the batch already
        Expand, ConstantOfShape, Resize to [2, …] → to [batch of the input, …]

    Initialisers, parameters and scalars among the inputs keep their shapes. Raises UnsupportedError
    naming the node where the model only works with the batch size it was exported with; the graph is
    then unusable.
    """
    if isinstance(batch, int) and not 1 <= batch <= MOST_BATCH:
        raise ModelError(f"The batch size must be from 1 to {MOST_BATCH:,}, got {batch}")
    inputs = _inputs(graph)
    old = {v.shape[0] for v in inputs if v.shape}
    known = [d for d in old if isinstance(d, int)]
    if known and len(old) > 1:
        shapes = ", ".join(f"'{v.name}' {list(v.shape or ())}" for v in inputs)
        raise UnsupportedError(f"Which axes are the batch is not known: the first ones of {shapes} differ; {_ADVICE}")
    before = {v.id: v.shape for v in graph.values()}
    rewritten = 0
    if len(old) == 1 and known and known[0] != batch:
        infer_shapes(graph)
        rewriter = BatchRewriter(graph, inputs, known[0])
        _forget(graph, inputs, PROBE)
        rewritten = rewriter.run()
    if isinstance(batch, int):
        _set(graph, inputs, batch)
        _refuse_other_batch(graph, before, batch)
    else:
        trial, size = graph.copy(), max([1, *known]) + 1
        _set(trial, [trial.value(v.name) for v in inputs], size)
        _refuse_other_batch(trial, before, size)
        _set(graph, inputs, batch)
        for value in graph.outputs:
            shape = before[value.id]
            if value.shape and value.shape[0] is None and shape and shape[0] in old:
                graph.set_type(value, shape=(batch, *value.shape[1:]))
    return rewritten


def _set(graph: Graph, inputs: list[Value], batch: int | str) -> None:
    _forget(graph, inputs, batch)
    infer_shapes(graph)


def _forget(graph: Graph, inputs: list[Value], batch: int | str) -> None:
    """Another batch on the inputs; other shapes are to be inferred anew, where that can be done."""
    symbols: dict[str, Dim] = {}
    for value in inputs:
        assert value.shape
        if isinstance(value.shape[0], str):
            symbols[value.shape[0]] = batch
        graph.set_type(value, shape=(batch, *value.shape[1:]))
    forget_inferred(graph, symbols)


def _refuse_other_batch(graph: Graph, before: Mapping[int, Shape | None], batch: int) -> None:
    for node in graph.nodes():
        try:
            inferred_types(graph, [node], strict=True)
        except ModelError as error:
            raise UnsupportedError(
                f"With batch {batch}, {node} cannot take its inputs: a batch size is written into the model ({error}); "
                f"{_ADVICE}"
            ) from error
        if node.op != "Reshape" or node.domain:
            continue
        source, result = graph.input(node, 0), graph.result(node)
        sizes = [_volume(v.shape) if v is not None else None for v in (source, result)]
        if source is not None and None not in sizes and sizes[0] != sizes[1]:
            raise UnsupportedError(
                f"With batch {batch}, {node} cannot reshape {source.shape} to {result.shape}: "
                f"a batch size is written into its shape; {_ADVICE}"
            )
    olds = [s[0] for v in graph.inputs if v.array is None and (s := before[v.id])]
    for value in graph.outputs:
        old, new = before[value.id], value.shape
        if new and isinstance(new[0], int) and new[0] != batch and old and old[0] in olds:
            raise UnsupportedError(
                f"Output '{value.name}' has shape {new} where the inputs have batch {batch}: "
                f"a batch size is written into the model; {_ADVICE}"
            )


def _volume(shape: Shape | None) -> int | None:
    numbers = static_sizes(shape)
    return None if numbers is None else math.prod(numbers)
