"""Files and ModelProtos → Graph."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from onnxslim.collector import paused
from onnxslim.errors import ModelError, ModelFormatError, UnsupportedError
from onnxslim.files import read_regular
from onnxslim.ir.graph import DType, Graph, Node, Value
from onnxslim.ir.onnx_io.bodies import captured_names, local_names
from onnxslim.ir.onnx_io.functions import require_no_recursion
from onnxslim.ir.onnx_io.tensors import ExternalFiles, array_of, load_sparse, load_tensors
from onnxslim.ir.onnx_io.types import element_type, is_plain, tensor_type

__all__ = ["add_node_proto", "fill_body", "from_proto", "model_file", "read"]

_OTHER_FORMATS = (
    (4, b"ORTM", "an ORT-format file; give the .onnx file it was made from"),
    (4, b"TFL3", "a TensorFlow Lite file; convert it to ONNX (tf2onnx)"),
    (0, b"PK\x03\x04", "a zip archive, such as a PyTorch checkpoint; export the model with torch.onnx.export"),
    (0, b"\x89HDF", "an HDF5 file, such as a Keras model; convert it to ONNX (tf2onnx)"),
    (0, b"\x1f\x8b", "a gzip file; unpack it"),
    (0, b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (0, b"\x80\x02", "a Python pickle, such as an old PyTorch checkpoint; export the model with torch.onnx.export"),
)
_DEEPEST = 100
"""Protobuf's own limit."""
_MODEL_FIELDS = ("ir_version", "opset_import", "metadata_props", "functions", "graph")
_NODE_FIELDS = ("input", "output", "name", "op_type", "domain", "overload", "attribute", "doc_string", "metadata_props")
_OTHER_NODE_FIELDS = [f.name for f in onnx.NodeProto.DESCRIPTOR.fields if f.name not in _NODE_FIELDS]


MODEL = "model.onnx"


def model_file(path: str | Path) -> Path:
    """The file of a model that is named: by itself, or by the folder of a run, which stands for its model.onnx.

    Raises ModelFormatError for another folder.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return path
    except ValueError:  # no path at all, which reading says
        return path
    if not (path / MODEL).is_file():
        raise ModelFormatError(
            f"Cannot read '{path}': it is a folder without a {MODEL}; give the path of an ONNX file, or the folder of "
            "a finished run"
        )
    return path / MODEL


def read(path: str | Path) -> Graph:
    """Reads an ONNX file (or the one of a run's folder); external data stays in its files, memory-mapped.

    Raises ModelFormatError where the file is not a complete ONNX model, ExternalDataError where its
    external data is missing, short or outside of its folder, UnsupportedError for unknown element types.
    """
    path = model_file(path)
    try:
        data = read_regular(path)
    except OSError as error:
        raise ModelFormatError(f"Cannot read '{path}': {error.strerror}; give the path of an ONNX file") from error
    try:
        return from_proto(_parse(data), path.parent)
    except (ModelError, UnsupportedError) as error:
        raise type(error)(f"Cannot read '{path}': {error}") from error


def _parse(data: bytes) -> onnx.ModelProto:
    if not data:
        raise ModelFormatError("expected an ONNX model, got an empty file; export or copy it again")
    for offset, magic, what in _OTHER_FORMATS:
        if data[offset : offset + len(magic)] == magic:
            raise ModelFormatError(f"expected an ONNX model, got {what}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        large = "; a file over 2 GB must keep its weights as external data" if len(data) >= 1 << 31 else ""
        raise ModelFormatError(
            f"expected an ONNX model, got {len(data)} bytes that are none, or a truncated one ({error}); "
            f"export or copy it again{large}"
        ) from error
    return model


@paused()
def from_proto(model: onnx.ModelProto, folder: str | Path | None = None) -> Graph:
    """A graph of a model, which is not changed. `folder` is where its external data lies.

    Raises ModelFormatError where it is not a complete model; see `read` for the rest.
    """
    if not model.HasField("graph") or not model.graph.output or not model.opset_import:
        missing = "graph" if not model.HasField("graph") else "outputs" if not model.graph.output else "opset"
        raise ModelFormatError(
            f"expected an ONNX model, got one without {missing}: the file is truncated or something else; "
            "export or copy it again"
        )
    versions = {opset.domain: opset.version for opset in model.opset_import}
    if not all(0 <= version < 1 << 31 for version in versions.values()):
        raise ModelFormatError(
            f"expected versions of opsets from 0 to {(1 << 31) - 1}, got {versions}; the file is damaged"
        )
    _require_sound(model)
    require_no_recursion(model.functions)
    try:
        graph = Graph(model.graph.name, ir_version=model.ir_version)
        graph.opsets = {_domain(o.domain): o.version for o in model.opset_import}
        graph.metadata = _pairs(model.metadata_props)
        graph.functions = [_copy(f) for f in model.functions]
        graph.header = _rest(model, _MODEL_FIELDS)
        _Reader(graph, ExternalFiles(None if folder is None else Path(folder))).fill(model.graph)
        graph.nodes()  # refuses cycles
    except ModelError as error:
        if type(error) is not ModelError:
            raise
        raise ModelFormatError(f"{error}; the file is damaged") from error
    return graph


def _require_sound(model: onnx.ModelProto) -> None:
    """Refuses a text field that holds other bytes, which protobuf hands out as they are, and messages nested
    deeper than protobuf itself reads: nothing that walks into bodies can then run out of stack."""
    waiting: list[tuple[Any, int]] = [(model, 0)]
    while waiting:
        message, depth = waiting.pop()
        if depth >= _DEEPEST:
            raise ModelFormatError(
                f"expected at most {_DEEPEST} messages inside one another, as deep as protobuf reads; "
                "the file is damaged, or its bodies must be nested less"
            )
        if depth == 2 and _is_plain_text(message, 2 * (_DEEPEST - depth)):
            continue
        if isinstance(message, onnx.TensorProto):  # whose data need not be looked at
            fields = onnx.TensorProto.DESCRIPTOR.fields_by_name
            entries = [(fields[n], getattr(message, n)) for n in ("name", "doc_string")]
        else:
            entries = message.ListFields()
        for field, value in entries:
            if field.type == field.TYPE_STRING:
                for text in [value] if isinstance(value, (str, bytes)) else value:
                    if not isinstance(text, str):
                        raise ModelFormatError(f"expected text in '{field.name}', got {text!r}; the file is damaged")
            elif field.type == field.TYPE_MESSAGE:
                waiting.extend((part, depth + 1) for part in (value if hasattr(value, "extend") else [value]))


def _is_plain_text(message: Any, limit: int) -> bool:
    """Whether a node or a type is too short to be nested deeply (a level takes two bytes), and ASCII throughout, so
    that its text fields are text: true of most types and many nodes, and much faster than to look at each field."""
    if not isinstance(message, (onnx.NodeProto, onnx.ValueInfoProto)):
        return False
    data = message.SerializeToString()
    return len(data) < limit and data.isascii()


def fill_body(graph: Graph, body: onnx.GraphProto) -> None:
    """Reads a body into a graph that has what it captures, and nothing else."""
    _Reader(graph, ExternalFiles(None)).fill(body)


class _Reader:
    """Builds the graph in file order, so that ids follow it."""

    def __init__(self, graph: Graph, files: ExternalFiles) -> None:
        self.graph, self.files = graph, files

    def fill(self, proto: onnx.GraphProto) -> None:
        graph = self.graph
        outer = {value.id for value in graph.values()}  # which a body captures: nothing in it describes them
        graph.doc = proto.doc_string
        graph.header.graph.metadata_props.extend(proto.metadata_props)
        self._sources(proto)
        for node in proto.node:
            self._node(node)
        for info in proto.value_info:
            value = graph.find(info.name)
            if value is not None and value.id not in outer:  # else it describes nothing of this graph
                self._describe(value, info)
        for info in proto.output:
            value = graph.find(info.name)
            if value is None:
                raise ModelFormatError(f"output '{info.name}' is neither computed nor given; the file is damaged")
            if value.id not in outer:
                self._describe(value, info)
            graph.add_output(value)
        self._annotations(proto)
        self._require_sources()

    def _sources(self, proto: onnx.GraphProto) -> None:
        for info in proto.input:
            if not info.name or self.graph.find(info.name) is not None:
                raise ModelFormatError(f"input '{info.name}' has no name, or another's; the file is damaged")
            self._describe(self.graph.add_input(info.name, *tensor_type(info.type, info.name)), info)
        for tensor in proto.initializer:
            value = self._fresh(tensor.name)
            self.graph.set_array(value, array_of(tensor, self.files))
            if tensor.doc_string or tensor.metadata_props:
                value.extra = onnx.TensorProto(
                    doc_string=tensor.doc_string or None, metadata_props=tensor.metadata_props
                )
        for sparse in proto.sparse_initializer:
            value = self._fresh(sparse.values.name)
            value.sparse = _copy(sparse)
            load_sparse(value.sparse, self.files)
            self.graph.set_type(value, element_type(sparse.values.data_type, value.name), sparse.dims)

    def _fresh(self, name: str) -> Value:
        value = self.graph.find(name)
        if not name or (value is not None and (value.array is not None or value.sparse is not None)):
            raise ModelFormatError(f"initialiser '{name}' has no name, or another's; the file is damaged")
        return value or self.graph.add_value(name)

    def _node(self, proto: onnx.NodeProto) -> None:
        if _domain(proto.domain) not in self.graph.opsets:
            raise ModelFormatError(
                f"node '{proto.name}' ({proto.op_type}): expected an opset of its domain '{proto.domain}' in the file, "
                f"got {list(self.graph.opsets)}; the file is truncated: export or copy it again"
            )
        node = add_node_proto(self.graph, proto)
        for attribute in node.attributes.values():
            if attribute.ref_attr_name:
                raise ModelFormatError(
                    f"node '{proto.name}' ({proto.op_type}): expected a value for '{attribute.name}', got a reference "
                    f"to '{attribute.ref_attr_name}', which only nodes of local functions may have; the file is damaged"
                )
            load_tensors(attribute, self.files)

    def _describe(self, value: Value, info: onnx.ValueInfoProto) -> None:
        dtype, shape = tensor_type(info.type, info.name)
        said_before = dtype is DType.UNDEFINED and shape is None and value.dtype is not DType.UNDEFINED
        if value.array is None and value.sparse is None and not (said_before and is_plain(info.type)):
            self.graph.set_type(value, dtype, shape)
            value.type_proto = None if is_plain(info.type) else _copy(info.type)
        value.doc = info.doc_string or value.doc
        value.metadata.update(_pairs(info.metadata_props))

    def _annotations(self, proto: onnx.GraphProto) -> None:
        for annotation in proto.quantization_annotation:
            value = self.graph.find(annotation.tensor_name)
            named = [(e.key, self.graph.find(e.value)) for e in annotation.quant_parameter_tensor_names]
            if value is not None and all(v is not None for _, v in named):
                self.graph.annotations.append((value.id, tuple((key, v.id) for key, v in named if v is not None)))

    def _require_sources(self) -> None:
        for value in self.graph.values():
            if not self.graph.has_source(value) and self.graph.is_used(value):
                uses = self.graph.uses(value)
                reader = str(uses[0].node) if uses else "the graph's output"
                raise ModelFormatError(f"{reader} reads '{value.name}', which nothing produces; the file is damaged")


def add_node_proto(graph: Graph, proto: onnx.NodeProto) -> Node:
    """Adds a node as the file has it; names that the graph does not have yet become new values."""

    def named(name: str) -> Value | None:
        return (graph.find(name) or graph.add_value(name)) if name else None

    twin = _copy(proto)
    texts = {"name": twin.name, "domain": twin.domain, "overload": twin.overload, "doc_string": twin.doc_string}
    for field, text in texts.items():
        if not text:
            twin.ClearField(field)  # given, but empty
    attributes = {a.name: a for a in twin.attribute}
    inputs, outputs = [named(n) for n in twin.input], [named(n) for n in twin.output]
    domain = _domain(texts["domain"])
    node = graph.add_node(twin.op_type, inputs, outputs, attributes, domain=domain, name=texts["name"])
    node.overload, node.doc = texts["overload"], texts["doc_string"]
    if twin.metadata_props:
        node.metadata = _pairs(twin.metadata_props)
    if any(len(getattr(twin, name)) for name in _OTHER_NODE_FIELDS):
        node.extra = _rest(twin, _NODE_FIELDS)
    if any(a.HasField("g") or a.graphs for a in attributes.values()):
        for name in captured_names(attributes.values()):
            value = named(name)
            assert value is not None
            graph.add_capture(node, value, name)
        graph.reserve_names(local_names(attributes.values()))
    if len(attributes) == len(twin.attribute) and domain == texts["domain"]:
        graph.keep_written(node, twin)
    return node


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _pairs(entries: Iterable[onnx.StringStringEntryProto]) -> dict[str, str]:
    return {e.key: e.value for e in entries}


def _copy(proto: Any) -> Any:
    """A message of its own, so that a small part does not keep the whole file in memory."""
    twin = type(proto)()
    twin.CopyFrom(proto)
    return twin


def _rest(proto: Any, known: tuple[str, ...]) -> Any:
    """A message with the fields that have no place elsewhere."""
    rest = type(proto)()
    for field, value in proto.ListFields():
        if field.name in known:
            continue
        if hasattr(value, "extend"):
            getattr(rest, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(rest, field.name).CopyFrom(value)
        else:
            setattr(rest, field.name, value)
    return rest
