"""TypeProto ⇄ element type and shape of a `Value`."""

from __future__ import annotations

from functools import lru_cache

import onnx

from onnxslim.errors import UnsupportedError
from onnxslim.ir.graph import Dim, DType, Shape, Value

__all__ = ["element_type", "is_plain", "tensor_type", "type_proto"]

_CODES = {int(dtype): dtype for dtype in DType}
_KEPT = 4096
"""Types that are kept: a model has few, and asks for each many times."""


def element_type(code: int, name: str) -> DType:
    """The element type of a code in a file; UnsupportedError where no such type is known."""
    try:
        return _CODES[code]
    except KeyError:
        raise UnsupportedError(
            f"'{name}' has element type {code}; known are 1 to {max(DType)} of ONNX's TensorProto.DataType. "
            "Convert the tensor to one of these, or update onnxslim"
        ) from None


def tensor_type(proto: onnx.TypeProto, name: str) -> tuple[DType, Shape | None]:
    """Element type and shape that a tensor type declares; (UNDEFINED, None) for other types."""
    code, shape = _declared(proto.SerializeToString())
    return element_type(code, name), shape


@lru_cache(_KEPT)
def _declared(data: bytes) -> tuple[int, Shape | None]:
    proto = onnx.TypeProto.FromString(data)
    if not proto.HasField("tensor_type"):
        return 0, None
    tensor = proto.tensor_type
    return tensor.elem_type, tuple(_dim(d) for d in tensor.shape.dim) if tensor.HasField("shape") else None


def _dim(proto: onnx.TensorShapeProto.Dimension) -> Dim:
    if proto.HasField("dim_value"):
        return proto.dim_value if proto.dim_value >= 0 else None  # some exporters write -1 for unknown
    return proto.dim_param or None


def is_plain(proto: onnx.TypeProto) -> bool:
    """Whether element type and shape say all there is: no sequence, map or denotation."""
    if not proto.WhichOneof("value"):
        return True
    denoted = proto.denotation or any(d.denotation for d in proto.tensor_type.shape.dim)
    return proto.HasField("tensor_type") and not denoted


def type_proto(value: Value) -> onnx.TypeProto:
    """The ONNX type of a value, not to be edited; empty where nothing is known."""
    kept = value.type_proto
    if kept is not None and tensor_type(kept, value.name) == (value.dtype, value.shape):
        return kept
    return _tensor_type(value.dtype, value.shape)


@lru_cache(_KEPT)
def _tensor_type(dtype: DType, shape: Shape | None) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    if dtype is not DType.UNDEFINED or shape is not None:
        proto.tensor_type.elem_type = int(dtype)
        if shape is not None:
            proto.tensor_type.shape.SetInParent()
            for dim in shape:
                entry = proto.tensor_type.shape.dim.add()
                if isinstance(dim, str):
                    entry.dim_param = dim
                elif dim is not None:
                    entry.dim_value = dim
    return proto
