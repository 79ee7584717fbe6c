"""`declared`, `Options`: classes whose fields are options, checked wherever they come from; what takes them."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pydantic.dataclasses
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import dataclass_transform

from onnxslim.errors import OptionError
from onnxslim.options.faults import option_error
from onnxslim.options.fields import fields_of, plain_type

__all__ = ["LARGEST", "Options", "declared", "made_of", "options_of", "takes"]

LARGEST = 1e6
"""Of weights, rates and the like: beyond any use, and far from where float32, in which they are used, ends."""

T = TypeVar("T")
M = TypeVar("M", bound="Options")
P = ParamSpec("P")
_STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=()
)


class Options(BaseModel):
    """Strict and frozen: unknown keys and other types are errors, numbers are finite and not read from text."""

    model_config = ConfigDict(**_STRICT, frozen=True)


@dataclass_transform(frozen_default=True)
def declared(cls: type[T]) -> type[T]:
    """A frozen dataclass whose fields are checked as `Options` are, wherever they come from; each is
    `name: Annotated[type, Field(bounds, description="…")] = default`.

    Made from Python, it raises OptionError with all that is wrong.
    """
    made: Any = pydantic.dataclasses.dataclass(cls, frozen=True, config=_STRICT)
    checked = made.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            checked(self, *args, **kwargs)
        except ValidationError as error:
            raise option_error(error, cls, None) from None

    made.__init__ = __init__
    found: type[T] = made
    return found


def made_of(cls: type[M], given: Mapping[str, Any]) -> M:
    """A model of options, from what was given from Python; OptionError with all that is wrong."""
    try:
        return cls.model_validate(plain := {key: _plain(value) for key, value in given.items()})
    except ValidationError as error:
        raise option_error(error, cls, plain) from None


def _plain(value: Any) -> Any:
    """Paths as text, sequences as lists."""
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def takes(
    cls: type[Options], *, only: Sequence[str] = (), without: Sequence[str] = ()
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Gives a function whose `**options` are those of a class (`only` some, or all `without` some) their signature:
    `options_of` and `inspect.signature` tell names, types and defaults. It raises OptionError for a name that is none.
    """
    taken = {name: info for name, info in fields_of(cls).items() if name not in without and name in (only or (name,))}

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        given = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        own = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=info.get_default(), annotation=plain_type(info.annotation)
            )
            for name, info in taken.items()
        ]
        known = {one.name for one in (*given, *own)}

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in kwargs:
                if name not in known:
                    close = difflib.get_close_matches(name, list(taken), n=1)
                    hint = f"did you mean '{close[0]}'?" if close else f"it takes {', '.join(taken)}"
                    raise OptionError("", f"{function.__name__}: unknown option '{name}'; {hint}")
            return function(*args, **kwargs)

        marked: Any = checked
        marked.__signature__ = signature.replace(parameters=[*given, *own])
        marked.__options__ = taken
        return checked

    return decorate


def options_of(function: Callable[..., Any]) -> Mapping[str, FieldInfo]:
    """The options that a function takes from a class (see `takes`)."""
    found: Mapping[str, FieldInfo] = getattr(function, "__options__", {})
    return found
