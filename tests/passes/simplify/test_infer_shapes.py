"""InferShapes: the pass around the analysis (tested in tests/ir/test_shapes.py)."""

from __future__ import annotations

from pathlib import Path

from onnxslim.ir.onnx_io import read
from passes.simplify import InferShapes


def test_every_model_file(model_path: Path, run_on_file, largest_error) -> None:
    before, after, _ = run_on_file(InferShapes(), model_path)
    assert all(v.dtype and v.shape is not None for n in after.nodes() for v in after.node_outputs(n) if v is not None)
    assert InferShapes()(after).rewrites == 0
    assert largest_error(before, after) == 0


def test_counts_what_it_filled_in(mobilenet: Path) -> None:
    graph = read(mobilenet)
    unknown = sum(v.shape is None for v in graph.values())
    assert InferShapes()(graph).learnt >= unknown > 0
