"""ModelProto ⇄ Graph: reads and writes ONNX files without losing what it does not understand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxslim.errors import ModelFormatError
from onnxslim.graph import Array, DType, Graph, Shape, Value

__all__ = ["from_proto", "read", "to_proto", "write"]


def read(path: str | Path) -> Graph:
    """Reads an ONNX file."""
    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise ModelFormatError(f"{path} is not an ONNX file: {error}") from error
    return from_proto(model)


def write(graph: Graph, path: str | Path) -> None:
    """Writes an ONNX file."""
    Path(path).write_bytes(to_proto(graph).SerializeToString(deterministic=True))


def _shape(proto: onnx.TypeProto) -> Shape | None:
    if not proto.tensor_type.HasField("shape"):
        return None
    dims = proto.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in dims)


def _array(tensor: onnx.TensorProto) -> Array:
    return numpy_helper.to_array(tensor)


def from_proto(model: onnx.ModelProto) -> Graph:
    graph = Graph(model.graph.name, ir_version=model.ir_version)
    graph.opsets = {o.domain: o.version for o in model.opset_import}
    graph.metadata = {p.key: p.value for p in model.metadata_props}
    graph.functions = list(model.functions)
    for info in model.graph.input:
        graph.add_input(info.name, DType(info.type.tensor_type.elem_type), _shape(info.type))
    for tensor in model.graph.initializer:
        value = graph.find(tensor.name) or graph.add_value(tensor.name)
        graph.set_array(value, _array(tensor))

    def named(name: str) -> Value | None:
        return (graph.find(name) or graph.add_value(name)) if name else None

    for node in model.graph.node:
        graph.add_node(
            node.op_type,
            [named(n) for n in node.input],
            [named(n) for n in node.output],
            {a.name: a for a in node.attribute},
            domain=node.domain,
            name=node.name,
        )
    for info in model.graph.value_info:
        value = graph.find(info.name)
        if value is not None:
            graph.set_type(value, DType(info.type.tensor_type.elem_type), _shape(info.type))
    for info in model.graph.output:
        value = graph.value(info.name)
        graph.set_type(value, DType(info.type.tensor_type.elem_type), _shape(info.type))
        graph.add_output(value)
    return graph


def to_proto(graph: Graph) -> onnx.ModelProto:
    model = onnx.ModelProto(ir_version=graph.ir_version)
    model.opset_import.extend(helper.make_opsetid(d, v) for d, v in graph.opsets.items())
    helper.set_model_props(model, graph.metadata)
    model.functions.extend(graph.functions)
    model.graph.name = graph.name
    for value in graph.inputs:
        model.graph.input.append(helper.make_tensor_value_info(value.name, value.dtype, value.shape))
    for value in graph.outputs:
        model.graph.output.append(helper.make_tensor_value_info(value.name, value.dtype, value.shape))
    for value in graph.initializers():
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value.array), value.name))
    for node in graph.nodes():
        proto = onnx.NodeProto(op_type=node.op, domain=node.domain, name=node.name)
        proto.input.extend("" if v is None else v.name for v in graph.node_inputs(node))
        proto.output.extend("" if v is None else v.name for v in graph.node_outputs(node))
        proto.attribute.extend(node.attributes.values())
        model.graph.node.append(proto)
    return model
