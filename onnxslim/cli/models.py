"""Commands that make one model from another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxslim.choices import TARGETS
from onnxslim.cli.flags import in_flags
from onnxslim.cli.generated import takes
from onnxslim.cli.options import (
    DataPath,
    Force,
    Frozen,
    LayoutOption,
    Mean,
    ModelFile,
    Sizes,
    Split,
    Std,
    batch_of,
    frozen_of,
    preprocess_of,
    print_view,
    progress_bar,
    sizes_of,
)

__all__ = ["export", "quantize", "simplify"]


@takes("onnxslim.run.quantize")
def quantize(
    model: ModelFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The int8 ONNX file to write.", show_default=False)],
    data: DataPath,
    split: Split = None,
    mean: Mean = None,
    std: Std = None,
    layout: LayoutOption = None,
    *,
    options: dict[str, Any],
    seed: Annotated[int, typer.Option(help="Draws the samples.")] = 0,
    force: Force = False,
) -> None:
    """Quantise a model to int8 after training: some images, no labels, seconds.

    Where this costs too much accuracy, train with a recipe: `onnxslim compress`.

    Examples:

        onnxslim quantize float.onnx -o int8.onnx --data photos/ \\
          --mean 125.3,123,113.9 --std 63,62.1,66.7

        onnxslim quantize float.onnx -o int8.onnx --data train.npz --target arm --skip head
    """
    from onnxslim.evaluation import size_of
    from onnxslim.evaluation.trial import require_runs
    from onnxslim.files import require_free
    from onnxslim.ir.onnx_io import read, write
    from onnxslim.ir.rewrite import grouped
    from onnxslim.run import quantize as run

    require_free(out, force)
    graph = read(model)
    before = size_of(model)
    preprocess = preprocess_of([model], mean, std, layout)
    with progress_bar() as progress:
        result = run(graph, data, split=split, preprocess=preprocess, seed=seed, progress=progress, **options)
    untried = require_runs(result.graph, graph)
    write(result.graph, out, value_info=False)
    after = size_of(out)
    typer.echo(f"{out}: {after:,} bytes, {100 * after / before:.2f} % of {before:,}")
    share = "" if result.macs is None else f", with {100 * result.macs:.1f} % of the multiply-accumulates"
    typer.echo(f"int8: {result.layers[0]} of {result.layers[1]} layers that multiply{share}")
    for line in grouped(result.refused):
        typer.echo(f"left in float: {line}")
    for note in (result.note, untried):
        if note:
            typer.echo(f"note: {in_flags(note)}")
    typer.echo(
        f"Next: `onnxslim evaluate {model} {out} --data {data}` compares them. Where too much accuracy is lost: leave "
        "layers in float (--skip), or train with a recipe (`onnxslim compress`)."
    )


def simplify(
    model: ModelFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)],
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Run the model before and after each rule, on random inputs: no output may change by more than 1e-5 "
            "of its largest value, or than four times what ONNX Runtime's own optimisations change it by.",
        ),
    ] = False,
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", help="Check on these instead: an .npz with an array for each input, by its name."),
    ] = None,
    size: Sizes = None,
    frozen: Frozen = None,
    batch: Annotated[
        str | None, typer.Option("--batch", help="Another batch size for the inputs: a number, or dynamic for any.")
    ] = None,
    force: Force = False,
) -> None:
    """Write the same function with fewer nodes, and say what each rule did.

    Constants are folded, batch norms, factors and paddings go into their convolutions, what is computed twice
    is computed once, what does nothing goes; in the bodies of If, Loop and Scan, too, whose nodes are counted with
    the others. The opset stays; weights keep their type.

    Examples:

        onnxslim simplify model.onnx -o simple.onnx

        onnxslim simplify model.onnx -o simple.onnx --check

        onnxslim simplify detector.onnx -o simple.onnx --check --size height=480 --size width=640

        onnxslim simplify detector.onnx -o simple.onnx --check --inputs page.npz

        onnxslim simplify exported.onnx -o any.onnx --batch dynamic

        onnxslim simplify voice.onnx -o voice16k.onnx --set sr=16000
    """
    from onnxslim.analysis.bodies import count_nodes
    from onnxslim.data.npz import load_arrays
    from onnxslim.evaluation import size_of
    from onnxslim.evaluation.trial import require_runs
    from onnxslim.files import require_free
    from onnxslim.ir.onnx_io import read, write
    from onnxslim.ir.rewrite import grouped
    from onnxslim.report import rules_table
    from onnxslim.run import set_batch
    from onnxslim.run import simplify as run

    require_free(out, force)
    graph = read(model)
    before = size_of(model)
    if batch is not None:
        graph = set_batch(graph, batch_of(batch))
    with progress_bar() as progress:
        result = run(
            graph,
            check=check,
            sizes=sizes_of(size),
            inputs=None if inputs is None else load_arrays(inputs),
            freeze=frozen_of(frozen),
            progress=progress,
        )
    untried = require_runs(result.graph, graph)
    write(result.graph, out)
    print_view(rules_table(result.outcome.by_pass))
    nodes, left, after = count_nodes(graph), count_nodes(result.graph), size_of(out)
    typer.echo(f"{out}: {left:,} nodes of {nodes:,}, {after:,} bytes of {before:,}{', checked' if check else ''}")
    if untried:
        typer.echo(f"note: {in_flags(untried)}")
    for shapes in result.checked_on:
        typer.echo(f"checked on {shapes}")
    for line in grouped(result.outcome.refused):
        typer.echo(f"left as it is: {line}")
    for note in result.outcome.notes:
        typer.echo(f"note: {note}")


def export(
    model: ModelFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files.", show_default=False)],
    target: Annotated[
        str | None,
        typer.Option(
            metavar=f"<{'|'.join(TARGETS)}>",
            help="The processor whose int8 kernels the model is for. Default: what it was quantised for, else x64.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the files.")] = "model",
    force: Force = False,
) -> None:
    """Write a model for a target: NAME.onnx, NAME.ort and required_operators.config.

    Takes a quantised model of a run (runs/NAME/stages/N.onnx), trained once for all targets, and lowers
    it to int8; an int8 model gets the activations of the target where they are of the other kind, with the same
    numbers; a float model stays in float.

    Examples:

        onnxslim export runs/mine/stages/1.onnx --target arm -o phone/
    """
    from onnxslim.ir.rewrite import grouped
    from onnxslim.run import export as run

    written = run(model, target, out, name=name, force=force)
    for path in (written.onnx, written.ort, written.config):
        if path is not None:
            typer.echo(f"{path}: {path.stat().st_size:,} bytes")
    typer.echo(f"Written in {written.precision} for {written.target}.")
    if written.precision == "float":
        typer.echo(
            "The model is in float, and stays so. For int8: `onnxslim quantize`, or a recipe with a quantize stage."
        )
    if written.note:
        typer.echo(f"note: {in_flags(written.note)}")
    for line in grouped(written.refused):
        typer.echo(f"left in float: {line}")
