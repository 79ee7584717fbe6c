"""Every op that a target profile calls quantised, tried: at each rank, with and without value_info, with free sizes
(here two combinations of these; `benchmarks/quantized_ops.py` tries all, on other runtimes too).

What the installed ONNX Runtime makes of an int8 model is read off the model that it optimises: nothing may read a
dequantised tensor, but for ops that the profile says pass through float.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import from_proto, to_bytes
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.integer import run_integer
from onnxslim.runtime.session import Session
from onnxslim.targets import load_target


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("op_cases", Path(__file__).with_name("op_cases.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


OPS = _load()


def float_islands(graph: Graph, folder: Path) -> set[str]:
    """Ops that read a dequantised tensor in the model that ONNX Runtime runs. int8 activations are kept: on x86, it
    would turn some of them into uint8 and leave a part of what is around them in float, which no Arm does."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    onnxruntime.InferenceSession(to_bytes(graph), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(folder / "optimised.onnx").graph.node
    dequantised = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    return {node.op_type for node in nodes if dequantised & set(node.input)}


@pytest.mark.parametrize("case", OPS.cases(), ids=lambda case: case.name)
def test_it_runs_on_integers(case: Any, tmp_path: Path) -> None:
    feeds = {"x": np.random.default_rng(0).normal(size=case.shape).astype(np.float32)}
    for target, free, value_info in (("x64", True, False), ("arm", False, True)):
        model = case.model(free=free, value_info=value_info)
        int8, refused = OPS.quantised(model, feeds, target, capabilities().exact_weight_bits)
        assert refused == ()
        assert float_islands(int8, tmp_path) <= {case.op} & set(load_target(target).through_float_ops)
        exact, found, defined = (
            Session(from_proto(model)).run(feeds),
            Session(int8).run(feeds),
            run_integer(int8, feeds),
        )
        for name, expected in exact.items():
            size = np.abs(expected).max()
            # One step of an activation's grid (range / 255) moves an output of the last product by less than 1 %.
            np.testing.assert_allclose(found[name], defined[name], atol=0.01 * size)
            # The rounding of three or four tensors to 8 bits; a wrong grid or scale costs tens of per cent.
            np.testing.assert_allclose(found[name], expected, atol=0.06 * size)


def test_every_op_of_every_profile_has_a_case() -> None:
    covered = {case.op for case in OPS.cases()}
    assert all(set(OPS.quantised_ops(load_target(name))) <= covered for name in ("arm", "x64"))
