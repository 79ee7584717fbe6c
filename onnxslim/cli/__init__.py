"""The command line. A fault of ours or of the input is one message and exit code 2; anything else is a bug."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from onnxslim.cli import looks, models, pruning, runs
from onnxslim.errors import OnnxSlimError
from onnxslim.runtime.installation import require_own_passes

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


for _command in (
    runs.compress,
    looks.evaluate,
    models.quantize,
    pruning.prune,
    pruning.sensitivity,
    models.simplify,
    models.export,
    looks.inspect,
    looks.doctor,
    runs.recipe,
    runs.demo,
):
    app.command()(_command)
