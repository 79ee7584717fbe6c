"""A model as the installed ONNX Runtime reads it: itself, or a copy in an older opset or file format."""

from __future__ import annotations

from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Graph
from onnxslim.runtime.probe import newest_read
from passes.quantize.expand_fake_quant import ExpandFakeQuant
from passes.simplify.convert_opset import ConvertOpset
from passes.simplify.inline_functions import InlineFunctions

__all__ = ["for_runtime", "runnable"]


def for_runtime(graph: Graph, newest: tuple[int, int] | None = None) -> Graph:
    """The graph where this ONNX Runtime reads its opset and IR version, else a copy converted down.

    newest: opset and IR version that are read; by default, what the installation says.
    Raises UnsupportedError naming op, node and opset where the older opset cannot say it.
    """
    opset, ir = newest or newest_read()
    if graph.opset <= opset and graph.ir_version <= ir:
        return graph
    twin = graph.copy()
    if graph.opset > opset:
        try:
            InlineFunctions()(twin)
            ConvertOpset()(twin)
        except UnsupportedError as error:
            raise UnsupportedError(
                f"This ONNX Runtime reads opsets up to {opset}, and an older one cannot say this: {error}, or install "
                "a newer onnxruntime"
            ) from error
    twin.ir_version = min(twin.ir_version, ir)
    return twin


def runnable(graph: Graph) -> Graph:
    """A copy in which FakeQuant is expanded, as the installed ONNX Runtime reads it."""
    twin = graph.copy()
    ExpandFakeQuant()(twin)
    return for_runtime(twin)
