"""What options a class declares, and what marks them; one object of several, told apart by name."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs, InitErrorDetails, PydanticCustomError, core_schema

__all__ = [
    "Choices",
    "Entries",
    "InputPath",
    "OneOf",
    "Way",
    "as_keys",
    "classes_at",
    "fields_of",
    "known_keys",
    "named",
    "options_in",
    "plain_type",
    "text_of",
]

Way: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the top."""


def fields_of(cls: type) -> Mapping[str, FieldInfo]:
    """The options that a declared class or a model takes, in order, but for those that only Python may give."""
    found: Mapping[str, FieldInfo] = getattr(cls, "__pydantic_fields__", {})
    if issubclass(cls, BaseModel):
        found = cls.model_fields
    return {name: info for name, info in found.items() if not info.exclude}


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
            names = " or ".join(f"'{one.name}'" for one in self.table)
            raise _faulty([_fault("name", given["name"], "literal_error", names)])
        rest = {key: value for key, value in given.items() if key != "name" or not self.named}
        faults = [self._misplaced(cls, key, value) for key, value in rest.items() if key not in fields_of(cls)]
        if faults:
            raise _faulty(faults)
        made = object.__new__(cls)
        cls.__pydantic_validator__.validate_python(ArgsKwargs((), rest), self_instance=made)
        return made

    def _misplaced(self, cls: Any, key: str, given: Any) -> InitErrorDetails:
        """That a key is no option of a class, and of which it is one."""
        others = [one.name for one in self.table if one is not cls and key in fields_of(one)]
        if not others:
            return _fault(key, given, "extra_forbidden", "an option that there is")
        takes = ", ".join(fields_of(cls)) or "nothing"
        return _fault(key, given, "option_of_another", f"an option of {' and '.join(others)}; {cls.name} takes {takes}")

    def _dumped(self, value: Any) -> Any:
        if value is None:
            return None
        keys = TypeAdapter(type(value)).dump_python(value, mode="json")
        if self.from_text is not None and not keys:
            return value.name
        return {"name": value.name, **keys} if self.named else keys


def _fault(key: str, given: Any, kind: str, text: str) -> InitErrorDetails:
    error = PydanticCustomError(kind, "{expected}", {"expected": text})
    return InitErrorDetails(type=error, loc=(key,), input=given)


def _faulty(faults: list[InitErrorDetails]) -> ValidationError:
    return ValidationError.from_exception_data("options", faults)


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
