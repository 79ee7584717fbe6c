"""Simplifying, quantising and exporting one model, without a recipe and without a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onnxslim.analysis.sizes import only_data_input
from onnxslim.brief import Brief
from onnxslim.calibration import MinMax
from onnxslim.collector import paused
from onnxslim.data import Preprocess, ProgressCallback, Source, check_fits, fitted, open_dataset
from onnxslim.errors import OptionError
from onnxslim.files import require_free, require_name
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.onnx_io import read
from onnxslim.ir.rewrite import Context, Outcome, Refusal, once_a_place
from onnxslim.ir.verify import require_sound_attributes, verify
from onnxslim.options import made_of, takes
from onnxslim.recipe import RunOptions
from onnxslim.runtime.checker import RunChecker
from onnxslim.runtime.child import Child
from onnxslim.runtime.feeds import Sample, find_feeds
from onnxslim.stages.base import half_precision_note
from onnxslim.stages.export import Exported, export_model, lower, target_of
from onnxslim.stages.preprocessing import noted_preprocess
from onnxslim.stages.quantize import Quantize
from onnxslim.targets import load_target
from passes.deploy import finish
from passes.simplify import FreezeInputs, SetBatch, for_runtime
from passes.simplify import simplify as simplifying

__all__ = ["Quantized", "Simplified", "export", "quantize", "set_batch", "simplify"]


_MIN_MAX = MinMax()


@dataclass(frozen=True, repr=False)
class Simplified(Brief):
    """A graph of the same function; `outcome.by_pass` counts what each rule did. checked_on: the shapes of the inputs
    on which it was run."""

    graph: Graph
    outcome: Outcome
    checked_on: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Quantized(Brief):
    """An int8 graph, ready to be written, what was left in float, and what to know of figures measured here.

    layers: how many of the nodes that multiply became int8, and how many there are. macs: the fraction of the
    multiply-accumulates that is in them; None where it is not known.
    """

    graph: Graph
    refused: tuple[Refusal, ...]
    note: str | None = None
    layers: tuple[int, int] = (0, 0)
    macs: float | None = None


@takes(Quantize, without=("data",))
def quantize(
    model: Graph | str | Path,
    data: Source,
    *,
    split: str | None = None,
    preprocess: Preprocess | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Quantized:
    """Post-training quantisation: scales from `samples` of the data, whose labels are not used, `batch` at a time.

    preprocess: default what the model notes about itself, else none. options: those of a recipe's stage `quantize`,
    such as target="arm", weight_bits=7, skip=("head",).

    Raises OptionError for options that are wrong, DataError where the data do not fit the model,
    UnsupportedError where it is quantised already, or nothing in it can be.
    """
    stage = made_of(Quantize, options)
    made_of(RunOptions, {"seed": seed})
    graph = model if isinstance(model, Graph) else read(model)
    preprocess = preprocess or noted_preprocess(graph) or Preprocess()
    dataset = open_dataset(data, split)
    check_fits(dataset, only_data_input(graph), None, preprocess)
    dataset = fitted(dataset, only_data_input(graph), preprocess.layout)
    result = stage.apply(graph, dataset, preprocess, seed, progress)
    lowered, outcome = lower(result.graph, stage.target, preprocess)
    refused, share = once_a_place((*result.refused, *outcome.refused)), result.summary
    note = " ".join(filter(None, (half_precision_note(graph, "quantised"), stage.note))) or None
    return Quantized(lowered, refused, note, (share["int8_layers"], share["layers"]), share["int8_macs"])


@paused()
def simplify(
    model: Graph | str | Path,
    *,
    check: bool = False,
    sizes: Mapping[str, int] | None = None,
    inputs: Mapping[str, Array] | None = None,
    freeze: Mapping[str, npt.ArrayLike] | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Simplified:
    """The model with fewer nodes and the same function; a Graph that is given stays as it is.

    check: runs the model before and after every rule, in a process of its own; raises VerifyError naming the rule that
    moved an output by more than 1e-5 of the largest value it has there (or, where that is more, by more than four
    times what ONNX Runtime's own optimisations move it by). It runs on `inputs` (arrays by input name), or on random
    ones: free axes then have the `sizes` given by symbol or as `input[axis]`, and others at which the model, as it
    comes, runs; ModelError where it runs on none.

    freeze: numbers or arrays by the names of inputs that always get them; these inputs become constants, and what
    follows from them is computed once. OptionError names one that does not fit.

    Of opsets before 7 only constants, duplicates and what nothing reads
    are removed.
    """
    if not check and (sizes or inputs is not None):
        raise OptionError("sizes" if sizes else "inputs", "says what the model is run on: ask for `check=True`, too")
    graph = model.copy() if isinstance(model, Graph) else read(model)
    if freeze:
        FreezeInputs(freeze)(graph)
    verify(graph, types=False)  # the rules take it to be a sound model; what it says of shapes they do not believe
    with Child() as child:
        samples: tuple[Sample, ...] = ()
        checker = None
        if check:
            samples = find_feeds(for_runtime(graph), child, sizes=sizes, given=inputs, seed=seed)
            feeds, *others = (sample.feeds for sample in samples)
            checker = RunChecker(feeds, prepare=for_runtime, others=tuple(others), child=child)
        context = Context(checker=checker, seed=seed, progress=progress)
        outcome = simplifying(graph.opset)(graph, context)
    require_sound_attributes(graph, proven=True)  # by shapes that were not known before
    finish()(graph)
    return Simplified(graph, outcome, tuple(map(str, samples)))


def set_batch(model: Graph | str | Path, batch: int | str = "batch") -> Graph:
    """The model with another batch size: a number, or a name where any number may come; a Graph that is given
    stays as it is.

    Raises UnsupportedError naming the node that takes only the batch size of the export.
    """
    graph = model.copy() if isinstance(model, Graph) else read(model)
    SetBatch(batch)(graph)
    finish()(graph)
    return graph


def export(
    model: Graph | str | Path, target: str | None, folder: str | Path, *, name: str = "model", force: bool = False
) -> Exported:
    """Writes `name.onnx`, `name.ort` and `required_operators.config` for a target (None: what it was quantised for).

    A graph with fake-quant nodes is lowered to int8; an int8 one of another target gets this one's activation type; any
    other keeps its numbers. Raises OutputError where a file is there already, unless `force`, UnsupportedError where an
    int8 graph cannot be converted.
    """
    require_name(name, "name")
    if target is not None:
        load_target(target)
    graph = model if isinstance(model, Graph) else read(model)
    target, folder = target_of(graph) if target is None else load_target(target).name, Path(folder)
    for file in (f"{name}.onnx", f"{name}.ort", "required_operators.config"):
        if folder.is_dir():
            require_free(folder / file, force)
    return export_model(graph, target, folder, name=name)
