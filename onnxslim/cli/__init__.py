"""The command line. What can go wrong ends in one message and an exit code: see `boundary`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from onnxslim.cli import inspection, models, pruning, runs
from onnxslim.cli.boundary import bounded, flushed, tolerate_encodings
from onnxslim.cli.generated import with_options
from onnxslim.cli.watch import watched
from onnxslim.runtime.installation import require_own_passes

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Whatever a command raises becomes a message and an exit code; the one that is asked for gets the options that are
    declared elsewhere."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if command is None else _full(str(command.name)), rest

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with bounded():  # help is printed here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with bounded():
            require_own_passes()
            return super().invoke(ctx)


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
    watched()
    tolerate_encodings()
    with flushed():
        app(prog_name="onnxslim")


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


COMMANDS = (
    runs.compress,
    inspection.evaluate,
    models.quantize,
    pruning.prune,
    pruning.sensitivity,
    models.simplify,
    models.export,
    inspection.inspect,
    inspection.doctor,
    runs.recipe,
    runs.demo,
)

for _command in COMMANDS:
    app.command()(_command)


def _full(name: str) -> Any:
    """The command of that name, with all its options."""
    command = next(one for one in COMMANDS if one.__name__ == name)
    alone = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    alone.command(name)(with_options(command))
    return typer.main.get_command(alone)
