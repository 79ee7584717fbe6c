"""What is evaluated: a graph, a file or its bytes, made runnable in one way for all measurements."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxslim.analysis.precision import precision_of
from onnxslim.data.fitting import ModelInput
from onnxslim.errors import ModelError, ModelFormatError
from onnxslim.files import looked_from, open_regular, read_regular
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.onnx_io import model_file, read, to_bytes
from onnxslim.ir.rewrite import Context
from onnxslim.ir.verify import require_sound_at
from onnxslim.runtime.session import Session
from passes.quantize.expand_fake_quant import ExpandFakeQuant
from passes.simplify import for_runtime

__all__ = ["ModelSource", "Runner", "digest_of", "found_file", "only_input", "open_session", "size_of"]

ModelSource: TypeAlias = "Graph | bytes | str | Path"
"""A graph, the bytes of an .onnx or .ort file, or the path of one or of a run's folder."""


class Runner(Protocol):
    """A model as a function; a `Session` is one."""

    @property
    def inputs(self) -> Sequence[ModelInput]: ...
    @property
    def outputs(self) -> Sequence[ModelInput]: ...
    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]: ...


def open_session(model: ModelSource, *, threads: int = 1) -> Session:
    """A session for a model. Fake-quant graphs are expanded and run without fusion to integer
    kernels, so that they compute what training computes; everything else runs as it would ship, or converted
    down where this ONNX Runtime does not read its opset.

    Raises ModelFormatError and what the session raises.
    """
    if isinstance(model, str | Path):
        path = found_file(model)
        if path.suffix == ".ort":
            try:
                return Session(read_regular(path), threads=threads)
            except ModelError as error:
                raise ModelFormatError(f"Cannot read '{path}': {error}; convert the model again") from error
        model = read(path)
    if isinstance(model, bytes):
        return Session(model, threads=threads)
    model = for_runtime(model)
    require_sound_at(model)  # by shapes that the file need not tell
    if precision_of(model).kind != "fake-quant":
        return Session(model, threads=threads)
    expanded = model.copy()
    ExpandFakeQuant().run(expanded, Context())
    return Session(expanded, threads=threads, fuse_qdq=False)


def found_file(model: str | Path) -> Path:
    """The file of a model; ModelFormatError where there is none."""
    path = model_file(model)
    if not path.is_file():
        what = "expected a regular file there" if path.exists() else f"{path} does not exist{looked_from()}"
        raise ModelFormatError(f"Model not found: {what}")
    return path


def only_input(runner: Runner, input_name: str | None = None) -> ModelInput:
    """The named input, or the only one; ModelError naming what there is."""
    inputs = runner.inputs
    for candidate in inputs:
        if candidate.name == input_name or (input_name is None and len(inputs) == 1):
            return candidate
    names = ", ".join(f"'{i.name}'" for i in inputs)
    wanted = "one input" if input_name is None else f"an input '{input_name}'"
    raise ModelError(f"The model is expected to have {wanted}, got {names or 'none'}")


def size_of(model: ModelSource) -> int:
    """Bytes as a file, external data included; of a graph: as it would be written."""
    if isinstance(model, str | Path):
        return sum(path.stat().st_size for path in _files(Path(model)))
    return len(model if isinstance(model, bytes) else to_bytes(model))


def digest_of(model: ModelSource) -> str:
    """Hexadecimal SHA-256 of the content: equal models have equal digests."""
    state = hashlib.sha256()
    if isinstance(model, str | Path):
        for path in _files(Path(model)):
            with open_regular(path) as file:
                while block := file.read(1 << 20):
                    state.update(block)
    else:
        state.update(model if isinstance(model, bytes) else to_bytes(model))
    return state.hexdigest()


def _files(path: Path) -> list[Path]:
    """The model file and the external data files it names, in order of first mention."""
    path = model_file(path)
    if path.suffix == ".ort":
        return [path]
    read(path)  # says what is wrong with a file that is no model, or whose data are missing
    tensors = onnx.load(str(path), load_external_data=False).graph.initializer
    outside = [path.parent / ExternalDataInfo(t).location for t in tensors if uses_external_data(t)]
    return [path, *dict.fromkeys(outside)]
