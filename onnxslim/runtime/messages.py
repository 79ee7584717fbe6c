"""Messages between processes: a length, as much JSON, and the blobs that it counts. Nothing in them is code.

Arrays are sent as names, types and shapes in the JSON, and their bytes as blobs.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, TypeAlias

import numpy as np

from onnxslim.errors import ModelError, OnnxSlimError, UnsupportedError
from onnxslim.ir.graph import Array, DType

__all__ = [
    "Blobs",
    "Head",
    "arrays_from",
    "arrays_to",
    "error_head",
    "from_bytes",
    "raise_error",
    "receive",
    "send",
    "to_bytes",
]

Head: TypeAlias = dict[str, Any]
"""What JSON holds."""

Blobs: TypeAlias = "Sequence[bytes | memoryview]"


def send(pipe: IO[bytes], head: Head, blobs: Blobs) -> None:
    """Writes a message, and flushes."""
    text = json.dumps({**head, "blobs": [len(blob) for blob in blobs]}).encode()
    pipe.write(struct.pack("<Q", len(text)))
    pipe.write(text)
    for blob in blobs:
        pipe.write(blob)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[Head, list[bytes]]:
    """Reads a message; EOFError where the pipe ends before it does."""
    (size,) = struct.unpack("<Q", _exactly(pipe, 8))
    head: Head = json.loads(_exactly(pipe, size))
    return head, [_exactly(pipe, length) for length in head.pop("blobs")]


def to_bytes(head: Head, blobs: Blobs) -> bytes:
    """A message as one piece, for what takes bytes and not a pipe."""
    pipe = io.BytesIO()
    send(pipe, head, blobs)
    return pipe.getvalue()


def from_bytes(data: bytes) -> tuple[Head, list[bytes]]:
    """The message that `to_bytes` made."""
    return receive(io.BytesIO(data))


def error_head(error: OnnxSlimError) -> Head:
    """An error of ours as a message; `raise_error` raises it on the other side."""
    return {"error": type(error).__name__, "message": str(error)}


def raise_error(head: Head) -> None:
    """Raises the error that a message is, where it is one, as it was raised there."""
    if "error" in head:
        kinds = {kind.__name__: kind for kind in _kinds(OnnxSlimError)}
        raise kinds.get(head["error"], ModelError)(head["message"])


def arrays_to(arrays: Mapping[str, Any]) -> tuple[list[list[Any]], list[bytes | memoryview]]:
    """Names, types and shapes; and the bytes of each array. Texts are JSON; elements of a sequence are called
    `name[0]`, `name[1]`, …"""
    head: list[list[Any]] = []
    blobs: list[bytes | memoryview] = []
    for name, array in arrays.items():
        if isinstance(array, list):
            inner, more = arrays_to({f"{name}[{i}]": item for i, item in enumerate(array)})
            head, blobs = head + inner, blobs + more
            continue
        if not isinstance(array, np.ndarray):
            raise UnsupportedError(
                f"Output '{name}' is a {type(array).__name__}, expected a tensor or a sequence of them"
            )
        dtype = DType.of(array)
        head.append([name, int(dtype), list(array.shape)])
        if dtype is DType.STRING:
            blobs.append(json.dumps([str(item) for item in array.reshape(-1).tolist()]).encode())
        else:
            blobs.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return head, blobs


def arrays_from(head: Sequence[Sequence[Any]], blobs: Sequence[bytes]) -> dict[str, Array]:
    """The arrays that `arrays_to` took apart."""
    found = {}
    for (name, code, shape), blob in zip(head, blobs, strict=True):
        if DType(code) is DType.STRING:
            found[name] = np.array(json.loads(blob), object).reshape(shape)
        else:
            found[name] = np.frombuffer(bytearray(blob), DType(code).numpy).reshape(shape)
    return found


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _kinds(root: type[OnnxSlimError]) -> Iterator[type[OnnxSlimError]]:
    """The whole tree of errors."""
    yield root
    for kind in root.__subclasses__():
        yield from _kinds(kind)
