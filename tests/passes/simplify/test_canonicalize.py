"""The standard opening, as a whole."""

from __future__ import annotations

from pathlib import Path

import passes.simplify
from onnxslim.ir.graph import Array
from onnxslim.ir.onnx_io import read, to_bytes
from onnxslim.ir.rewrite import Context
from onnxslim.ir.verify import verify
from onnxslim.runtime.checker import RunChecker, random_feeds
from passes.simplify import canonicalize


def test_every_model_file(model_path: Path, run_on_file, largest_error) -> None:
    before, after, outcome = run_on_file(canonicalize(), model_path)
    verify(after)
    assert outcome.rewrites > 0
    assert (after.opset, after.ir_version) == (18, 9)
    assert {v.name for v in before.inputs} == {v.name for v in after.inputs}
    assert not {"Constant", "Identity", "Dropout", "Shape"} & {n.op for n in after.nodes()}
    assert largest_error(before, after) <= 1e-5


def test_every_pass_on_its_own_under_the_checker(model_path: Path) -> None:
    graph = read(model_path)
    canonicalize()(graph, Context(checker=RunChecker(random_feeds(graph, seed=11))))
    assert canonicalize()(graph).rewrites == 0


def test_on_real_images(trained_path: Path, images: Array, run_on_file, largest_error) -> None:
    before, after, _ = run_on_file(canonicalize(), trained_path)
    assert largest_error(before, after, {"image": images}) <= 1e-5


def test_equal_input_equal_bytes(trained_path: Path) -> None:
    written = []
    for _ in range(2):
        graph = read(trained_path)
        canonicalize()(graph)
        written.append(to_bytes(graph))
    assert written[0] == written[1]


def test_exports_are_sorted() -> None:
    assert passes.simplify.__all__ == sorted(passes.simplify.__all__)
    assert all(hasattr(passes.simplify, name) for name in passes.simplify.__all__)
