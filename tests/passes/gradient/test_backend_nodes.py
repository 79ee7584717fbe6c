"""ONNX's own node tests as cases for the gradient: every one-node model whose op is differentiable."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxslim.errors import GradientError, UnsupportedError
from onnxslim.ir.graph import Array, DType
from onnxslim.ir.onnx_io import from_proto
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.session import Session
from passes.gradient import differentiable_ops, differentiate
from passes.simplify import EliminateDead, canonicalize

_REFUSED = (  # gradients that the rules say they do not have, and forms that the working opset does not know
    "ceil_mode=0 only", "output_shape and auto_pad", "clip, input_forget, layout", "storage_order=0 only",
    "tf_crop_and_resize", "reduction '(mul|max|min)'", "keep_aspect_ratio_policy", "dilations have no gradient rule",
    "cannot be converted to opset 18", "older than 7", "auto_pad=SAME_",
)  # fmt: skip
_EMPTY = ("empty_set", "zero_size", "allowzero")  # nothing there to differentiate
_COARSE = (
    "maxpool",
    "gelu",
    "group_normalization",
    "lppool",
    "lrn",
    "mvn",
    "gru",
    "lstm",
    "rnn",
)  # onnx's reference computes these in float32
_DIFFER = ("_antialias", "downsample_scales_cubic_align_corners", "downsample_scales_linear_align_corners")
"""Where ONNX Runtime itself computes something else than onnx's reference."""
if capabilities().max_opset <= 21:
    _DIFFER = (*_DIFFER, "reversesequence_batch")  # wrong in its kernel of 1.19


@lru_cache(maxsize=1)
def cases() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        found = load_model_tests(kind="node")
    ops = set(differentiable_ops())
    kept = {}
    for case in found:
        nodes = case.model.graph.node
        single = len(nodes) == 1 and (nodes[0].domain, nodes[0].op_type) in ops
        arrays = case.data_sets[0][0] if single else []
        if single and all(isinstance(a, np.ndarray) for a in arrays) and any(a.dtype == np.float32 for a in arrays):
            kept[case.name] = case
    return {name: case for name, case in kept.items() if not any(word in name for word in _EMPTY)}


def gradients(model: onnx.ModelProto, feeds: dict[str, Array], weights: Array) -> dict[str, Array]:
    """d Σ weights·(first output) / d each float32 input, other inputs constant, by ONNX Runtime."""
    graph = from_proto(model)
    for name, array in feeds.items():
        value = graph.value(name)
        graph.set_type(value, None, array.shape)
        if array.dtype != np.float32 or name in ("scales", "roi", "repeats"):
            graph.remove_input(value)
            graph.set_array(value, array)
    canonicalize()(graph)
    infer_shapes(graph)
    wrt = [v for v in graph.inputs if v.dtype is DType.FLOAT]
    scaled = graph.op("Mul", graph.outputs[0], graph.add_constant("weights", weights), name="scaled")
    loss = graph.op("ReduceSum", scaled, name="the_loss", keepdims=0)
    infer_shapes(graph)
    found = differentiate(graph, loss, wrt)
    for value in list(graph.outputs):
        graph.remove_output(value)
    for value in dict.fromkeys(found.values()):
        graph.add_output(value)
    EliminateDead()(graph)
    arrays = Session(graph).run({v.name: feeds[v.name] for v in graph.inputs})
    return {name: arrays[value.name] for name, value in found.items()}


@pytest.mark.parametrize("name", sorted(cases()))
@pytest.mark.filterwarnings("ignore")
def test_directional_derivative(name: str) -> None:
    case = cases()[name]
    model, rng = case.model, np.random.default_rng(0)
    output = next(v.name for v in model.graph.output)
    expected = case.data_sets[0][1][0]
    if not isinstance(expected, np.ndarray) or expected.dtype != np.float32:
        return  # no float comes out: nothing to differentiate
    jitter = 0.1 if "maxpool" in name else 1e-3  # away from ties and kinks
    feeds = {
        v.name: a + (jitter * rng.normal(size=a.shape)).astype(np.float32) if a.dtype == np.float32 and a.ndim else a
        for v, a in zip(model.graph.input, case.data_sets[0][0])
    }
    weights = rng.normal(size=expected.shape).astype(np.float32)
    for kept in ("scales", "roi", "repeats"):
        if kept in feeds:
            feeds[kept] = case.data_sets[0][0][[v.name for v in model.graph.input].index(kept)]
    try:
        found = gradients(model, feeds, weights)
    except (GradientError, UnsupportedError) as error:
        if not any(re.search(pattern, str(error)) for pattern in _REFUSED):
            raise
        pytest.skip(f"refused: {error}")
    if any(word in name for word in _DIFFER):
        pytest.skip("onnx's reference differs from ONNX Runtime")
    coarse = any(word in name for word in _COARSE)
    dtype, step = (np.float32, 3e-3) if coarse else (np.float64, 1e-6)
    reference = ReferenceEvaluator(model)
    base = {n: a.astype(dtype) if n in found else a for n, a in feeds.items()}

    def value(inputs: dict[str, Array]) -> float:
        (y,) = reference.run([output], inputs)
        return float((np.asarray(y, np.float64) * weights).sum())

    for wrt, gradient in found.items():
        assert gradient.shape == feeds[wrt].shape
        for seed in range(2):
            direction = np.random.default_rng(seed).normal(size=gradient.shape).astype(dtype)
            ends = [value(base | {wrt: base[wrt] + dtype(sign * step) * direction}) for sign in (1, -1)]
            expected_slope = (ends[0] - ends[1]) / (2 * step)
            slope = float((gradient.astype(np.float64) * direction).sum())
            scale = np.linalg.norm(gradient) * np.linalg.norm(direction) + abs(expected_slope)
            assert abs(slope - expected_slope) <= (2e-2 if coarse else 1e-3) * scale + 1e-4, (
                wrt,
                slope,
                expected_slope,
            )
