"""TypeProto ⇄ element type and shape of a `Value`."""

from __future__ import annotations

import onnx

from onnxslim.errors import UnsupportedError
from onnxslim.graph import Dim, DType, Shape, Value

__all__ = ["element_type", "is_plain", "tensor_type", "type_proto"]


def element_type(code: int, name: str) -> DType:
    """The element type of a code in a file; UnsupportedError where no such type is known."""
    try:
        return DType(code)
    except ValueError:
        raise UnsupportedError(
            f"'{name}' has element type {code}; known are 1 to {max(DType)} of ONNX's TensorProto.DataType. "
            "Convert the tensor to one of these, or update onnxslim"
        ) from None


def tensor_type(proto: onnx.TypeProto, name: str) -> tuple[DType, Shape | None]:
    """Element type and shape that a tensor type declares; (UNDEFINED, None) for other types."""
    if not proto.HasField("tensor_type"):
        return DType.UNDEFINED, None
    tensor = proto.tensor_type
    dtype = element_type(tensor.elem_type, name)
    return dtype, tuple(_dim(d) for d in tensor.shape.dim) if tensor.HasField("shape") else None


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
    """The ONNX type of a value; empty where nothing is known."""
    kept = value.type_proto
    if kept is not None and tensor_type(kept, value.name) == (value.dtype, value.shape):
        return kept
    proto = onnx.TypeProto()
    if value.dtype is not DType.UNDEFINED or value.shape is not None:
        proto.tensor_type.elem_type = int(value.dtype)
        if value.shape is not None:
            proto.tensor_type.shape.SetInParent()
            for dim in value.shape:
                entry = proto.tensor_type.shape.dim.add()
                if isinstance(dim, str):
                    entry.dim_param = dim
                elif dim is not None:
                    entry.dim_value = dim
    return proto
