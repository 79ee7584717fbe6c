"""TensorProto ⇄ numpy, byte for byte; external data stays in its file, memory-mapped."""

from __future__ import annotations

import math
import os
import stat
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxslim.errors import ExternalDataError, ModelFormatError
from onnxslim.ir.graph import Array, DType
from onnxslim.ir.onnx_io.bodies import bodies_of
from onnxslim.ir.onnx_io.types import element_type

__all__ = ["ExternalFiles", "array_of", "load_sparse", "load_tensors", "raw_bytes", "tensor_of"]

_BITS = {
    DType.UINT4: 4,
    DType.INT4: 4,
    DType.FLOAT4E2M1: 4,
    DType.UINT2: 2,
    DType.INT2: 2,
}
_FIELDS = {DType.FLOAT: "float_data", DType.DOUBLE: "double_data", DType.INT64: "int64_data"}
"""Where elements lie one by one and as they are."""


class ExternalFiles:
    """The external data files of one model, each mapped once.

    Only files in the model's own folder (or below) are opened, links followed before that is
    judged: a model must not be able to name any file of the system.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else Path(os.path.realpath(folder))
        self._maps: dict[Path, Array] = {}

    def bytes_of(self, tensor: onnx.TensorProto, expected: int) -> Array:
        """The tensor's bytes, uint8 `[expected]`, a view of the mapped file."""
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        what = f"External data of tensor '{tensor.name}' ('{location}')"
        numbers = {key: entries.get(key, default) for key, default in (("offset", "0"), ("length", str(expected)))}
        if not all(n.isascii() and n.isdigit() for n in numbers.values()):
            raise ExternalDataError(f"{what}: offset and length must be numbers, got {numbers}; export the model again")
        offset, length = int(numbers["offset"]), int(numbers["length"])
        if length != expected:
            raise ExternalDataError(
                f"{what}: expected {expected} bytes for shape {list(tensor.dims)}, but its length is given as "
                f"{length}; model and data file do not belong together: export the model again"
            )
        path = self._resolve(location, what)
        data = self._open(path, what)
        if offset + length > data.size:
            raise ExternalDataError(
                f"{what}: expected {length} bytes from byte {offset}, but '{path}' has {data.size} bytes; "
                "copy the complete file beside the model"
            )
        return data[offset : offset + length]

    def _resolve(self, location: str, what: str) -> Path:
        if self._folder is None:
            raise ExternalDataError(f"{what}: the model was given without its folder; read it from its file instead")
        if not location or "\0" in location:
            raise ExternalDataError(f"{what}: expected a file name; export the model again")
        if location.startswith("/") or PureWindowsPath(location).anchor:
            raise ExternalDataError(f"{what}: expected a path relative to the model's folder, got an absolute one")
        path = Path(os.path.realpath(self._folder / location))
        if not path.is_relative_to(self._folder):
            raise ExternalDataError(
                f"{what}: it leads to '{path}', outside of the model's folder '{self._folder}'; "
                "put model and data into one folder, without links out of it"
            )
        return path

    def _open(self, path: Path, what: str) -> Array:
        if path not in self._maps:
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise ExternalDataError(f"{what}: '{path}' is not a regular file")
                empty = status.st_size == 0  # which cannot be mapped
                self._maps[path] = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")
            except OSError as error:
                raise ExternalDataError(
                    f"{what}: cannot open '{path}': {error.strerror}; copy the data file beside the model"
                ) from error
        return self._maps[path]


def array_of(tensor: onnx.TensorProto, files: ExternalFiles) -> Array:
    """The tensor's content: read-only, mapped where it is external. Strings are an object array of
    bytes; sub-byte types are unpacked, one element a byte. Raises ModelFormatError where dims and
    data do not agree."""
    dtype = element_type(tensor.data_type, tensor.name)
    dims = tuple(tensor.dims)
    if dtype is DType.UNDEFINED or min(dims, default=0) < 0:
        raise ModelFormatError(f"Tensor '{tensor.name}' has type {dtype.name} and dims {dims}; the file is damaged")
    if tensor.HasField("segment"):
        raise ModelFormatError(f"Tensor '{tensor.name}' is a segment of a larger one; expected it whole: join them")
    if dtype is DType.STRING:
        return _strings(tensor, dims)
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    if not external and not tensor.HasField("raw_data"):
        try:
            elements = getattr(tensor, _FIELDS[dtype]) if dtype in _FIELDS else ()
            if len(elements) == math.prod(dims):
                return np.array(elements, dtype.numpy).reshape(dims)
            return np.asarray(numpy_helper.to_array(tensor))
        except (ValueError, TypeError, OverflowError) as error:
            raise ModelFormatError(
                f"Tensor '{tensor.name}': expected {math.prod(dims)} elements for dims {dims}: {error}; "
                "the file is damaged or truncated"
            ) from error
    expected = (math.prod(dims) * _BITS.get(dtype, 8 * dtype.numpy.itemsize) + 7) // 8
    raw = files.bytes_of(tensor, expected) if external else np.frombuffer(tensor.raw_data, np.uint8)
    if raw.size != expected:
        raise ModelFormatError(
            f"Tensor '{tensor.name}': expected {expected} bytes for dims {dims} of {dtype.name}, got {raw.size}; "
            "the file is damaged or truncated"
        )
    if dtype in _BITS:
        packed = onnx.TensorProto(name=tensor.name, data_type=int(dtype), dims=dims, raw_data=raw.tobytes())
        return np.asarray(numpy_helper.to_array(packed))
    try:
        return raw.view(_stored(dtype)).reshape(dims)
    except ValueError as error:  # more axes than numpy has, or an impossible one beside a 0
        raise ModelFormatError(f"Tensor '{tensor.name}' has impossible dims {dims}: {error}") from error


@cache
def _stored(dtype: DType) -> np.dtype[Any]:
    """The numpy type of an element's bytes in a file."""
    return dtype.numpy.newbyteorder("<")


def _strings(tensor: onnx.TensorProto, dims: tuple[int, ...]) -> Array:
    if len(tensor.string_data) != math.prod(dims):
        raise ModelFormatError(
            f"Tensor '{tensor.name}': expected {math.prod(dims)} strings for dims {dims}, "
            f"got {len(tensor.string_data)}; the file is damaged or truncated"
        )
    flat = np.empty(len(tensor.string_data), object)
    flat[:] = list(tensor.string_data)
    return flat.reshape(dims)


def tensor_of(name: str, array: Array) -> onnx.TensorProto:
    """A tensor that holds the array's bytes as raw data (strings: as strings)."""
    dtype = DType.of(array)
    tensor = onnx.TensorProto(name=name, data_type=int(dtype), dims=array.shape)
    if dtype is DType.STRING:
        tensor.string_data.extend(s.encode() if isinstance(s, str) else bytes(s) for s in array.ravel().tolist())
    else:
        tensor.raw_data = raw_bytes(array).tobytes()
    return tensor


def raw_bytes(array: Array) -> Array:
    """The bytes of a numeric array as ONNX stores them, uint8 `[n]`; a view where that is possible."""
    if DType.of(array) in _BITS:
        packed = numpy_helper.from_array(np.ascontiguousarray(array))
        return np.frombuffer(packed.raw_data, np.uint8)
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.astype(flat.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def load_tensors(attribute: onnx.AttributeProto, files: ExternalFiles) -> None:
    """Looks at the tensors of an attribute, those of subgraph bodies included, as `array_of` does, and loads what
    is external into it: the attribute may then be written into any folder."""
    if attribute.HasField("t"):
        _load(attribute.t, files)
    for tensor in attribute.tensors:
        _load(tensor, files)
    if attribute.HasField("sparse_tensor"):
        load_sparse(attribute.sparse_tensor, files)
    for sparse in attribute.sparse_tensors:
        load_sparse(sparse, files)
    for body in bodies_of([attribute]):
        for tensor in body.initializer:
            _load(tensor, files)
        for sparse in body.sparse_initializer:
            load_sparse(sparse, files)
        for node in body.node:
            for inner in node.attribute:
                load_tensors(inner, files)


def load_sparse(sparse: onnx.SparseTensorProto, files: ExternalFiles) -> None:
    """Brings in what a sparse tensor keeps outside: its values and their places."""
    _load(sparse.values, files)
    _load(sparse.indices, files)


def _load(tensor: onnx.TensorProto, files: ExternalFiles) -> None:
    array = array_of(tensor, files)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raw = raw_bytes(array).tobytes()
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = raw
