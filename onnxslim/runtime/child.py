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

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from onnxslim.errors import CrashError
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.onnx_io import read, to_bytes, write
from onnxslim.runtime.messages import Blobs, Head, arrays_from, arrays_to
from onnxslim.runtime.peer import Peer, answer_messages
from onnxslim.runtime.session import Model, Session, model_name, require_shallow

__all__ = ["Child", "serve"]

_EMBED_LIMIT = 1 << 28
"""A model of more weights than this is handed over as a file."""


class Child:
    """One model at a time, in a process of its own.

    threads: inside an op. seconds: how long loading and running may take together before the process is ended.
    memory: bytes that the process may have, where the system can hold it to that (not on Windows).
    """

    def __init__(self, *, threads: int = 1, seconds: float | None = None, memory: int | None = None) -> None:
        self._threads, self._peer = threads, Peer(serve, seconds=seconds, memory=memory)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._head: Head = {}
        self._data = b""
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
        head: Head = {"threads": self._threads, **options, "name": name}
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
        self._head, self._data, self._sent = head, data, False
        self._peer.busy_with = name

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """As `Session.run`. Elements of a sequence come as `name[0]`, `name[1]`, …

        Raises CrashError where the process died or took longer than its `seconds`.
        """
        try:
            with self._peer.within():
                if not self._sent:
                    self._peer.ask({"load": self._head}, [self._data])
                    self._sent = True
                head, blobs = arrays_to(feeds)
                answer, found = self._peer.ask(
                    {"run": head, "outputs": None if outputs is None else list(outputs)}, blobs
                )
        except CrashError:
            self._sent = False
            raise
        return arrays_from(answer["done"], found)

    def close(self) -> None:
        """Ends the process; the next run starts another."""
        self._peer.close()
        self._sent = False
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
            self._head, self._data = {}, b""


def serve() -> None:
    """What the child does: models in, outputs out."""
    answer_messages(_Served().answer)


class _Served:
    """The child's model."""

    def __init__(self) -> None:
        self._session: Session | None = None

    def answer(self, head: Head, blobs: list[bytes]) -> tuple[Head, Blobs]:
        if "load" in head:
            self._session = None  # before the next one takes memory
            path = head["load"].pop("path", None)
            self._session = Session(blobs[0] if path is None else read(path), **head["load"])
            return {"done": []}, []
        assert self._session is not None
        names, arrays = arrays_to(self._session.run(arrays_from(head["run"], blobs), head["outputs"]))
        return {"done": names}, arrays


def _weights(graph: Graph) -> int:
    return sum(v.array.nbytes for v in graph.initializers() if v.array is not None)
