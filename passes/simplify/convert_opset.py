"""`ConvertOpset`: one version of the ONNX operators for all passes to work in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnx import version_converter

from onnxslim.errors import UnsupportedError
from onnxslim.graph import Array, Graph
from onnxslim.onnx_io import from_proto, to_proto
from onnxslim.rewrite import Context, Outcome, Pass, Refusal

__all__ = ["ConvertOpset"]

_LARGE = 1 << 12
"""Initialisers of more elements go around the converter: it copies, and reads only small ones."""

_SAME_DOWN_TO_18 = {
    "AveragePool", "Cast", "CastLike", "Constant", "ConstantOfShape", "DequantizeLinear", "Equal", "Flatten", "Identity",
    "If", "Loop", "Pad", "QuantizeLinear", "ReduceMax", "ReduceMin", "Reshape", "Resize", "Scan", "Shape", "Size",
    "Squeeze", "Transpose", "Unsqueeze", "DFT", "IsInf", "IsNaN", "ConstantOfShape", "Range", "GridSample",
}  # fmt: skip
"""Ops redefined in opsets 19 to 21 whose former meaning covers what float32 models use: the change
was in element types, or in attributes whose default is the old behaviour."""


@dataclass(frozen=True)
class ConvertOpset(Pass):
    """The same model in opset `version` of ai.onnx (IR 9): attributes that became inputs move, ops
    that were renamed or split are rewritten by onnx's version converter.

    Downwards (from 19–21) the graph stays as it is, where every op means the same in both versions.
    Other domains are not touched. Raises UnsupportedError naming op and opset where it cannot.

    Exact.
    """

    version: int = 18
    name: ClassVar[str] = "convert_opset"

    def run(self, graph: Graph, context: Context) -> Outcome:
        old = graph.opset
        if old == self.version or not old:
            return Outcome()
        if old > self.version:
            _step_down(graph, old, self.version)
        else:
            why = _convert(graph, old, self.version)
            if why is not None:
                return Outcome(refused=(Refusal(f"graph '{graph.name}'", why),))
        graph.opsets[""] = self.version
        graph.ir_version = max(min(graph.ir_version, 10), 9)
        return Outcome(1)


def _step_down(graph: Graph, old: int, version: int) -> None:
    from onnx import defs

    for node in graph.nodes():
        if node.domain:
            continue
        schema = defs.get_schema(node.op, old, "")
        if schema.since_version > version and (old > 21 or node.op not in _SAME_DOWN_TO_18 or _has_new_attribute(node.op, node.attributes, version)):
            raise UnsupportedError(
                f"{node} has its meaning of opset {schema.since_version} in a model of opset {old}, "
                f"which opset {version} cannot express: export the model with opset {version}"
            )


def _has_new_attribute(op: str, attributes: object, version: int) -> bool:
    from onnx import defs

    known = defs.get_schema(op, version, "").attributes
    assert isinstance(attributes, dict)
    return any(name not in known for name in attributes)


def _convert(graph: Graph, old: int, version: int) -> str | None:
    """Through onnx's converter, large weights held back; the graph takes over what comes out."""
    light = graph.copy()
    held: dict[str, Array] = {}
    for value in light.initializers():
        if value.array is not None and value.array.size > _LARGE and not light.is_input(value):
            held[value.name] = value.array
            light.set_array(value, None)
            light.add_input(value.name, value.dtype, value.shape)
    try:
        proto = version_converter.convert_version(to_proto(light), version)
    except Exception as error:
        raise UnsupportedError(f"Graph '{graph.name}' cannot be converted from opset {old} to {version}: {error}") from error
    converted = from_proto(proto)
    for name, array in held.items():
        twin = converted.value(name)
        converted.remove_input(twin)
        converted.set_array(twin, array)
    for value in graph.initializers():
        same = converted.find(value.name)
        if same is not None and same.array is not None:
            converted.set_role(same, value.role, value.owner)
    graph.become(converted)
    return None
