"""What commands share: their options, and how they read and show."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from onnxslim.choices import IMAGES, TARGETS, AxisOrder

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from rich.console import RenderableType

    from onnxslim.data import Preprocess
    from onnxslim.options import Entries

__all__ = [
    "DataPath",
    "Force",
    "LayoutOption",
    "Mean",
    "ModelFile",
    "Progress",
    "Sizes",
    "Split",
    "Std",
    "TargetOption",
    "batch_of",
    "numbers_of",
    "preprocess_of",
    "print_view",
    "progress_bar",
    "sizes_of",
]

_PIPE = 10_000
"""Letters a line that is read by a program may have."""

ModelFile = Annotated[Path, typer.Argument(help="An ONNX file, or the folder of a finished run.", show_default=False)]
DataPath = Annotated[Path, typer.Option("--data", help=IMAGES, show_default=False)]
Split = Annotated[
    str | None, typer.Option("--split", help="Part of the data: train, val, test, or a slice such as train[:512].")
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", help="Per channel, as '125.3,123,113.9', in units of 0–255. Default: what the model notes."),
]
Std = Annotated[
    str | None, typer.Option("--std", help="What each channel is divided by, less its mean: as many numbers as --mean.")
]
LayoutOption = Annotated[
    AxisOrder | None, typer.Option("--layout", help="Axes of the model's image input. Default: what the model says.")
]
TargetOption = Annotated[
    str,
    typer.Option(
        "--target",
        metavar=f"<{'|'.join(TARGETS)}>",
        help="The processor whose int8 kernels the model is for; android and ios are arm.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what stands there already.")]

_DIGITS = 9  # of a size: no axis is longer

Frozen = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="INPUT=VALUE",
        help="An input that always gets this value: it becomes a constant, and what follows from it is computed once "
        "(sr=16000, 'scale=[0.5, 2]'); may be repeated.",
    ),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        metavar="AXIS=NUMBER",
        help="Size of a free axis of the inputs, by its name (height=480) or as 'x[2]=480'; may be repeated. "
        "Default: one at which the model runs.",
    ),
]


class Progress(Protocol):
    """Shows how far a job is, and lines that say what it does."""

    def __call__(self, what: str, done: int, total: int) -> None: ...

    def say(self, line: str) -> None: ...


def print_view(view: RenderableType) -> None:
    """Prints a table or a text as wide as the terminal is; into a file or a pipe, a row is a line."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # into a file or a pipe: names stay whole, and a row is a line
        console = Console(width=_PIPE)
    console.print(view)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on a terminal, lines elsewhere, on standard error, while the block runs."""
    from rich.console import Console

    from onnxslim.data import ProgressBar
    from onnxslim.report.progress import LineProgress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield LineProgress(sys.stderr)
        return
    with ProgressBar(console) as bar:
        yield bar


def preprocess_of(models: list[Path], mean: str | None, std: str | None, layout: str | None) -> Preprocess:
    """The options where they are given, else what the models note about themselves."""
    from onnxslim.stages.preprocessing import chosen_preprocess

    means, stds = (None if t is None else numbers_of(o, t) for o, t in (("mean", mean), ("std", std)))
    return chosen_preprocess(models, means, stds, layout)


def batch_of(text: str) -> int | str:
    """The batch size that an option gives: a number of at least 1, or the name of a free axis for `dynamic`."""
    from onnxslim.errors import OptionError

    if text == "dynamic":
        return "batch"
    if not text.isdecimal() or int(text) < 1:
        raise OptionError("batch", f"expected a number of at least 1, or dynamic, got '{text}'")
    return int(text)


def entries_of(option: str, marks: Entries, kind: type, texts: list[str]) -> dict[str, Any]:
    """`--limit PATTERN=RATIO`, repeated: numbers by name."""
    from onnxslim.errors import OptionError

    if kind is int:
        return dict(sizes_of(texts))
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        try:
            found[name] = kind(number)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise OptionError(option, f"expected {marks.key}={marks.value}, got '{text}'")
    return found


def object_of(option: str, text: str) -> dict[str, Any]:
    """`NAME` or `NAME,KEY=VALUE,…`: keys and values of an object that a table tells by its name."""
    from onnxslim.errors import OptionError

    name, *pairs = text.split(",")
    found: dict[str, Any] = {"name": name}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise OptionError(option, f"expected NAME or NAME,KEY=VALUE, got '{text}'")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def sizes_of(texts: list[str] | None) -> dict[str, int]:
    """`--size AXIS=NUMBER`, repeated."""
    from onnxslim.errors import OptionError

    found: dict[str, int] = {}
    for text in texts or ():
        name, _, number = text.rpartition("=")
        if (
            not name
            or not number.isascii()
            or not number.isdecimal()
            or not 1 <= len(number) <= _DIGITS
            or name in found
        ):
            raise OptionError("sizes", f"expected AXIS=NUMBER, each axis once, such as height=480, got '{text}'")
        found[name] = int(number)
    return found


def frozen_of(texts: list[str] | None) -> dict[str, Any]:
    """`--set INPUT=VALUE`, repeated: values as JSON has them."""
    from onnxslim.errors import OptionError

    found: dict[str, Any] = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        try:
            given = json.loads(value)
        except (ValueError, RecursionError):
            given = None
        if not name or name in found or given is None or isinstance(given, dict):
            raise OptionError(
                "freeze",
                "expected INPUT=VALUE, each input once, a number or numbers in brackets, such as sr=16000 or "
                f"'scale=[0.5, 2]', got '{text}'",
            )
        found[name] = given
    return found


def numbers_of(option: str, text: str) -> tuple[float, ...]:
    """Numbers with commas or spaces between them; OptionError naming the option where one is none."""
    from onnxslim.errors import OptionError

    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise OptionError(option, f"expected numbers with commas between, got '{text}'") from None
