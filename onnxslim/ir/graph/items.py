"""What a graph consists of: `Node`s (an op application), `Value`s (a tensor), and their types."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from onnxslim.errors import ModelError

__all__ = [
    "CAPTURE",
    "Array",
    "DType",
    "Dim",
    "Node",
    "Role",
    "Shape",
    "Use",
    "Value",
    "attribute",
    "shapes_agree",
    "type_name",
]

Array: TypeAlias = npt.NDArray[Any]
Dim: TypeAlias = int | str | None
Shape: TypeAlias = tuple[Dim, ...]

CAPTURE = 1 << 20
"""First slot of the values that an If/Loop/Scan body captures from outside."""


class DType(IntEnum):
    """ONNX element types (TensorProto.DataType)."""

    UNDEFINED = 0
    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    UINT16 = 4
    INT16 = 5
    INT32 = 6
    INT64 = 7
    STRING = 8
    BOOL = 9
    FLOAT16 = 10
    DOUBLE = 11
    UINT32 = 12
    UINT64 = 13
    COMPLEX64 = 14
    COMPLEX128 = 15
    BFLOAT16 = 16
    FLOAT8E4M3FN = 17
    FLOAT8E4M3FNUZ = 18
    FLOAT8E5M2 = 19
    FLOAT8E5M2FNUZ = 20
    UINT4 = 21
    INT4 = 22
    FLOAT4E2M1 = 23
    FLOAT8E8M0 = 24
    UINT2 = 25
    INT2 = 26

    @classmethod
    def of(cls, array: Array) -> DType:
        """The ONNX type of a numpy array (object arrays are strings)."""
        return _code(array.dtype)

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy type that holds this one (ml_dtypes for bfloat16, float8 and sub-byte types)."""
        return _numpy(self)

    @property
    def is_float(self) -> bool:
        return self in (DType.FLOAT, DType.FLOAT16, DType.DOUBLE, DType.BFLOAT16)


@cache
def _code(dtype: np.dtype[Any]) -> DType:
    return DType.STRING if dtype.kind in "OSU" else DType(helper.np_dtype_to_tensor_dtype(dtype))


@cache
def _numpy(dtype: DType) -> np.dtype[Any]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(int(dtype)))


class Role(Enum):
    """What a value is for; state that follows a parameter also names it as `owner`."""

    ACTIVATION = "activation"
    CONSTANT = "constant"
    PARAMETER = "parameter"
    STATISTIC = "statistic"
    SCALE = "scale"
    MOMENT = "moment"
    GRADIENT = "gradient"


@dataclass(slots=True, eq=False, repr=False)
class Value:
    """A tensor: `shape` has ints, symbols or None per axis, and is None where the rank is unknown.

    `array` is the payload of an initialiser (read-only, possibly memory-mapped), `sparse` that of a
    sparse one, which is only carried through.
    """

    id: int
    name: str
    dtype: DType = DType.UNDEFINED
    shape: Shape | None = None
    array: Array | None = None
    role: Role = Role.ACTIVATION
    owner: str = ""
    type_proto: onnx.TypeProto | None = None  # kept for sequences, optionals and maps
    doc: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    sparse: onnx.SparseTensorProto | None = None
    extra: onnx.TensorProto | None = None  # an initialiser's own doc string and metadata, carried through

    def __repr__(self) -> str:
        axes = "?" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"<value '{self.name}' ({self.dtype.name}[{axes}])>"

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape, every axis known; raises ModelError naming the value otherwise."""
        if self.shape is None or not all(isinstance(d, int) for d in self.shape):
            raise ModelError(f"Value '{self.name}' needs a static shape, but has {self.shape}")
        return tuple(d for d in self.shape if isinstance(d, int))


@dataclass(slots=True, eq=False, repr=False)
class Node:
    """One application of an op. `inputs` and `outputs` are found through the graph.

    origin: the node that this one was written out of, as messages name it; empty for one of the user's own.
    """

    id: int
    op: str
    name: str = ""
    domain: str = ""
    attributes: dict[str, onnx.AttributeProto] = field(default_factory=dict)
    arity: tuple[int, int] = (0, 0)  # slots, empty ones included
    doc: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    overload: str = ""
    extra: onnx.NodeProto | None = None  # fields that have no place here, carried through
    origin: str = ""

    def attr(self, name: str, default: Any = None) -> Any:
        """The attribute as a Python value (bytes decoded to str where they are text)."""
        proto = self.attributes.get(name)
        if proto is None:
            return default
        value = helper.get_attribute_value(proto)
        if isinstance(value, bytes):
            return value.decode("utf-8", "surrogateescape")
        if isinstance(value, list) or type(value).__name__ == "RepeatedScalarContainer":
            return [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else v for v in value]
        return value

    @property
    def kind(self) -> str:
        """The op as messages and targets name it: `Relu`, `com.microsoft.Gelu`."""
        return f"{self.domain}.{self.op}" if self.domain else self.op

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        return f"node '{self.name}' ({self.kind})"


class Use(NamedTuple):
    """A place that reads a value."""

    node: Node
    slot: int


def attribute(name: str, value: Any) -> onnx.AttributeProto:
    """A Python value as an ONNX attribute; one that is an attribute already as it is."""
    if isinstance(value, onnx.AttributeProto):
        return value
    return helper.make_attribute(name, value)


def shapes_agree(a: Shape, b: Shape) -> bool:
    """Whether two shapes may be of one tensor: as many axes, and no two numbers that differ."""
    return len(a) == len(b) and all(not isinstance(x, int) or not isinstance(y, int) or x == y for x, y in zip(a, b))


def type_name(dtype: DType, shape: Shape | None) -> str:
    """FLOAT[batch, 3]; `?` for what is not known."""
    return f"{dtype.name}[{'?' if shape is None else ', '.join('?' if d is None else str(d) for d in shape)}]"
