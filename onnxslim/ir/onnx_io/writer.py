"""Graph → ModelProtos and files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from google.protobuf.message import EncodeError

from onnxslim.collector import paused
from onnxslim.errors import ModelError
from onnxslim.files import write_atomic, write_together
from onnxslim.ir.graph import Array, DType, Graph, Node, Value
from onnxslim.ir.onnx_io.bodies import renamed
from onnxslim.ir.onnx_io.node_names import name_nodes
from onnxslim.ir.onnx_io.tensors import raw_bytes, tensor_of
from onnxslim.ir.onnx_io.types import type_proto

__all__ = ["body_proto", "node_proto", "to_bytes", "to_proto", "write"]

_LIMIT = (1 << 31) - (1 << 20)
"""A protobuf message ends at 2 GiB; what is not weights must fit into the rest."""
_EXTERNAL_FROM = 1024
_ALIGNMENT = 4096
_CHUNK = 1 << 24


def to_proto(graph: Graph, *, value_info: bool = True) -> onnx.ModelProto:
    """The model as ONNX, weights inside. `value_info=False` leaves out types of inner values."""
    return _model(graph, value_info, {})


def to_bytes(graph: Graph, *, value_info: bool = True, named: bool = False) -> bytes:
    """The file's bytes, weights inside; the same for equal graphs. ModelError over 2 GB.

    `named` gives every node a name of its own, which ONNX Runtime's fusions rely on.
    """
    _require_fitting(graph)
    model = to_proto(graph, value_info=value_info)
    if named:
        name_nodes(model)
    return _serialized(model)


def write(graph: Graph, path: str | Path, *, value_info: bool = True, external_data: bool | None = None) -> None:
    """Writes an ONNX file, atomically.

    With `external_data` (by default where the weights exceed what a file can hold), initialisers of
    1 KiB and more go to `<name>.data` beside it, page-aligned. Raises OutputError where the system
    refuses; the previous files are then untouched.
    """
    path = Path(path)
    if external_data is None:
        external_data = _size(graph.initializers()) > _LIMIT
    if not external_data:
        write_atomic(path, to_bytes(graph, value_info=value_info))
        return
    arrays = {v.id: v.array for v in graph.initializers() if v.array is not None and _is_external(v.array)}
    data = path.with_name(f"{path.name}.data")
    layout = _layout(arrays, data.name)
    model = _model(graph, value_info, layout)

    def write_data(file: BinaryIO) -> None:
        for array in arrays.values():
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            raw = raw_bytes(array)
            for start in range(0, raw.size, _CHUNK):
                file.write(raw[start : start + _CHUNK].tobytes())

    write_together({data: write_data, path: _serialized(model)})


def _serialized(model: onnx.ModelProto) -> bytes:
    try:
        data: bytes = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise ModelError(f"Graph '{model.graph.name}' does not fit into one ONNX file: {error}") from error
    return data


def _is_external(array: Array) -> bool:
    return array.nbytes >= _EXTERNAL_FROM and DType.of(array) is not DType.STRING


def _size(values: Iterable[Value]) -> int:
    return sum(v.array.nbytes for v in values if v.array is not None)


def _require_fitting(graph: Graph) -> None:
    size = _size(graph.initializers())
    if size > _LIMIT:
        raise ModelError(
            f"Graph '{graph.name}' has {size} bytes of weights, but one ONNX file holds at most {_LIMIT}; "
            "write it with external data"
        )


def _layout(arrays: Mapping[int, Array], location: str) -> dict[int, dict[str, str]]:
    layout = {}
    offset = 0
    for id, array in arrays.items():
        offset += -offset % _ALIGNMENT
        size = raw_bytes(array).size
        layout[id] = {"location": location, "offset": str(offset), "length": str(size)}
        offset += size
    return layout


@paused()
def _model(graph: Graph, value_info: bool, external: Mapping[int, Mapping[str, str]]) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(graph.header)
    model.ir_version = graph.ir_version
    for domain, version in graph.opsets.items():
        model.opset_import.add(domain=domain, version=version)
    for key, text in graph.metadata.items():
        model.metadata_props.add(key=key, value=text)
    model.functions.extend(graph.functions)
    _fill(model.graph, graph, value_info, external, ())
    return model


def body_proto(graph: Graph, outer: Collection[int]) -> onnx.GraphProto:
    """The graph as a body (If, Loop, Scan) of another. `outer`: ids of the values that the other has."""
    proto = onnx.GraphProto()
    proto.metadata_props.extend(graph.header.graph.metadata_props)
    _fill(proto, graph, True, {}, outer)
    return proto


def _fill(
    proto: onnx.GraphProto,
    graph: Graph,
    value_info: bool,
    external: Mapping[int, Mapping[str, str]],
    outer: Collection[int],
) -> None:
    proto.name = graph.name
    if graph.doc:
        proto.doc_string = graph.doc
    proto.input.extend(_info(v) for v in graph.inputs if v.id not in outer)
    proto.output.extend(_info(v) for v in graph.outputs)
    own = [v for v in graph.values() if v.id not in outer]
    outputs = {v.id for v in graph.outputs}
    for value in own:
        if value.array is not None:
            proto.initializer.append(_initializer(value, value.array, external.get(value.id)))
        if value.sparse is not None:
            twin = proto.sparse_initializer.add()
            twin.CopyFrom(value.sparse)
            twin.values.name = value.name
    for value in own if value_info else ():
        constant = value.array is not None or value.sparse is not None  # whose type its tensor says
        told = value.doc or value.metadata
        if value.id not in outputs and not graph.is_input(value) and (told or not constant):
            info = _info(value)
            if told or info.HasField("type"):
                proto.value_info.append(info)
    proto.node.extend(node_proto(graph, n) for n in graph.nodes())
    _annotate(proto, graph)


def _annotate(proto: onnx.GraphProto, graph: Graph) -> None:
    names = {v.id: v.name for v in graph.values()}
    for id, entries in graph.annotations:
        if all(key in names for key in (id, *(v for _, v in entries))):
            annotation = proto.quantization_annotation.add(tensor_name=names[id])
            for key, v in entries:
                annotation.quant_parameter_tensor_names.add(key=key, value=names[v])


def _info(value: Value) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=value.name)
    proto = type_proto(value)
    if proto.WhichOneof("value") or proto.denotation:
        info.type.CopyFrom(proto)
    if value.doc:
        info.doc_string = value.doc
    for key, text in value.metadata.items():
        info.metadata_props.add(key=key, value=text)
    return info


def _initializer(value: Value, array: Array, external: Mapping[str, str] | None) -> onnx.TensorProto:
    if external is None:
        tensor = tensor_of(value.name, array)
    else:
        tensor = onnx.TensorProto(name=value.name, data_type=int(value.dtype), dims=np.shape(array))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, text in external.items():
            tensor.external_data.add(key=key, value=text)
    if value.extra is not None:
        tensor.MergeFrom(value.extra)
    return tensor


def node_proto(graph: Graph, node: Node) -> onnx.NodeProto:
    """A node as ONNX, not to be edited; its bodies read captured values under their present names."""
    kept = graph.written(node)
    if kept is None:
        kept = _node_proto(graph, node)
        graph.keep_written(node, kept)
    return kept


def _node_proto(graph: Graph, node: Node) -> onnx.NodeProto:
    proto = onnx.NodeProto()
    if node.extra is not None:
        proto.CopyFrom(node.extra)
    proto.op_type = node.op
    for field, text in (("name", node.name), ("domain", node.domain), ("overload", node.overload)):
        if text:
            setattr(proto, field, text)
    if node.doc:
        proto.doc_string = node.doc
    proto.input.extend("" if v is None else v.name for v in graph.node_inputs(node))
    proto.output.extend("" if v is None else v.name for v in graph.node_outputs(node))
    for key, value in node.metadata.items():
        proto.metadata_props.add(key=key, value=value)
    names = {old: v.name for old, v in graph.captures(node).items() if v.name != old}
    for attribute in node.attributes.values():
        has_body = bool(names) and (attribute.HasField("g") or len(attribute.graphs) > 0)
        proto.attribute.append(renamed(attribute, names) if has_body else attribute)
    return proto
