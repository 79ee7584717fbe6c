"""Quantising and exporting without a run."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

from onnxslim.analysis.precision import TARGET_KEY, precision_of
from onnxslim.data import Preprocess
from onnxslim.errors import OptionError, OutputError, UnsupportedError
from onnxslim.evaluation import open_session
from onnxslim.ir.graph import DType
from onnxslim.ir.onnx_io import read, to_bytes, write
from onnxslim.run import compress, export, quantize
from onnxslim.runtime.integer import run_integer
from onnxslim.stages import Quantize
from onnxslim.stages.preprocessing import noted_preprocess

PREPROCESS = Preprocess((100.0,), (50.0,))


def test_quantize_gives_what_a_run_gives(job: Path) -> None:
    compress("r.yaml")
    found = quantize("student.onnx", "data.npz", split="train", preprocess=PREPROCESS, samples=32)
    assert len(to_bytes(found.graph, value_info=False)) == (job / "runs" / "mine" / "model.onnx").stat().st_size
    images = np.random.default_rng(0).standard_normal((9, 1, 8, 8)).astype(np.float32)
    first, second = (open_session(model) for model in (found.graph, "runs/mine/model.onnx"))
    for mine, theirs in zip(first.run({"image": images}).values(), second.run({"image": images}).values(), strict=True):
        assert np.array_equal(mine, theirs)


def test_quantize_takes_the_preprocessing_that_a_model_notes(job: Path) -> None:
    found = quantize("student.onnx", "data.npz", split="train", preprocess=PREPROCESS)
    assert noted_preprocess(found.graph) == PREPROCESS
    graph = read("student.onnx")
    graph.metadata.update(found.graph.metadata)
    assert to_bytes(quantize(graph, "data.npz", split="train").graph) == to_bytes(found.graph)


def test_wrong_options_are_named(job: Path) -> None:
    with pytest.raises(OptionError, match="samples: expected at least 1, got 0"):
        quantize("student.onnx", "data.npz", split="train", samples=0)
    with pytest.raises(OptionError, match="target: expected 'arm' or 'x64', got text 'amr'"):
        quantize("student.onnx", "data.npz", split="train", target="amr")
    with pytest.raises(OptionError, match="target: expected"):
        export("student.onnx", "amr", job)


def test_export_of_a_runs_stage_serves_the_other_target(job: Path) -> None:
    compress("r.yaml", overrides=["stages.1.export.targets=[x64, arm]"])
    exported = export("runs/mine/stages/0.onnx", "arm", job / "phone")
    assert (exported.target, exported.precision) == ("arm", "int8")
    assert exported.onnx.read_bytes() != (job / "runs" / "mine" / "model.onnx").read_bytes()
    with pytest.raises(OutputError, match=r"phone/model\.onnx' exists already"):
        export("runs/mine/stages/0.onnx", "arm", job / "phone")
    export("runs/mine/stages/0.onnx", "arm", job / "phone", force=True)


def test_an_int8_model_is_exported_as_it_is(job: Path) -> None:
    found = quantize("student.onnx", "data.npz", split="train", preprocess=PREPROCESS)
    write(found.graph, "int8.onnx", value_info=False)
    exported = export("int8.onnx", "x64", job / "out")
    assert exported.ort is not None
    assert exported.ort.is_file()
    assert exported.onnx.stat().st_size <= (job / "int8.onnx").stat().st_size
    assert (exported.target, exported.precision) == ("x64", "int8")


def test_an_int8_model_of_one_target_is_exported_for_the_other(job: Path) -> None:
    """The grids coincide: what is converted is what would have been quantised for that target."""
    images = {"image": np.random.default_rng(0).standard_normal((9, 1, 8, 8)).astype(np.float32)}
    made = {t: quantize("student.onnx", "data.npz", split="train", target=t).graph for t in ("x64", "arm")}
    for source, wanted in (("x64", "arm"), ("arm", "x64")):
        exported = export(made[source], wanted, job / wanted)
        assert (exported.target, exported.precision) == (wanted, "int8")
        assert exported.ort is not None
        found = read(exported.onnx)
        assert precision_of(found).target == wanted
        assert found.metadata[TARGET_KEY] == wanted
        assert len(found.nodes()) == len(made[wanted].nodes())
        for mine, theirs in zip(run_integer(found, images).values(), run_integer(made[wanted], images).values()):
            np.testing.assert_array_equal(mine, theirs)
    assert export(made["arm"], None, job / "own").target == "arm"  # what it was quantised for
    assert export(made["arm"], "android", job / "phone").target == "arm"


def test_float_and_fake_quant_models_say_so(job: Path) -> None:
    compress("r.yaml")
    fake = read("runs/mine/stages/0.onnx")
    assert [precision_of(read("student.onnx")).kind, precision_of(fake).kind] == ["float", "fake-quant"]
    assert export("student.onnx", "arm", job / "float").precision == "float"
    with pytest.raises(UnsupportedError, match="fake-quant nodes already: `onnxslim export`"):
        quantize(fake, "data.npz", split="train")
    int8 = quantize("student.onnx", "data.npz", split="train")
    assert (int8.layers, int8.macs) == ((3, 3), 1.0)
    with pytest.raises(UnsupportedError, match="quantised already .*give the float model"):
        quantize(int8.graph, "data.npz", split="train")


def test_options_of_quantize_are_those_of_the_stage(job: Path) -> None:
    signature = inspect.signature(quantize).parameters
    for name, field in Quantize.model_fields.items():
        if name not in ("data", "batch"):  # the data are given; how many at a time follows from their size
            default = signature[name].default
            assert (list(default) if name == "skip" else default) == field.default, name
    narrow = quantize("student.onnx", "data.npz", split="train", weight_bits=4, per_channel=False, skip=["head"])
    assert narrow.layers == (2, 3)
    weights = [
        v.array for v in narrow.graph.initializers() if v.dtype is DType.INT8 and v.shape and v.array is not None
    ]
    assert max(int(np.abs(w.astype(np.int64)).max()) for w in weights) == 7
    with pytest.raises(OptionError, match=r"^weight_bits: expected at most 8, got 9$"):
        quantize("student.onnx", "data.npz", split="train", weight_bits=9)
    with pytest.raises(OptionError, match=r"^seed: expected at least 0, got -1$"):
        quantize("student.onnx", "data.npz", split="train", seed=-1)
