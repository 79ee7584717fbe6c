"""ONNX's own node tests of every opset from 7 on, converted to the working opset: what they expect comes out."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from onnx import defs

from onnxslim.errors import OnnxSlimError, UnsupportedError
from onnxslim.ir.onnx_io import from_proto
from onnxslim.ir.ops import RANDOM
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.checker import relative_error
from onnxslim.runtime.session import Session
from passes.simplify import ConvertOpset

_WORKING = 18
_OF_AN_OP = 8
_REFUSED = (  # what the working opset cannot say, and what this ONNX Runtime has no kernel for
    r"has no such op", r"has no attribute", r"has no such type", r"has no [A-Z0-9]+ for its input",
    r"gives its axis differently", r"no mode 'wrap'", r"half_pixel_symmetric", r"gives another mask",
    r"takes at most", r"scans without a batch axis", r"in a body of", r"samples grids of two axes",
    r"keep_aspect_ratio", r"of integers only", r"no kernel",
)  # fmt: skip
_DIFFER = ("qk_matmul",)
"""Where ONNX Runtime's own kernel computes something else than what onnx defines the op by."""
if capabilities().max_opset <= 21:  # its kernels of 1.19 against onnx's expectations, whatever the opset
    _DIFFER = (
        *_DIFFER, "averagepool_2d_ceil", "gridsample_bicubic", "_batchwise", "maxpool_2d_ceil",
        "maxunpool_export", "reversesequence_batch", "roialign_aligned", "NCd1d2d3d4d5",
    )  # fmt: skip


@lru_cache(maxsize=1)
def cases() -> dict[str, Any]:
    """By name, those of one node, tensors in and out, whose op's definition differs between its opset and the
    working one; a few of each op and opset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        found = load_model_tests(kind="node")
    chosen: dict[str, list[Any]] = {}
    for case in found:
        if _changes(case.model) and _has_tensors(case):
            chosen.setdefault(f"{case.model.graph.node[0].op_type} {case.model.opset_import[0].version}", []).append(
                case
            )
    return {case.name: case for kept in chosen.values() for case in kept[:: -(-len(kept) // _OF_AN_OP)]}


def _changes(model: Any) -> bool:
    opset = next((o.version for o in model.opset_import if not o.domain), 0)
    ops = [node.op_type for node in model.graph.node if not node.domain]
    return opset >= 7 and len(ops) == 1 and _since(ops[0], opset) != _since(ops[0], _WORKING)


def _has_tensors(case: Any) -> bool:
    """Of types that numpy has itself, which is what the runtime's binding takes."""
    arrays = [a for part in case.data_sets[0] for a in part]
    return all(isinstance(a, np.ndarray | np.generic) and a.dtype.kind != "V" for a in arrays)


def _since(op: str, opset: int) -> int:
    try:
        return int(defs.get_schema(op, opset).since_version)
    except defs.SchemaError:
        return 0


@pytest.mark.parametrize("name", sorted(cases()))
def test_what_it_expects_comes_out(name: str) -> None:
    case = cases()[name]
    graph = from_proto(case.model)
    inputs, expected = case.data_sets[0]
    if any(node.op in RANDOM for node in graph.nodes()):
        pytest.skip("random")
    feeds = {v.name: np.asarray(a) for v, a in zip(graph.inputs, inputs)}
    if graph.opset <= capabilities().max_opset:
        try:
            expected = list(Session(graph).run(feeds).values())
        except OnnxSlimError as error:
            pytest.skip(f"ONNX Runtime cannot run it as it is: {error}")
    try:
        ConvertOpset()(graph)
        found = Session(graph).run(feeds).values()
    except OnnxSlimError as error:
        known = isinstance(error, UnsupportedError) and any(re.search(pattern, str(error)) for pattern in _REFUSED)
        if not known and not any(word in name for word in _DIFFER):
            raise
        pytest.skip(f"refused: {error}")
    assert graph.opset == _WORKING
    if any(word in name for word in _DIFFER):
        pytest.skip("ONNX Runtime differs from onnx")
    for one, other in zip(expected, found, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert relative_error(one, other) <= (1e-5 if one.dtype == np.float32 else 2e-3)
