"""The command line. A fault of ours or of the input is one message and exit code 2; anything else is a bug."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from onnxslim.errors import OnnxSlimError
from onnxslim.runtime.capabilities import require_own_passes

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from rich.console import RenderableType

    from onnxslim.data import Preprocess, ProgressCallback

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Ends with 2 where an error is ours, with 130 after an interruption, each with one message."""

    def invoke(self, ctx: Any) -> Any:
        try:
            require_own_passes()
            return super().invoke(ctx)
        except OnnxSlimError as error:
            _complain(f"Error: {error}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stop:
            _complain(str(stop) or "Interrupted.")
            raise typer.Exit(130) from None


app = typer.Typer(
    name="onnxslim",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compresses trained ONNX models: distils, quantises, trains, and writes int8 files for small devices.\n\n"
    "Start with `onnxslim demo`; then `onnxslim inspect MODEL` and `onnxslim quantize MODEL -o OUT --data IMAGES`; "
    "then write a recipe (`onnxslim recipe` lists its keys) and run `onnxslim compress RECIPE`.",
)


def main() -> None:
    """Entry point of the command `onnxslim`."""
    app(prog_name="onnxslim")


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(message, style="red"))


ModelFile = Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)]
DataPath = Annotated[
    Path, typer.Option("--data", help="Image folder, zip of one, .npz, or CIFAR-10 binary archive.", show_default=False)
]
Split = Annotated[
    str | None, typer.Option("--split", help="Part of the data: train, val, test, or a slice such as train[:512].")
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", help="Per channel, as '125.3,123,113.9', in units of 0–255. Default: what the model notes."),
]
Std = Annotated[str | None, typer.Option("--std", help="As many as means.")]
LayoutOption = Annotated[str | None, typer.Option("--layout", help="Of the model's input: NCHW or NHWC.")]
TargetOption = Annotated[str, typer.Option("--target", help="x64 or arm.")]


def _print(view: RenderableType) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # into a file or a pipe: nothing is cut or folded
        console = Console(width=160)
    console.print(view)


@contextmanager
def _progress() -> Iterator[ProgressCallback]:
    from rich.console import Console

    from onnxslim.data import ProgressBar
    from onnxslim.report.progress import LineProgress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield LineProgress(sys.stderr)
        return
    with ProgressBar(console) as bar:
        yield bar


def _version(asked: bool) -> None:
    if asked:
        from onnxslim import __version__

        typer.echo(f"onnxslim {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


@app.command()
def compress(
    recipe: Annotated[Path, typer.Argument(help="A recipe, a YAML file.", show_default=False)],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run of that name.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run of that name.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated.")
    ] = None,
) -> None:
    """Run a recipe, stage by stage, into runs/NAME: model.onnx, model.ort, report.json.

    Ctrl-C keeps what is done; --resume goes on from there, to the same result.

    Examples:

        onnxslim compress models/mobilenet_v1/qat.yaml

        onnxslim compress recipe.yaml --set run.name=short --set stages.1.train.epochs=2

        onnxslim compress recipe.yaml --resume
    """
    from onnxslim.report import report_view
    from onnxslim.run import compress as run

    with _progress() as progress:
        try:
            report = run(recipe, resume=resume, force=force, overrides=tuple(set_ or ()), progress=progress)
        except KeyboardInterrupt as stop:
            again = " ".join(["onnxslim compress", str(recipe), "--resume", *(f"--set {s}" for s in set_ or ())])
            raise KeyboardInterrupt(
                f"Interrupted. {str(stop) or 'Finished stages are kept.'} Go on with: {again}"
            ) from stop
    _print(report_view(report))


@app.command()
def evaluate(
    models: Annotated[
        list[Path], typer.Argument(help="ONNX or ORT files; the first is compared with.", show_default=False)
    ],
    data: DataPath,
    split: Split = None,
    mean: Mean = None,
    std: Std = None,
    layout: LayoutOption = None,
    batch: Annotated[int, typer.Option(help="Images per run while measuring accuracy.")] = 200,
    threads: Annotated[int, typer.Option(help="Batches at a time while measuring accuracy.")] = 2,
    repeats: Annotated[int, typer.Option(help="Timed runs of each model; 0 measures no latency.")] = 100,
    latency_batch: Annotated[int, typer.Option(help="Images per timed run.")] = 1,
    latency_threads: Annotated[int, typer.Option(help="Threads of a timed run.")] = 1,
) -> None:
    """Measure accuracy, latency and size of models, side by side.

    Top-1 and top-5 with Wilson's 95 % interval, McNemar's paired test against the first model, latency
    (median, 95th percentile; the models take turns), bytes.

    Examples:

        onnxslim evaluate float.onnx int8.onnx --data cifar10.zip --split test --mean 125.3,123,113.9 --std 63,62.1,66.7

        onnxslim evaluate runs/mine/model.onnx --data photos/ --split val
    """
    from onnxslim.data import open_dataset
    from onnxslim.evaluation import compare
    from onnxslim.report import model_rows, rows_table, short_names
    from onnxslim.report.tables import int8_path
    from onnxslim.runtime.capabilities import capabilities

    names = short_names(models)
    preprocess = _preprocess(models, mean, std, layout)
    with _progress() as progress:
        dataset = open_dataset(data, split, progress=progress)
        rows = compare(
            dict(zip(names, models)),
            dataset,
            preprocess,
            batch=batch,
            threads=threads,
            latency_batch=latency_batch,
            latency_threads=latency_threads,
            latency_repeats=repeats,
            progress=progress,
        )
    _print(rows_table(model_rows(rows), f"{len(dataset)} samples of {data}{f' ({split})' if split else ''}"))
    found = capabilities()
    typer.echo(f"Measured on: {found.cpu}; {int8_path(found.vnni)}; {found.distribution} {found.version}")


@app.command()
def quantize(
    model: ModelFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The int8 ONNX file to write.", show_default=False)],
    data: DataPath,
    split: Split = None,
    mean: Mean = None,
    std: Std = None,
    layout: LayoutOption = None,
    target: TargetOption = "x64",
    samples: Annotated[int, typer.Option(help="Images that the scales are measured on.")] = 512,
    skip: Annotated[
        list[str] | None, typer.Option(help="Leave in float: a node's name, an op type, a glob; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="That draws the samples.")] = 0,
) -> None:
    """Quantise a model to int8 after training: some images, no labels, seconds.

    Where this costs too much accuracy, train with a recipe: `onnxslim compress`.

    Examples:

        onnxslim quantize float.onnx -o int8.onnx --data photos/ --mean 125.3,123,113.9 --std 63,62.1,66.7

        onnxslim quantize float.onnx -o int8.onnx --data train.npz --target arm --skip head --samples 1000
    """
    from onnxslim.evaluation import size_of
    from onnxslim.onnx_io import read, write
    from onnxslim.run import quantize as run

    graph = read(model)
    before = size_of(model)
    preprocess = _preprocess([model], mean, std, layout)
    with _progress() as progress:
        result = run(
            graph,
            data,
            target=target,
            split=split,
            preprocess=preprocess,
            samples=samples,
            skip=tuple(skip or ()),
            seed=seed,
            progress=progress,
        )
    write(result.graph, out, value_info=False)
    after = size_of(out)
    typer.echo(f"{out}: {after:,} bytes, {100 * after / before:.2f} % of {before:,}")
    for refusal in result.refused:
        typer.echo(f"left in float: {refusal.where}: {refusal.why}")


@app.command()
def simplify(
    model: ModelFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)],
    check: Annotated[
        bool, typer.Option("--check", help="Run the model before and after each rule, on random inputs.")
    ] = False,
    batch: Annotated[
        str | None, typer.Option("--batch", help="Another batch size for the inputs: a number, or dynamic for any.")
    ] = None,
) -> None:
    """Write the same function with fewer nodes, and say what each rule did.

    Constants are folded, batch norms, factors and paddings go into their convolutions, what is computed twice
    is computed once, what does nothing goes. The opset stays; weights keep their type.

    Examples:

        onnxslim simplify model.onnx -o simple.onnx

        onnxslim simplify model.onnx -o simple.onnx --check

        onnxslim simplify exported.onnx -o any.onnx --batch dynamic
    """
    from onnxslim.evaluation import size_of
    from onnxslim.onnx_io import read, write
    from onnxslim.report import rules_table
    from onnxslim.run import set_batch
    from onnxslim.run import simplify as run

    graph = read(model)
    before = size_of(model)
    if batch is not None:
        graph = set_batch(graph, _batch(batch))
    with _progress() as progress:
        result = run(graph, check=check, progress=progress)
    write(result.graph, out)
    _print(rules_table(result.outcome.by_pass))
    nodes, left, after = len(graph.nodes()), len(result.graph.nodes()), size_of(out)
    typer.echo(f"{out}: {left:,} nodes of {nodes:,}, {after:,} bytes of {before:,}{', checked' if check else ''}")
    for refusal in result.outcome.refused:
        typer.echo(f"left as it is: {refusal.where}: {refusal.why}")


@app.command()
def export(
    model: ModelFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files.", show_default=False)],
    target: TargetOption = "x64",
    name: Annotated[str, typer.Option(help="Name of the files.")] = "model",
    force: Annotated[bool, typer.Option("--force", help="Replace files of that name.")] = False,
) -> None:
    """Write a model for a target: NAME.onnx, NAME.ort and required_operators.config.

    Takes a quantised model of a run (runs/NAME/stages/N.onnx), trained once for all targets, and lowers
    it to int8; a float model stays in float, an int8 one as it is.

    Examples:

        onnxslim export runs/mine/stages/1.onnx --target arm -o phone/
    """
    from onnxslim.run import export as run

    written = run(model, target, out, name=name, force=force)
    for path in (written.onnx, written.ort, written.config):
        if path is not None:
            typer.echo(f"{path}: {path.stat().st_size:,} bytes")
    if written.precision == "float":
        typer.echo(
            "The model has no fake-quant nodes, so its numbers are as they were. For int8: `onnxslim quantize`, or a "
            "recipe with a quantize stage."
        )
    for refusal in written.refused:
        typer.echo(f"left in float: {refusal.where}: {refusal.why}")


@app.command()
def inspect(model: ModelFile, target: TargetOption = "x64") -> None:
    """Show a model: inputs, outputs, ops, parameters, MACs, bytes; what can be quantised and trained, or why not.

    Examples:

        onnxslim inspect model.onnx

        onnxslim inspect model.onnx --target arm
    """
    from onnxslim.analysis.inspection import inspect_model
    from onnxslim.evaluation import size_of
    from onnxslim.onnx_io import read
    from onnxslim.report import inspection_view
    from onnxslim.targets import load_target
    from passes.gradient import refusal

    profile = load_target(target)
    found = inspect_model(read(model), target=profile, differentiable=refusal, file_bytes=size_of(model))
    _print(inspection_view(found, target=target))


@app.command()
def doctor() -> None:
    """Say whether the installation is sound, and which command repairs it. Exit code 2 where it is not."""
    from onnxslim.report import doctor_table
    from onnxslim.runtime.capabilities import require_sound

    found = require_sound()
    _print(doctor_table(found))
    typer.echo("The installation is sound.")


@app.command()
def recipe(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema instead, for editors.")] = False,
) -> None:
    """List every key of a recipe, with type, default and meaning.

    Examples:

        onnxslim recipe

        onnxslim recipe --schema > recipe.schema.json
    """
    if schema:
        import json

        from onnxslim.recipe import json_schema

        typer.echo(json.dumps(json_schema(), indent=1))
        return
    from onnxslim.recipe import describe
    from onnxslim.report.tables import keys_table

    _print(keys_table(describe()))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the run is put.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of data, weights and training.")] = 0,
) -> None:
    """Train, distil, quantise and export a small model on scikit-learn's digits: no download, a minute or two."""
    from onnxslim.demo import run_demo

    with _progress() as progress:
        view = run_demo(folder, seed=seed, progress=progress)
    _print(view)


def _preprocess(models: list[Path], mean: str | None, std: str | None, layout: str | None) -> Preprocess:
    """The options where they are given, else what the models note about themselves."""
    from onnxslim.stages.preprocessing import chosen_preprocess

    means, stds = (None if t is None else _numbers(o, t) for o, t in (("--mean", mean), ("--std", std)))
    return chosen_preprocess(models, means, stds, layout)


def _batch(text: str) -> int | str:
    from onnxslim.errors import DataError

    if text == "dynamic":
        return "batch"
    if not text.isdecimal() or int(text) < 1:
        raise DataError(f"--batch: expected a number of at least 1, or dynamic, got '{text}'")
    return int(text)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    from onnxslim.errors import DataError

    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise DataError(f"{option}: expected numbers such as 125.3,123,113.9, got '{text}'") from None


if __name__ == "__main__":
    main()
