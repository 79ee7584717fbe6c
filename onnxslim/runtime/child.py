"""`Child`: ONNX Runtime in a process of its own, so that a model that kills the process kills only that one.

ONNX Runtime divides by zero on pools that shrink to nothing, and can be made to read where it must not. What is tried
(sizes at which a model may not run) or comes from a stranger is therefore run in a child:

    with Child() as child:
        child.load(graph)
        outputs = child.run({"x": array})  # raises what `Session` raises; CrashError where the process died

The child sees this installation and nothing that lies in the current folder. It is started when it is first needed,
and again after it died.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx

from onnxslim.errors import CrashError, ModelError, OnnxSlimError, UnsupportedError
from onnxslim.ir.graph import Array, DType, Graph
from onnxslim.ir.onnx_io import read, to_bytes, write
from onnxslim.runtime.isolated import isolated
from onnxslim.runtime.session import Model, Session, model_name, require_shallow

__all__ = ["Child", "serve"]

_SERVE = "from onnxslim.runtime.child import serve\nserve()"
_EMBED_LIMIT = 1 << 28
"""A model of more weights than this is handed over as a file."""


class Child:
    """One model at a time, in a process of its own.

    threads: inside an op. seconds: how long loading and running may take together before the process is ended.
    memory: bytes that the process may have, where the system can hold it to that (not on Windows).
    """

    def __init__(self, *, threads: int = 1, seconds: float | None = None, memory: int | None = None) -> None:
        self._threads, self._seconds, self._memory = threads, seconds, memory
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._head: dict[str, Any] = {}
        self._data = b""
        self._name = "the model"
        self._sent = False

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def load(self, model: Model, *, optimize: bool = True, fuse_qdq: bool = True, guarded: bool = True) -> None:
        """The model that is run from now on; see `Session` for the options. It is sent with the first run."""
        require_shallow(model)
        name = model_name(model)
        options = {"optimize": optimize, "fuse_qdq": fuse_qdq, "guarded": guarded}
        head: dict[str, Any] = {"threads": self._threads, **options, "name": name}
        if isinstance(model, Graph) and _weights(model) > _EMBED_LIMIT:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="onnxslim-")
            path = Path(self._folder.name) / "model.onnx"
            write(model, path, external_data=True)
            head, data = {**head, "path": str(path)}, b""
        elif isinstance(model, Graph):
            data = to_bytes(model, named=True)
        else:
            data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
        if (head, data) == (self._head, self._data) and "path" not in head:
            return
        self._head, self._data, self._name, self._sent = head, data, name, False

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """As `Session.run`. Elements of a sequence come as `name[0]`, `name[1]`, …

        Raises CrashError where the process died or took longer than its `seconds`.
        """
        process = self._started()
        late = threading.Event()
        timer = None if self._seconds is None else threading.Timer(self._seconds, _end, (process, late))
        if timer is not None:
            timer.daemon = True
            timer.start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not self._sent:
                _send(process.stdin, {"load": self._head}, [self._data])
                _answer(process.stdout)
                self._sent = True
            head, blobs = _packed(feeds)
            _send(process.stdin, {"run": head, "outputs": None if outputs is None else list(outputs)}, blobs)
            return _unpacked(*_answer(process.stdout))
        except (EOFError, OSError):
            raise CrashError(self._obituary(late.is_set())) from None
        finally:
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """Ends the process; the next run starts another."""
        process, self._process, self._sent = self._process, None, False
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # it died before it read all
                        pipe.close()
            process.kill()
            process.wait()
        if self._messages is not None:
            self._messages.close()
            self._messages = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
            self._head, self._data = {}, b""

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
            self._process = subprocess.Popen(
                isolated(_SERVE, str(self._memory or 0)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._messages,
                start_new_session=True,  # an interruption is for this process, which then ends that one
            )
        return self._process

    def _obituary(self, late: bool) -> str:
        """How the process ended; it is then cleared away."""
        process = self._process
        assert process is not None
        code = process.wait()
        self._messages.seek(0)
        said = self._messages.read().decode("utf-8", "replace").strip().splitlines()
        folder, self._folder = self._folder, None
        kept = self._head, self._data
        self.close()
        self._folder, (self._head, self._data) = folder, kept
        if late:
            return f"ONNX Runtime was still busy with {self._name} after {self._seconds:g} s, and was ended"
        last = f": {said[-1][:300]}" if said else ""
        return f"ONNX Runtime died with {self._name} ({_death(code)}){last}"


def serve() -> None:
    """What the child does: models in, outputs out, until the pipe is closed. Native code that prints does not disturb
    it: the pipe gets a descriptor of its own."""
    memory = int(sys.argv[1])
    if memory:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    session: Session | None = None
    while True:
        try:
            head, blobs = _receive(source)
        except EOFError:
            return
        try:
            if "load" in head:
                session = None  # before the next one takes memory
                session = _opened(head["load"], blobs[0])
                _send(target, {"done": []}, [])
            else:
                assert session is not None
                names, arrays = _packed(session.run(_unpacked({"done": head["run"]}, blobs), head["outputs"]))
                _send(target, {"done": names}, arrays)
        except OnnxSlimError as error:
            _send(target, {"error": type(error).__name__, "message": str(error)}, [])
        except MemoryError:
            _send(target, {"error": "ModelError", "message": "The model needs more memory than there is"}, [])


def _opened(head: dict[str, Any], data: bytes) -> Session:
    path = head.pop("path", None)
    return Session(data if path is None else read(path), **head)


def _end(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


def _weights(graph: Graph) -> int:
    return sum(v.array.nbytes for v in graph.initializers() if v.array is not None)


def _death(code: int) -> str:
    if code >= 0:
        return f"exit code {code:#x}" if code > 255 else f"exit code {code}"
    try:
        name = signal.Signals(-code)
    except ValueError:
        return f"signal {-code}"
    return _SIGNALS.get(name.name, name.name)


_SIGNALS = {
    "SIGABRT": "SIGABRT, a failed assertion or too little memory",
    "SIGBUS": "SIGBUS, memory that is not there",
    "SIGFPE": "SIGFPE, a division by zero",
    "SIGILL": "SIGILL, an instruction that this CPU does not have",
    "SIGKILL": "SIGKILL, likely too little memory",
    "SIGSEGV": "SIGSEGV, memory that is not its own",
}


# Messages: a length, as much JSON, and the blobs that it counts.


def _send(pipe: BinaryIO | Any, head: dict[str, Any], blobs: Sequence[bytes | memoryview]) -> None:
    text = json.dumps({**head, "blobs": [len(blob) for blob in blobs]}).encode()
    pipe.write(struct.pack("<Q", len(text)))
    pipe.write(text)
    for blob in blobs:
        pipe.write(blob)
    pipe.flush()


def _receive(pipe: BinaryIO | Any) -> tuple[dict[str, Any], list[bytes]]:
    (size,) = struct.unpack("<Q", _exactly(pipe, 8))
    head: dict[str, Any] = json.loads(_exactly(pipe, size))
    return head, [_exactly(pipe, length) for length in head["blobs"]]


def _exactly(pipe: BinaryIO | Any, size: int) -> bytes:
    data: bytes = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _answer(pipe: BinaryIO | Any) -> tuple[dict[str, Any], list[bytes]]:
    """What the child says; an error of ours is raised here as it was there."""
    head, blobs = _receive(pipe)
    if "error" in head:
        kinds = {kind.__name__: kind for kind in _kinds(OnnxSlimError)}
        raise kinds.get(head["error"], ModelError)(head["message"])
    return head, blobs


def _kinds(root: type[OnnxSlimError]) -> Iterator[type[OnnxSlimError]]:
    """The whole tree of errors."""
    yield root
    for kind in root.__subclasses__():
        yield from _kinds(kind)


def _packed(arrays: Mapping[str, Any]) -> tuple[list[list[Any]], list[bytes | memoryview]]:
    """Names, types and shapes; and the bytes of each array. Texts are JSON."""
    head: list[list[Any]] = []
    blobs: list[bytes | memoryview] = []
    for name, array in arrays.items():
        if isinstance(array, list):
            inner, more = _packed({f"{name}[{i}]": item for i, item in enumerate(array)})
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


def _unpacked(head: dict[str, Any], blobs: Sequence[bytes]) -> dict[str, Array]:
    found = {}
    for (name, code, shape), blob in zip(head["done"], blobs, strict=True):
        if DType(code) is DType.STRING:
            found[name] = np.array(json.loads(blob), object).reshape(shape)
        else:
            found[name] = np.frombuffer(bytearray(blob), DType(code).numpy).reshape(shape)
    return found
