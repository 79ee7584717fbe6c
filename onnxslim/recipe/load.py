"""Recipe files and mappings → `Recipe`; every error names file, line and key, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from onnxslim.errors import RecipeError
from onnxslim.ir.graph import Graph
from onnxslim.recipe.schema import Recipe, model_of
from onnxslim.recipe.source import Entry, Given, Loc, Origin, apply_set, from_python, load_tree
from onnxslim.stages.base import InputPath

__all__ = ["dump_recipe", "input_paths", "load_recipe", "parse_recipe"]

_ROLES = ("train", "val", "test")
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "finite_number": "a finite number",
}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, `overrides` ("stages.1.train.epochs=2") applied, its paths absolute.

    Paths are relative to the file they are written in; those of an override to the current directory.
    Raises RecipeError, one line a fault: file, line, key, expected and got.
    """
    path = Path(path)
    tree = apply_set(load_tree(path), overrides, Path.cwd())
    recipe = _validated(tree)
    if recipe.run.name is None:
        name = path.stem or "run"
        recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"name": name})})
    return recipe


def parse_recipe(recipe: Mapping[str, object], overrides: Sequence[str] = ()) -> Recipe:
    """The same from a Python mapping, where models may be `Graph`s and data any source of `open_dataset`."""
    tree = from_python(recipe, Origin("the recipe", Path.cwd(), from_python=True))
    checked = _validated(apply_set(tree, overrides, Path.cwd()))
    if checked.run.name is None:
        stem = Path(checked.model).stem if isinstance(checked.model, str) else checked.model.name
        checked = checked.model_copy(update={"run": checked.run.model_copy(update={"name": stem or "run"})})
    return checked


def dump_recipe(recipe: Recipe, provenance: Mapping[str, Any] | None = None) -> str:
    """The recipe as YAML, every default written out. Data and graphs given from Python are described."""
    tree = _plain(recipe)
    tree.pop("provenance", None)
    for key in ("model", "teacher"):
        if isinstance(tree.get(key), Graph):
            tree[key] = f"(graph '{tree[key].name}' given from Python)"
    for role in _ROLES:
        source = getattr(recipe.data, role)
        if source is not None and source.given is not None:
            tree["data"][role]["path"] = f"({type(source.given).__name__} given from Python)"
    if provenance is not None:
        tree["provenance"] = dict(provenance)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)


def input_paths(recipe: Recipe) -> tuple[str, ...]:
    """The files and folders that a recipe reads, absolute."""
    return tuple(path for _, path, _ in _paths(recipe, ()))


def _plain(model: BaseModel) -> dict[str, Any]:
    """Keys and values without those that are not given; a list of stages keeps their one key."""
    out: dict[str, Any] = {}
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if value is None or info.exclude:
            continue
        if isinstance(value, BaseModel):
            out[name] = _plain(value)
        elif isinstance(value, list):
            out[name] = [_plain(v) if isinstance(v, BaseModel) else v for v in value]
        else:
            out[name] = value
    return out


def _validated(tree: Entry) -> Recipe:
    tree = _expanded(tree)
    recipe = _model(tree)
    missing = []
    for loc, text, must_exist in _paths(recipe, ()):
        origin = tree.at(loc).origin
        resolved = (origin.folder / Path(text).expanduser()).resolve()
        if must_exist and not resolved.exists():
            missing.append(f"{origin}: {_dotted(loc)}: file not found: {resolved} does not exist")
        tree = _with(tree, loc, str(resolved))
    if missing:
        raise RecipeError("\n".join(missing))
    return _model(tree)


def _expanded(tree: Entry) -> Entry:
    """Short forms written out: a path for a data source, nothing for keys without options."""
    if not isinstance(tree.value, dict):
        return tree
    top = dict(tree.value)
    for key in ("data", "run", "evaluate"):
        if key in top:
            top[key] = _empty_for_nothing(top[key])
    if "data" in top and isinstance(top["data"].value, dict):
        inner = {key: _source(e) if key in _ROLES else e for key, e in top["data"].value.items()}
        top["data"] = Entry(inner, top["data"].origin)
    stages = top.get("stages")
    if stages is not None and isinstance(stages.value, list):
        top["stages"] = Entry([_expanded_stage(entry) for entry in stages.value], stages.origin)
    return Entry(top, tree.origin)


def _expanded_stage(entry: Entry) -> Entry:
    if not isinstance(entry.value, dict):
        return entry
    return Entry({key: _empty_for_nothing(inner) for key, inner in entry.value.items()}, entry.origin)


def _empty_for_nothing(entry: Entry) -> Entry:
    return Entry({}, entry.origin) if entry.value is None else entry


def _source(entry: Entry) -> Entry:
    """A data source: a path becomes {path: …}, from Python an object {given: …}."""
    value, origin = entry.value, entry.origin
    if isinstance(value, str):
        return Entry({"path": entry}, origin)
    if isinstance(value, dict):
        if "given" in value and not isinstance(value["given"].value, Given):
            raise RecipeError(f"{value['given'].origin}: unknown key 'given'; known keys: path, split")
        return entry
    if origin.from_python and value is not None and not isinstance(value, bool | int | float):
        return Entry({"given": Entry(Given(entry.plain()), origin)}, origin)
    return entry


def _model(tree: Entry) -> Recipe:
    try:
        return Recipe.model_validate(tree.plain())
    except ValidationError as error:
        found = sorted(error.errors(include_url=False), key=lambda e: tree.at(e["loc"]).origin.line or 0)
        raise RecipeError("\n".join(dict.fromkeys(_message(tree, e) for e in found))) from None


def _message(tree: Entry, error: ErrorDetails) -> str:
    loc, kind = error["loc"], error["type"]
    entry = tree.at(loc)
    where = f"{entry.origin}: "
    if kind == "extra_forbidden":
        parent = loc[:-1]
        inside = f" in {_dotted(parent)}" if parent else ""
        known = _keys_at(parent)
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"{where}unknown key '{loc[-1]}'{inside}; {hint}"
    if kind == "missing":
        inside = f" in {_dotted(loc[:-1])}" if loc[:-1] else ""
        return f"{entry.origin}: key '{loc[-1]}' is missing{inside}"
    expected = _expected(error)
    got = f", got {_show(entry.plain())}" if kind not in ("value_error",) or not isinstance(entry.value, dict) else ""
    if kind == "literal_error":
        options = [str(o) for o in _literals(error)]
        near = difflib.get_close_matches(str(entry.value), options, n=1)
        got += f"; did you mean '{near[0]}'?" if near else ""
    return f"{where}{_dotted(loc)}: expected {expected}{got}"


def _expected(error: ErrorDetails) -> str:
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


def _literals(error: ErrorDetails) -> list[str]:
    text = str(error.get("ctx", {}).get("expected", ""))
    return [part.strip(" '") for part in text.replace(" or ", ", ").split(",")]


def _keys_at(loc: Loc) -> list[str]:
    model: type[BaseModel] | None = Recipe
    for key in loc:
        if isinstance(key, str):
            info = None if model is None else model.model_fields.get(key)
            model = None if info is None else model_of(info.annotation)
    if model is None:
        return []
    return [name for name, info in model.model_fields.items() if not info.exclude]


def _paths(model: BaseModel, loc: Loc) -> Iterator[tuple[Loc, str, bool]]:
    """Where input files are named: key, path, and whether it must exist."""
    for name, info in type(model).model_fields.items():
        value, here = getattr(model, name), (*loc, name)
        marks = [mark for mark in info.metadata if isinstance(mark, InputPath)]
        if isinstance(value, str) and marks:
            yield here, value, marks[0].must_exist
        elif isinstance(value, BaseModel):
            yield from _paths(value, here)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                if isinstance(inner, BaseModel):
                    yield from _paths(inner, (*here, index))


def _with(entry: Entry, loc: Loc, value: str) -> Entry:
    if not loc:
        return Entry(value, entry.origin)
    key, inner = loc[0], entry.value
    if isinstance(inner, dict):
        return Entry({**inner, key: _with(inner[key], loc[1:], value)}, entry.origin)
    items = list(inner)
    items[int(key)] = _with(items[int(key)], loc[1:], value)
    return Entry(items, entry.origin)


def _dotted(loc: Sequence[str | int]) -> str:
    return ".".join(map(str, loc)) or "the recipe"


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"text '{value}'"
    if isinstance(value, bool | int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return f"an object of type {type(value).__name__}"
