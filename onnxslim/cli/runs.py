"""Commands that run a recipe, or say what one may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxslim.cli.options import print_view, progress_bar

__all__ = ["compress", "demo", "recipe"]


def compress(
    recipe: Annotated[Path, typer.Argument(help="A recipe, a YAML file.", show_default=False)],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run of that name.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the run of that name: the files it wrote, no others.")
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Run cuts and training steps before and after every pass that makes them, and compare.",
        ),
    ] = False,
) -> None:
    """Run a recipe, stage by stage, into runs/NAME: model.onnx, model.ort, report.json.

    Ctrl-C keeps what is done; --resume goes on from there, to the same result. The folder of a finished run stands for
    its model.onnx wherever a command takes a model.

    Examples:

        onnxslim compress models/mobilenet_v1/qat.yaml

        onnxslim compress recipe.yaml --set run.name=short --set stages.1.train.epochs=2

        onnxslim compress recipe.yaml --resume
    """
    from onnxslim.report import report_view
    from onnxslim.run import compress as run

    with progress_bar() as progress:
        try:
            report = run(
                recipe,
                resume=resume,
                force=force,
                overrides=tuple(set_ or ()),
                check=check,
                progress=progress,
                say=progress.say,
            )
        except KeyboardInterrupt as stop:
            again = " ".join(["onnxslim compress", str(recipe), "--resume", *(f"--set {s}" for s in set_ or ())])
            raise KeyboardInterrupt(
                f"Interrupted. {str(stop) or 'Finished stages are kept.'} Go on with: {again}"
            ) from stop
    print_view(report_view(report))


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

    print_view(keys_table(describe()))


def demo(
    folder: Annotated[Path, typer.Option(help="Where the run is put.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of data, weights and training.")] = 0,
) -> None:
    """Train, distil, quantise and export a small model on scikit-learn's digits: no download, less than a minute."""
    from onnxslim.demo import run_demo

    with progress_bar() as progress:
        view = run_demo(folder, seed=seed, progress=progress, say=progress.say)
    print_view(view)
