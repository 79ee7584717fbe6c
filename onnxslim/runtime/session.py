"""`Session`: a model in ONNX Runtime, its options chosen once, its errors translated to ours.

Several single-threaded sessions run side by side (one a core), so threads never spin while they
wait: a spinning pool would take the other session's core.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np
import onnx

from onnxslim.budget import MODEL_DEPTH
from onnxslim.errors import DataError, ModelError, ModelFormatError, OnnxSlimError, UnsupportedError
from onnxslim.ir.graph import Array, DType, Graph, Shape, Value
from onnxslim.ir.onnx_io import node_proto, to_bytes, to_proto
from onnxslim.ir.onnx_io.bodies import depth_of
from onnxslim.ir.onnx_io.node_names import name_nodes
from onnxslim.ir.verify import require_sound_attributes
from onnxslim.runtime.installation import load_runtime

__all__ = ["Model", "NodeArg", "Session", "model_name", "require_shallow"]

Model: TypeAlias = "Graph | onnx.ModelProto | bytes"
"""A graph, a ModelProto, or the bytes of an .onnx or .ort file."""

_HAND_OVER_FROM = 1 << 20
"""Arrays of this many bytes are worth handing over by pointer instead of through the protobuf."""
_EMBED_LIMIT = 1 << 28
"""Weights of more than this in total are handed over; so are memory-mapped ones of any total."""
_LONGEST = 400  # letters of a word in a message
_POSITION = re.compile(r"\.(?:cc|h):\d+$")
_SHARED_KINDS = "fiub"
_TYPES = {
    "float": DType.FLOAT,
    "float16": DType.FLOAT16,
    "double": DType.DOUBLE,
    "bfloat16": DType.BFLOAT16,
    "bool": DType.BOOL,
    "string": DType.STRING,
    **{f"{sign}int{bits}": DType[f"{sign}int{bits}".upper()] for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


# ConstantSharing merges equal constants of up to 8 elements, also with the running statistics of a training
# BatchNormalization, whose buffers that kernel overwrites in place: what else reads them then reads garbage.
# MatMul_BatchNormalization_Fusion of 1.19 takes the channels of a batch norm behind Reshape or Transpose for the
# columns of the MatMul before it: wrong numbers, or an error (see `passes.deploy.SplitBatchnorm`).
_UNSAFE = ["ConstantSharing", "MatMul_BatchNormalization_Fusion"]


class NodeArg:
    """An input or output of a session: `name`, `dtype` and `shape` (symbols and None where free; None for scalars and
    for what is of unknown rank, which ONNX Runtime does not tell apart)."""

    __slots__ = ("dtype", "name", "shape")

    def __init__(self, argument: Any) -> None:
        self.name: str = argument.name
        kind = str(argument.type).removeprefix("tensor(").removesuffix(")")
        self.dtype = _TYPES.get(kind, DType.UNDEFINED)
        shape = argument.shape
        # of a scalar it says [], and of a tensor of unknown rank, too
        self.shape: Shape | None = tuple(d if isinstance(d, int) else d or None for d in shape) if shape else None


class Session:
    """A model ready to run on the CPU.

    `threads`: threads inside an op. `optimize=False` runs the graph node by node as written.
    `fuse_qdq=False` keeps QuantizeLinear/DequantizeLinear pairs in float instead of fusing them
    into int8 kernels (`session.disable_quant_qdq`): what fake-quant evaluation needs.

    `guarded=False` leaves on those of its optimisations that are wrong for some models, as anybody's session has them.

    Weights that are memory-mapped, or larger than 256 MB in total, are handed over by pointer; a
    model over 2 GB runs from a `Graph`. `name` is what messages call the model; default: its own, or its size.

    Raises UnsupportedError for ops, types and versions this ONNX Runtime has no kernel for,
    ModelFormatError for bytes that are no model, ModelError for one that is not valid. Numbers in a graph's attributes
    are looked at before ONNX Runtime sees them; other ways to end its process are caught in a `Child` only.
    """

    def __init__(
        self,
        model: Model,
        *,
        threads: int = 1,
        optimize: bool = True,
        fuse_qdq: bool = True,
        guarded: bool = True,
        name: str | None = None,
    ) -> None:
        if threads < 1:
            raise DataError(f"A session needs at least 1 thread, got {threads}")
        if isinstance(model, Graph):
            require_sound_attributes(model)
        require_shallow(model)
        self._runtime = load_runtime()
        options = _options(self._runtime, threads, optimize, fuse_qdq)
        self._kept: list[Any] = []  # memory that the session reads in place
        self.name = name or model_name(model)
        data = self._serialised(model, options)
        try:
            self.raw = self._runtime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"], disabled_optimizers=_UNSAFE if guarded else None
            )
        except Exception as error:  # ONNX Runtime's classes derive from Exception alone
            _translate(error, f"ONNX Runtime cannot load {self.name}", ModelFormatError)
        self.inputs: tuple[NodeArg, ...] = tuple(NodeArg(a) for a in self.raw.get_inputs())
        self.outputs: tuple[NodeArg, ...] = tuple(NodeArg(a) for a in self.raw.get_outputs())
        overridable = (NodeArg(a) for a in self.raw.get_overridable_initializers())
        self._optional = {port.name: port for port in overridable}
        self._required = {port.name: port for port in self.inputs}
        self._output_names = [port.name for port in self.outputs]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The outputs by name (all, or the chosen ones in that order) for arrays by input name.

        Raises DataError naming the input where feeds are missing, unknown, or of another element
        type or shape than the model declares; ModelError where a node fails on them.
        """
        self.check(feeds)
        names = self._output_names if outputs is None else list(outputs)
        unknown = [name for name in names if name not in self._output_names]
        if unknown:
            raise DataError(f"{self.name} has no output '{unknown[0]}'; it has: {', '.join(self._output_names)}")
        if not names:
            return {}
        try:
            found = self.raw.run(names, dict(feeds))
        except Exception as error:
            _translate(error, f"Running {self.name} failed", DataError)
        return dict(zip(names, found))

    def check(self, feeds: Mapping[str, Array]) -> None:
        """Raises DataError where they are not what the model declares, as `run` does."""
        for name in self._required:
            if name not in feeds:
                fed = ", ".join(feeds) or "none"
                raise DataError(f"{self.name} needs input '{name}', which was not fed; fed: {fed}")
        for name, array in feeds.items():
            port = self._required.get(name) or self._optional.get(name)
            if port is None:
                known = ", ".join([*self._required, *self._optional]) or "none"
                raise DataError(f"{self.name} has no input '{name}'; its inputs: {known}")
            _check_array(self.name, port, array)

    def _serialised(self, model: Model, options: Any) -> bytes:
        if isinstance(model, bytes):
            return model
        if isinstance(model, onnx.ModelProto):
            data: bytes = model.SerializeToString()
            return data
        big = _handed_over(model)
        if not big:
            # With types: ONNX Runtime crashes on kernels whose result it cannot infer (MaxPoolGrad).
            return to_bytes(model, named=True)
        return self._without(model, big, options)

    def _without(self, graph: Graph, big: list[Value], options: Any) -> bytes:
        """The model's bytes without its big arrays, which the session options carry instead."""
        light = graph.copy()
        proto_values = [light.value(value.name) for value in big]
        for value in proto_values:
            value.array = None  # of a throw-away copy: its declared type stays
        model = to_proto(light)
        name_nodes(model)
        names, tensors = [], []
        for value in big:
            assert value.array is not None
            array = np.ascontiguousarray(value.array)
            tensor = model.graph.initializer.add(name=value.name, data_type=int(value.dtype), dims=array.shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="in-memory")
            names.append(value.name)
            tensors.append(self._runtime.OrtValue.ortvalue_from_numpy(array))
            self._kept += [array, tensors[-1]]
        options.add_external_initializers(names, tensors)
        data: bytes = model.SerializeToString()
        return data


def require_shallow(model: Model) -> None:
    """UnsupportedError where bodies are nested so deeply that loading takes hours. Bytes are not looked at."""
    if isinstance(model, bytes):
        return
    if isinstance(model, Graph):
        nodes = [node_proto(model, n) for n in model.nodes() if any(a.HasField("g") for a in n.attributes.values())]
    else:
        nodes = list(model.graph.node)
    depth = depth_of(nodes)
    if depth > MODEL_DEPTH:
        raise UnsupportedError(
            f"{model_name(model)} has bodies of If, Loop or Scan {depth} deep; expected at most {MODEL_DEPTH}, because "
            "ONNX Runtime takes twice as long for each: fold or flatten them (without `check=True` they stay)"
        )


def _options(runtime: Any, threads: int, optimize: bool, fuse_qdq: bool) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what goes wrong is raised, not printed
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if not fuse_qdq:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def model_name(model: Model) -> str:
    """What messages call a model."""
    if isinstance(model, Graph):
        return f"graph '{model.name}'"
    if isinstance(model, onnx.ModelProto):
        return f"graph '{model.graph.name}'"
    return f"the model of {len(model)} bytes"


def _handed_over(graph: Graph) -> list[Value]:
    """Initialisers to pass by pointer: large ones, where they are mapped or many."""
    arrays = [(v, v.array) for v in graph.initializers() if v.array is not None]
    total = sum(a.nbytes for _, a in arrays)
    return [
        value
        for value, array in arrays
        if array.nbytes >= _HAND_OVER_FROM
        and array.dtype.kind in _SHARED_KINDS
        and array.dtype.isnative
        and not graph.is_input(value)
        and (total > _EMBED_LIMIT or _is_mapped(array))
    ]


def _is_mapped(array: Array) -> bool:
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap):
            return True
        base = getattr(base, "base", None)
    return False


def _check_array(where: str, port: NodeArg, array: Array) -> None:
    if port.dtype is not DType.UNDEFINED and array.dtype != port.dtype.numpy and port.dtype is not DType.STRING:
        raise DataError(
            f"Input '{port.name}' of {where}: expected {port.dtype.numpy}, got {array.dtype}; convert the data"
        )
    if port.shape is None:
        return
    fits = len(port.shape) == array.ndim and all(
        not isinstance(want, int) or want == got for want, got in zip(port.shape, array.shape)
    )
    if not fits:
        wanted = ", ".join("?" if d is None else str(d) for d in port.shape)
        batch = port.shape[1:] == array.shape[1:] and isinstance(port.shape[0], int)
        hint = "; free the batch size first: `onnxslim simplify MODEL -o OUT --batch dynamic`" if batch else ""
        raise DataError(f"Input '{port.name}' of {where}: expected shape ({wanted}), got {array.shape}{hint}")


def _translate(error: Exception, what: str, invalid: type[OnnxSlimError]) -> NoReturn:
    """Raises one of our errors for one of ONNX Runtime's, `invalid` for an invalid argument; others pass unchanged."""
    kind, text = type(error).__name__, _plain(str(error))
    if isinstance(error, RuntimeError) and "Numpy type" in text:  # bfloat16 and its like, in the binding
        raise UnsupportedError(f"{what}: an output's type has no counterpart in numpy; Cast it first") from error
    if not type(error).__module__.startswith("onnxruntime"):
        raise error
    if kind == "InvalidProtobuf":
        raise ModelFormatError(f"{what}: expected an ONNX or ORT model, got other bytes ({text})") from error
    if kind == "NotImplemented" or "nsupported model IR version" in text or "under development" in text:
        raise UnsupportedError(
            f"{what}: {text}; this ONNX Runtime has no kernel or reader for it, see `onnxslim doctor`"
        ) from error
    if kind == "InvalidArgument":
        raise invalid(f"{what}: {text}") from error
    raise ModelError(f"{what}: {text}") from error


def _plain(text: str) -> str:
    """ONNX Runtime's message without its own source positions."""
    words = text.removeprefix("[ONNXRuntimeError] : ").split()  # one by one: names may be very long
    return " ".join(w if len(w) <= _LONGEST else f"{w[:_LONGEST]}…" for w in words if not _is_position(w))


def _is_position(word: str) -> bool:
    """Where in its own sources ONNX Runtime failed."""
    return "/" in word and _POSITION.search(word[-40:]) is not None
