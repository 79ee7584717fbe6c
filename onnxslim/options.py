"""Options: what an object takes is declared in the object itself, once; Python, recipes and commands follow it.

An object's options are the fields of a frozen dataclass (`declared`) or of a model (`Options`), each with its type,
default, bounds and a description. Where an option is one object of several kinds, a literal table lists their classes,
and `OneOf(table)` tells them apart by `name`: `optimizer: {name: adamw, epsilon: 1e-6}`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple, ParamSpec, TypeAlias, TypeVar, Union, get_args, get_origin

import pydantic.dataclasses
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs, ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema
from typing_extensions import dataclass_transform

from onnxslim.errors import OptionError

__all__ = [
    "LARGEST",
    "Choices",
    "Entries",
    "Fault",
    "InputPath",
    "OneOf",
    "Options",
    "Way",
    "as_keys",
    "classes_at",
    "declared",
    "faults_in",
    "fields_of",
    "known_keys",
    "made_of",
    "named",
    "option_error",
    "options_in",
    "options_of",
    "plain_type",
    "reworded",
    "takes",
    "text_of",
]

LARGEST = 1e6
"""Of weights, rates and the like: beyond any use, and far from where float32, in which they are used, ends."""

Way: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the top."""

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


@dataclasses.dataclass(frozen=True)
class InputPath:
    """Marks an option that names a file or folder; it is made absolute."""

    must_exist: bool = True


@dataclasses.dataclass(frozen=True)
class Entries:
    """Marks an option that is keys and values, and says what they are: `Entries("AXIS", "NUMBER")`."""

    key: str
    value: str


@dataclasses.dataclass(frozen=True)
class Choices:
    """Marks a text that is one of these names."""

    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Marks an option that is an object of one of the classes in a table, told by `name`; the first is taken where no
    name is given. Of a table of one class no name is asked for, unless others may join it (`growing`). optional: None
    may be given too. from_text: makes an object of a text, where that is another way to give one."""

    table: tuple[Any, ...]
    optional: bool = False
    growing: bool = False
    from_text: Callable[[str], Any] | None = None

    @property
    def named(self) -> bool:
        return self.growing or len(self.table) > 1

    def class_in(self, given: Mapping[str, Any]) -> Any:
        """The class that keys and values are meant for; None where no class has their name."""
        first = self.table[0]
        name = given.get("name", first.name) if self.named else None
        return next((cls for cls in self.table if cls.name == name), None) if self.named else first

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._made, serialization=core_schema.plain_serializer_function_ser_schema(self._dumped)
        )

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        kinds: list[Any] = []
        for cls in self.table:
            kind = TypeAdapter(cls).json_schema()
            properties = {key: kind["properties"][key] for key in fields_of(cls)}
            if self.named:
                properties = {"name": {"const": cls.name, "title": "Name", "type": "string"}, **properties}
                required = [] if cls is self.table[0] else ["name"]
                kind["required"] = [*required, *kind.get("required", [])]
            kinds.append({**kind, "properties": properties})
        kinds += [{"type": "string"}] if self.from_text is not None else []
        kinds += [{"type": "null"}] if self.optional else []
        return kinds[0] if len(kinds) == 1 else {"oneOf": kinds}

    def _made(self, given: Any) -> Any:
        if isinstance(given, self.table) or (given is None and self.optional):
            return given
        if self.from_text is not None and isinstance(given, str):
            return self.from_text(given)
        if not isinstance(given, dict):
            raise PydanticCustomError("dict_type", "keys and values")
        cls = self.class_in(given)
        if cls is None:
            raise _fault("name", given["name"], "literal_error", " or ".join(f"'{one.name}'" for one in self.table))
        rest = {key: value for key, value in given.items() if key != "name" or not self.named}
        own = fields_of(cls)
        for key, value in rest.items():
            others = [one.name for one in self.table if one is not cls and key in fields_of(one)]
            if key not in own and others:
                text = f"an option of {' and '.join(others)}; {cls.name} takes {', '.join(own)}"
                raise _fault(key, value, "option_of_another", text)
            if key not in own:
                raise _fault(key, value, "extra_forbidden", "an option that there is")
        made = object.__new__(cls)
        cls.__pydantic_validator__.validate_python(ArgsKwargs((), rest), self_instance=made)
        return made

    def _dumped(self, value: Any) -> Any:
        if value is None:
            return None
        keys = TypeAdapter(type(value)).dump_python(value, mode="json")
        if self.from_text is not None and not keys:
            return value.name
        return {"name": value.name, **keys} if self.named else keys


def _fault(key: str, given: Any, kind: str, text: str) -> ValidationError:
    error = PydanticCustomError(kind, "{expected}", {"expected": text})
    return ValidationError.from_exception_data("options", [InitErrorDetails(type=error, loc=(key,), input=given)])


def named(table: Sequence[Any], text: str, *others: str) -> Any:
    """An object of the class of that name, with its defaults; a validation error that names all, and `others`."""
    for cls in table:
        if cls.name == text:
            return cls()
    names = [*(f"'{cls.name}'" for cls in table), *others]
    raise PydanticCustomError("literal_error", "{expected}", {"expected": " or ".join(names)})


def text_of(value: Any) -> str:
    """What tells an object of a table from others: its name, and what it was given."""
    given = (f"{key}={getattr(value, key)!r}" for key in fields_of(type(value)))
    return " ".join((value.name, *given))


def classes_at(*places: str) -> tuple[Any, ...]:
    """The classes of a table, each as "package.module.Class": a new one is a module and a line."""
    split = (place.rpartition(".") for place in places)
    return tuple(getattr(import_module(module), name) for module, _, name in split)


# ---------------------------------------------------------------- what is declared


def fields_of(cls: type) -> Mapping[str, FieldInfo]:
    """The options that a declared class or a model takes, in order, but for those that only Python may give."""
    found: Mapping[str, FieldInfo] = getattr(cls, "__pydantic_fields__", {})
    return {name: info for name, info in found.items() if not info.exclude}


def as_keys(value: Any) -> dict[str, Any]:
    """An object's options by key, its name among them where a table tells it by one; what is None is left out."""
    found: dict[str, Any] = {}
    for name, info in fields_of(type(value)).items():
        inner = getattr(value, name)
        if inner is None:
            continue
        marks = [mark for mark in info.metadata if isinstance(mark, OneOf)]
        if marks and marks[0].named:
            named = {"name": inner.name, **as_keys(inner)}
            found[name] = named if len(named) > 1 or marks[0].from_text is None else inner.name
        else:
            found[name] = as_keys(inner) if marks else _keys_in(inner)
    return found


def _keys_in(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_keys_in(inner) for inner in value]
    return as_keys(value) if fields_of(type(value)) else value


def options_in(info: FieldInfo, given: object = None) -> tuple[type, ...]:
    """The classes whose options an option's keys are: none of a plain value, several of one of a table, of which
    `given`, keys and values, chooses."""
    for mark in info.metadata:
        if isinstance(mark, OneOf):
            chosen = mark.class_in(given) if isinstance(given, Mapping) else None
            return mark.table if chosen is None else (chosen,)
    return _classes(info.annotation)


def _classes(annotation: Any) -> tuple[type, ...]:
    if isinstance(annotation, type) and fields_of(annotation):
        return (annotation,)
    if get_origin(annotation) in (Union, types.UnionType, list, Annotated):
        return next((found for found in map(_classes, get_args(annotation)) if found), ())
    return ()


def plain_type(annotation: Any) -> Any:
    """A type without what marks it further in."""
    if get_origin(annotation) is Annotated:
        return plain_type(get_args(annotation)[0])
    if get_origin(annotation) in (list, tuple, dict):
        inner = tuple(plain_type(one) for one in get_args(annotation))
        return types.GenericAlias(get_origin(annotation), inner)
    return annotation


def known_keys(cls: type, way: Sequence[str | int], given: Any = None) -> list[str]:
    """The keys that there are behind `way` in a class's options; `given`: what was given, which tells of objects that
    a table lists which one it is."""
    inside: tuple[type, ...] = (cls,)
    named = False
    for key in way:
        given = given[key] if isinstance(given, Mapping) and key in given else None
        if not isinstance(key, str):
            continue
        infos = [fields_of(one)[key] for one in inside if key in fields_of(one)]
        named = any(isinstance(mark, OneOf) and mark.named for info in infos for mark in info.metadata)
        inside = options_in(infos[0], given) if infos else ()
    keys = dict.fromkeys(name for one in inside for name in fields_of(one))
    return [*(["name"] if named else []), *keys]


# ---------------------------------------------------------------- what is wrong with what was given

_EXPECTED: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "dataclass_type": "keys and values",
    "finite_number": "a finite number",
}


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


class Fault(NamedTuple):
    """What is wrong: `way` leads to it, `option` names what it is the matter with (nothing where it is said by
    `why`)."""

    way: Way
    option: str
    why: str


def faults_in(error: ValidationError, cls: type, given: Any) -> list[Fault]:
    """All that is wrong with options of `cls` that were `given`."""
    places = list(fields_of(cls))
    found = []
    for one in error.errors(include_url=False):
        way = tuple(places[key] if not n and isinstance(key, int) else key for n, key in enumerate(one["loc"]))
        found.append(_fault_of(one, way, cls, given))
    return list(dict.fromkeys(found))


def option_error(error: ValidationError, cls: type, given: Any) -> OptionError:
    """The same as an error, in the words of who gives options from Python."""
    return OptionError.of([(fault.option, fault.why) for fault in faults_in(error, cls, given)])


def _fault_of(error: ErrorDetails, way: Way, cls: type, given: Any) -> Fault:
    kind, option = error["type"], ".".join(map(str, way))
    inside = f" in {'.'.join(map(str, way[:-1]))}" if way[:-1] else ""
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = known_keys(cls, way[:-1], given)
        close = difflib.get_close_matches(str(way[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
        return Fault(way, "", f"unknown key '{way[-1]}'{inside}; {hint}")
    if kind in ("missing", "missing_argument"):
        return Fault(way, "", f"key '{way[-1]}' is missing{inside}")
    if kind == "option_of_another":
        return Fault(way, option, error["msg"])
    got = error["input"]
    is_whole = kind == "value_error" and isinstance(got, dict | ArgsKwargs)  # says itself what it got
    text = f"expected {_expected(error)}" + ("" if is_whole else f", got {_shown(got)}")
    return Fault(way, option, text + (_near(error, got) if kind == "literal_error" else ""))


def _expected(error: ErrorDetails) -> str:
    """What a value should have been."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    match kind:
        case "literal_error":
            return " or ".join(f"'{o}'" for o in _literals(error))
        case "greater_than_equal":
            return f"at least {context['ge']}"
        case "greater_than":
            return f"more than {context['gt']}"
        case "less_than_equal":
            return f"at most {context['le']}"
        case "less_than":
            return f"less than {context['lt']}"
        case "too_short":
            return f"at least {context['min_length']} in the list"
        case "too_long":
            return f"at most {context['max_length']} in the list"
        case "string_pattern_mismatch":
            return "a plain name without slashes"
        case "value_error":
            return str(context["error"])
    return error["msg"][0].lower() + error["msg"][1:]


def _near(error: ErrorDetails, got: object) -> str:
    """The choice that a wrong one looks like, as the end of a sentence; nothing where there is none."""
    close = difflib.get_close_matches(str(got), _literals(error), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _literals(error: ErrorDetails) -> list[str]:
    text = str(error.get("ctx", {}).get("expected", ""))
    return [part.strip(" '") for part in text.replace(" or ", ", ").split(",")]


def _shown(value: Any) -> str:
    """A value that was given, in few words."""
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"text '{value}'"
    if isinstance(value, bool | int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return f"an object of type {type(value).__name__}"


# ---------------------------------------------------------------- options in what is said

_MENTION = re.compile(r"`([a-z_]+)=([^`]*)`")


def reworded(text: str, words: Callable[[str, str], str]) -> str:
    """A message with the options that it names, each written as Python does and between backquotes (`force=True`), in
    the words of who asked: words(name, value)."""
    return _MENTION.sub(lambda found: words(found[1], found[2]), text)
