"""`require_runs`: what is about to be written is loaded and run first, as anybody's session would."""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.analysis.precision import precision_of
from onnxslim.errors import DataError, ModelError, OnnxSlimError
from onnxslim.ir.graph import Graph
from onnxslim.ir.rewrite import Context
from onnxslim.runtime.child import Child
from onnxslim.runtime.feeds import find_feeds
from passes.quantize.expand_fake_quant import ExpandFakeQuant
from passes.simplify import for_runtime

__all__ = ["require_runs"]

_SECONDS = 60.0
_LARGEST = 1 << 31
"""Bytes of weights above which a model is not run: it may not fit into memory twice."""


def require_runs(graph: Graph, original: Graph, files: Sequence[bytes] = ()) -> str | None:
    """Runs a graph, or the files written from it (.onnx and .ort), in the installed ONNX Runtime, all of its
    optimisations on, in a process of its own; on random inputs of sizes at which it runs.

    original: what the graph was made from. Raises ModelError where that runs and the graph, or a file, does not:
    nothing should be written then. Returns why it could not be tried, and None where it runs.
    """
    if _weights(graph) > _LARGEST:
        return "It was not run before it was written: its weights are larger than 2 GB."
    try:
        runnable = _runnable(graph)
    except OnnxSlimError as error:
        return f"It was not run before it was written: {error}"
    as_it_is = runnable is graph
    with Child(seconds=_SECONDS) as child:
        try:
            for model in files if files and as_it_is else (runnable,):
                child.load(model, guarded=False, fuse_qdq=as_it_is)
                find_feeds(runnable, child, loaded=True, seconds=_SECONDS)
        except DataError as error:
            return f"It was not run before it was written: {error}"
        except OnnxSlimError as error:
            return _blamed(error, original, child)
    return None


def _blamed(error: OnnxSlimError, original: Graph, child: Child) -> str:
    """A note where the original does not run either."""
    try:
        sample = find_feeds(_runnable(original), child, seconds=_SECONDS)[0]
    except OnnxSlimError as why:
        return f"It was not run before it was written, because the model it was made from does not run here: {why}"
    raise ModelError(
        f"Nothing was written: this ONNX Runtime does not run the result, and does run the model it was made from "
        f"(on {sample}). This is a fault of onnxslim; please report it with the model: {error}"
    ) from error


def _runnable(graph: Graph) -> Graph:
    """The graph itself where this ONNX Runtime reads it; else a copy with FakeQuant expanded, in an opset that it
    reads."""
    readable = for_runtime(graph)
    if precision_of(readable).kind != "fake-quant":
        return readable
    expanded = readable.copy()
    ExpandFakeQuant().run(expanded, Context())
    return expanded


def _weights(graph: Graph) -> int:
    return sum(value.array.nbytes for value in graph.initializers() if value.array is not None)
