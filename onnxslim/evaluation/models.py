"""What is evaluated: a graph, a file or its bytes, made runnable in one way for all measurements."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxslim.analysis.precision import precision_of
from onnxslim.errors import ModelError, ModelFormatError
from onnxslim.files import open_regular, read_regular
from onnxslim.graph import DType, Graph, Shape
from onnxslim.onnx_io import model_file, read, to_bytes
from onnxslim.rewrite import Context
from onnxslim.runtime.session import Session
from passes.quantize.expand_fake_quant import ExpandFakeQuant
from passes.simplify import for_runtime

__all__ = ["Input", "Model", "digest_of", "only_input", "open_session", "session_inputs", "size_of"]

Model: TypeAlias = "Graph | bytes | str | Path"
"""A graph, the bytes of an .onnx or .ort file, or the path of one or of a run's folder."""

_TYPES = {"tensor(float)": DType.FLOAT, "tensor(float16)": DType.FLOAT16, "tensor(double)": DType.DOUBLE}


@dataclass(frozen=True)
class Input:
    """An input of a session: what `check_fits` wants to know."""

    name: str
    dtype: DType
    shape: Shape | None


def open_session(model: Model, *, threads: int = 1) -> Session:
    """A session for a model. Fake-quant graphs are expanded and run without fusion to integer
    kernels, so that they compute what training computes; everything else runs as it would ship, or converted
    down where this ONNX Runtime does not read its opset.

    Raises ModelFormatError and what the session raises.
    """
    if isinstance(model, str | Path):
        path = model_file(model)
        if not path.is_file():
            raise ModelFormatError(f"Model not found: {path} does not exist (looked from {Path.cwd()})")
        if path.suffix == ".ort":
            try:
                return Session(read_regular(path), threads=threads)
            except ModelError as error:
                raise ModelFormatError(f"Cannot read '{path}': {error}; convert the model again") from error
        model = read(path)
    if isinstance(model, bytes):
        return Session(model, threads=threads)
    model = for_runtime(model)
    if precision_of(model).kind != "fake-quant":
        return Session(model, threads=threads)
    expanded = model.copy()
    ExpandFakeQuant().run(expanded, Context())
    return Session(expanded, threads=threads, fuse_qdq=False)


def session_inputs(session: Session) -> list[Input]:
    """The inputs that must be fed."""
    found = []
    for arg in session.raw.get_inputs():
        # of a scalar ONNX Runtime says [], and of a tensor of unknown rank, too
        shape = tuple(d if isinstance(d, int | str) else None for d in arg.shape) if arg.shape else None
        found.append(Input(arg.name, _TYPES.get(arg.type, DType.UNDEFINED), shape))
    return found


def only_input(session: Session, input_name: str | None = None) -> Input:
    """The named input, or the only one; ModelError naming what there is."""
    inputs = session_inputs(session)
    for candidate in inputs:
        if candidate.name == input_name or (input_name is None and len(inputs) == 1):
            return candidate
    names = ", ".join(f"'{i.name}'" for i in inputs)
    wanted = "one input" if input_name is None else f"an input '{input_name}'"
    raise ModelError(f"The model is expected to have {wanted}, got {names or 'none'}")


def size_of(model: Model) -> int:
    """Bytes as a file, external data included; of a graph: as it would be written."""
    if isinstance(model, str | Path):
        return sum(path.stat().st_size for path in _files(Path(model)))
    return len(model if isinstance(model, bytes) else to_bytes(model))


def digest_of(model: Model) -> str:
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
