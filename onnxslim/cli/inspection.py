"""Commands that measure and show, and write nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxslim.cli.generated import takes
from onnxslim.cli.options import (
    DataPath,
    LayoutOption,
    Mean,
    ModelFile,
    Sizes,
    Split,
    Std,
    TargetOption,
    preprocess_of,
    print_view,
    progress_bar,
    sizes_of,
)

__all__ = ["doctor", "evaluate", "inspect"]


@takes("onnxslim.evaluation.compare")
def evaluate(
    models: Annotated[
        list[Path],
        typer.Argument(help="ONNX or ORT files, or folders of runs; the first is compared with.", show_default=False),
    ],
    data: DataPath,
    split: Split = None,
    mean: Mean = None,
    std: Std = None,
    layout: LayoutOption = None,
    *,
    options: dict[str, Any],
    threads: Annotated[int, typer.Option(help="Batches at a time while measuring accuracy.")] = 2,
) -> None:
    """Measure accuracy, latency and size of models, side by side.

    Top-1 and top-5 with Wilson's 95 % interval, McNemar's paired test against the first model, latency
    (median, 95th percentile; the models take turns), bytes.

    Examples:

        onnxslim evaluate float.onnx int8.onnx --data cifar10.zip --split test \\
          --mean 125.3,123,113.9 --std 63,62.1,66.7

        onnxslim evaluate runs/mine/model.onnx --data photos/ --split val
    """
    from onnxslim.data import open_dataset
    from onnxslim.evaluation import compare
    from onnxslim.report import model_rows, rows_table, short_names
    from onnxslim.report.tables import foreign_note, int8_path
    from onnxslim.runtime.capabilities import capabilities

    names = short_names(models)
    preprocess = preprocess_of(models, mean, std, layout)
    with progress_bar() as progress:
        dataset = open_dataset(data, split)
        measured = dict(zip(names, models))
        rows = compare(measured, dataset, preprocess, threads=threads, progress=progress, **options)
    shown = model_rows(rows)
    print_view(rows_table(shown, f"{len(dataset)} samples of {data}{f' ({split})' if split else ''}"))
    note = foreign_note(shown)
    if note is not None:
        typer.echo(f"note: {note}")
    found = capabilities()
    typer.echo(f"Measured on: {found.cpu}; {int8_path(found.vnni)}; {found.distribution} {found.version}")


def inspect(model: ModelFile, target: TargetOption = "x64", size: Sizes = None) -> None:
    """Show a model: inputs, outputs, ops, parameters, MACs, bytes; what can be quantised and trained, or why not.

    Examples:

        onnxslim inspect model.onnx

        onnxslim inspect model.onnx --target arm

        onnxslim inspect detector.onnx --size height=480 --size width=640
    """
    from onnxslim.analysis.inspection import inspect_model
    from onnxslim.evaluation import size_of
    from onnxslim.ir.onnx_io import read
    from onnxslim.ir.rewrite import Context
    from onnxslim.report import inspection_view
    from onnxslim.stages.base import prepared
    from onnxslim.stages.quantize import ready_to_quantize
    from onnxslim.targets import load_target
    from passes.gradient import refusal

    profile = load_target(target)
    found = inspect_model(
        read(model),
        target=profile,
        differentiable=refusal,
        prepare=prepared,
        ready=lambda graph: ready_to_quantize()(graph, Context(target=profile)),
        file_bytes=size_of(model),
        sizes=sizes_of(size),
    )
    print_view(inspection_view(found, target=profile.name))


def doctor() -> None:
    """Say whether the installation is sound, and which command repairs it. Exit code 2 where it is not."""
    from onnxslim.report import doctor_table
    from onnxslim.runtime.capabilities import require_sound

    found = require_sound()
    print_view(doctor_table(found))
    typer.echo("The installation is sound.")
