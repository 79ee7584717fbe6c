"""Options of a command that are options of its Python function, made from what they are declared with.

`takes("onnxslim.run.prune")` marks a command whose `options` are those of that function: each field of the stage
becomes a flag with its type, default, bounds and description. The function is imported when such a command is asked
for, not before.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from onnxslim.cli.flags import SWITCHES, flag_of

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = ["takes", "with_options"]


def takes(function: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks a command: its parameter `options`, a dict, gets those options of a function that are given, as it takes
    them."""

    def mark(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def called(**given: Any) -> None:
            own = {name: given[name] for name in signature.parameters if name != "options"}
            texts = {name: value for name, value in given.items() if name not in own and value is not None}
            command(**own, options={name: _read(name, value, _taken(function)[name]) for name, value in texts.items()})

        marked: Any = called
        marked.__signature__ = _with_parameters(signature, [])
        marked.__takes__ = function
        return called

    return mark


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options that it takes from a function in its signature; others as they are."""
    function = getattr(command, "__takes__", None)
    if function is None:
        return command
    full: Any = functools.wraps(command)(lambda **given: command(**given))
    full.__signature__ = _with_parameters(
        inspect.signature(command.__wrapped__, eval_str=True),  # type: ignore[attr-defined]
        [_parameter(name, info) for name, info in _taken(function).items()],
    )
    return full  # type: ignore[no-any-return]


def _taken(function: str) -> Mapping[str, FieldInfo]:
    from onnxslim.options import options_of

    module, _, name = function.rpartition(".")
    return options_of(getattr(import_module(module), name))


def _with_parameters(signature: inspect.Signature, made: list[inspect.Parameter]) -> inspect.Signature:
    """A command's signature with parameters in the place of `options`."""
    own = list(signature.parameters.values())
    place = next(n for n, one in enumerate(own) if one.name == "options")
    return signature.replace(
        parameters=[
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*own[:place], *made, *own[place + 1 :])
        ]
    )


def _parameter(name: str, info: FieldInfo) -> inspect.Parameter:
    """A field as a parameter that typer makes a flag of."""
    from onnxslim.options import fields_of

    kind, default, shown, table = _kind(info), info.get_default(), {}, _one_of(info)
    text = " ".join(filter(None, ((info.description or "").strip(), _bounds(info))))
    if name in SWITCHES:
        flag, _, text = SWITCHES[name]
        return _flag(name, bool, False, typer.Option(flag, help=text))
    if get_origin(kind) is dict or kind == list[str]:
        default, text, kind = None, f"{text} May be repeated.", list[str]
        shown = {"metavar": _metavar(info)} if _metavar(info) else {}
    elif get_origin(kind) is list:
        default, kind = ",".join(map(str, default)), str
    elif table is not None:
        plain = not any(map(fields_of, table.table))  # then its name says all
        default, kind = default.name, Literal[tuple(cls.name for cls in table.table)] if plain else str
        shown = {} if plain else {"metavar": _metavar(info)}
    elif kind is str and default is None and _is_path(info):
        kind = Path
    elif kind is str and _metavar(info):
        shown = {"metavar": _metavar(info)}
    return _flag(name, kind if default is not None else kind | None, default, _option(name, kind, text, shown))


def _option(name: str, kind: Any, text: str, shown: Mapping[str, Any]) -> Any:
    flag = flag_of(name)
    return typer.Option(f"{flag}/--no-{flag[2:]}" if kind is bool else flag, help=text, **shown)


def _flag(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _read(name: str, value: Any, info: FieldInfo) -> Any:
    """What typer read, as the function takes it."""
    from onnxslim.cli.options import entries_of, numbers_of, object_of
    from onnxslim.options import Entries

    kind, marks = _kind(info), [mark for mark in info.metadata if isinstance(mark, Entries)]
    if name in SWITCHES:
        return SWITCHES[name][1] if value else info.get_default()
    if get_origin(kind) is dict:
        return entries_of(name, marks[0], get_args(kind)[1], value)
    if get_origin(kind) is list and kind != list[str]:
        return list(numbers_of(name, value))
    table = _one_of(info)
    if table is not None:
        return value if table.from_text is not None and "," not in value else object_of(name, value)
    return list(value) if isinstance(value, list | tuple) else str(value) if isinstance(value, Path) else value


# ---------------------------------------------------------------- what a field is


def _kind(info: FieldInfo) -> Any:
    """The type of a field, without bounds and None."""
    from onnxslim.options import plain_type

    annotation = info.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(one for one in get_args(annotation) if one is not type(None))
    found = plain_type(annotation)
    return Literal[get_args(found)] if get_origin(found) is Literal else found


def _one_of(info: FieldInfo) -> Any:
    from onnxslim.options import OneOf

    return next((mark for mark in info.metadata if isinstance(mark, OneOf)), None)


def _is_path(info: FieldInfo) -> bool:
    from onnxslim.options import InputPath

    return any(isinstance(mark, InputPath) for mark in info.metadata)


def _metavar(info: FieldInfo) -> str | None:
    """What stands for a value in the help, where it is not its type."""
    from onnxslim.options import Choices, Entries

    for mark in info.metadata:
        if isinstance(mark, Entries):
            return f"{mark.key}={mark.value}"
        if isinstance(mark, Choices):
            return f"<{'|'.join(mark.names)}>"
    table = _one_of(info)
    return None if table is None else f"<{'|'.join(cls.name for cls in table.table)}>"


def _bounds(info: FieldInfo) -> str:
    """The bounds of a number, as the end of its description."""
    bounds: dict[str, Any] = {}
    inner = [mark for one in get_args(info.annotation) for mark in getattr(one, "__metadata__", ())]
    for mark in (*info.metadata, *(found for one in inner for found in getattr(one, "metadata", (one,)))):
        bounds |= {key: getattr(mark, key) for key in ("ge", "gt", "le", "lt") if hasattr(mark, key)}
    if "ge" in bounds and "le" in bounds:
        return f"From {bounds['ge']:,} to {bounds['le']:,}."
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    said = ", ".join(f"{words[key]} {value:,}" for key, value in bounds.items())
    return f"{said[0].upper()}{said[1:]}." if said else ""
