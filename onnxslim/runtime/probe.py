"""What the runtime can do, found by running tiny models: no version number is trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from onnxslim.runtime.installation import import_runtime

__all__ = ["block_lanes", "has_training_kernels", "newest_read"]


@lru_cache(maxsize=1)
def newest_read() -> tuple[int, int]:
    """The newest opset of the default domain and the newest IR version that load; (0, 0) without a runtime."""
    opset = _newest(lambda version: _loads(_identity(version, 9)), 11)
    ir = _newest(lambda version: _loads(_identity(13, version)), 3)
    return opset, ir


def has_training_kernels() -> bool:
    """Whether ConvGrad has a kernel."""
    return _loads(_conv_grad())


@lru_cache(maxsize=1)
def block_lanes() -> int:
    """The width for which a blocked depthwise and a blocked dense convolution give the right numbers; else 0."""
    return next((width for width in (16, 8, 4) if _is_blocked_by(width)), 0)


def _is_blocked_by(width: int) -> bool:
    """Convolutions [1, 32, 3, 3] with kernels of 2×2 in blocks of `width`, against numpy."""
    import numpy as np
    from onnx import helper

    channels, rng = 32, np.random.default_rng(0)
    x = rng.standard_normal((1, channels, 3, 3), np.float32)
    blocked = x.reshape(channels // width, width, 3, 3).transpose(0, 2, 3, 1)
    patches = np.stack([x[0, :, i : i + 2, j : j + 2] for i in (0, 1) for j in (0, 1)])  # [pixel, channel, 2, 2]
    for group in (channels, 1):
        w = rng.standard_normal((channels, channels // group, 2, 2), np.float32)
        if group == 1:
            expected = np.einsum("pcij,ocij->op", patches, w)
            cut = w.reshape(channels // width, width, channels // width, width, 2, 2)
            kernel = cut.transpose(0, 2, 4, 5, 3, 1)
        else:
            expected = np.einsum("pcij,cij->cp", patches, w[:, 0])
            kernel = w.reshape(channels // width, width, 1, 2, 2).transpose(0, 2, 3, 4, 1)
        node = helper.make_node(
            "Conv", ["x", "w"], ["y"], domain="com.microsoft.nchwc", group=group, kernel_shape=[2, 2]
        )
        opsets = {"": 18, "com.microsoft.nchwc": 1}
        feeds = {"x": blocked.reshape(x.shape), "w": np.ascontiguousarray(kernel).reshape(w.shape)}
        found = _outputs(_tiny([node], ["x", "w"], ["y"], opsets, 9), feeds)
        if found is None:
            return False
        y = found.reshape(channels // width, 4, width).transpose(0, 2, 1).reshape(channels, 4)
        if not np.allclose(y, expected, atol=1e-4):
            return False
    return True


def _newest(works: Callable[[int], bool], start: int) -> int:
    if not works(start):
        return 0
    version = start
    while version < 100 and works(version + 1):
        version += 1
    return version


def _loads(model: bytes) -> bool:
    return _session(model) is not None


def _outputs(model: bytes, feeds: Mapping[str, Any]) -> Any:
    """The first output; None where the model does not load or run."""
    session = _session(model)
    try:
        return None if session is None else session.run(None, dict(feeds))[0]
    except Exception as error:  # ONNX Runtime's classes derive from Exception alone
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        return None


def _session(model: bytes) -> Any:
    """None where the model does not load, or there is no runtime."""
    runtime = import_runtime()
    if runtime is None:
        return None
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's classes derive from Exception alone
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        return None


def _identity(opset: int, ir: int) -> bytes:
    from onnx import helper

    node = helper.make_node("Identity", ["x"], ["y"])
    return _tiny([node], ["x"], ["y"], {"": opset}, ir)


def _conv_grad() -> bytes:
    from onnx import helper

    node = helper.make_node(
        "ConvGrad", ["dy", "x", "w"], ["dx", "dw"], domain="com.microsoft",
        kernel_shape=[1, 1], strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1], group=1,
    )  # fmt: skip
    return _tiny([node], ["dy", "x", "w"], ["dx", "dw"], {"": 18, "com.microsoft": 1}, 9)


def _tiny(nodes: list[Any], inputs: list[str], outputs: list[str], opsets: dict[str, int], ir: int) -> bytes:
    from onnx import TensorProto, helper

    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b", "c", "d"])

    graph = helper.make_graph(nodes, "probe", [info(n) for n in inputs], [info(n) for n in outputs])
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    data: bytes = helper.make_model(graph, opset_imports=imports, ir_version=ir).SerializeToString()
    return data
