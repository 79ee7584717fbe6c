"""What is wrong with options that were given, in words; and options that a message names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ArgsKwargs, ErrorDetails

from onnxslim.errors import OptionError
from onnxslim.options.fields import Way, fields_of, known_keys

__all__ = ["Fault", "faults_in", "option_error", "reworded"]

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


_MENTION = re.compile(r"`([a-z_]+)=([^`]*)`")


def reworded(text: str, words: Callable[[str, str], str]) -> str:
    """A message with the options that it names, each written as Python does and between backquotes (`force=True`), in
    the words of who asked: words(name, value)."""
    return _MENTION.sub(lambda found: words(found[1], found[2]), text)
