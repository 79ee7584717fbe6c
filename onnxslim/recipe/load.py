"""Recipe files and mappings → `Recipe`; every error names file, line and key, and what would be right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from onnxslim.errors import OptionError, RecipeError
from onnxslim.ir.graph import Graph
from onnxslim.options import Fault, InputPath, Options, as_keys, faults_in, fields_of
from onnxslim.recipe.schema import DataOptions, Recipe
from onnxslim.recipe.source import Entry, Given, Loc, Origin, apply_set, from_python, load_tree

__all__ = ["dump_recipe", "input_paths", "load_recipe", "parse_data", "parse_recipe"]

M = TypeVar("M", bound=Options)

_ROLES = ("train", "val", "test")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, `overrides` ("stages.1.train.epochs=2") applied, its paths absolute.

    Paths are relative to the file they are written in; those of an override to the current directory.
    Raises RecipeError, one line a fault: file, line, key, expected and got.
    """
    path = Path(path)
    tree = apply_set(load_tree(path), overrides, Path.cwd())
    recipe = _recipe_of(tree)
    if recipe.run.name is None:
        name = path.stem or "run"
        recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"name": name})})
    return recipe


def parse_recipe(recipe: Mapping[str, object], overrides: Sequence[str] = ()) -> Recipe:
    """The same from a Python mapping, where models may be `Graph`s and data any source of `open_dataset`."""
    tree = from_python(recipe, Origin("the recipe", Path.cwd(), from_python=True))
    checked = _recipe_of(apply_set(tree, overrides, Path.cwd()))
    if checked.run.name is None:
        stem = Path(checked.model).stem if isinstance(checked.model, str) else checked.model.name
        checked = checked.model_copy(update={"run": checked.run.model_copy(update={"name": stem or "run"})})
    return checked


def dump_recipe(recipe: Recipe, provenance: Mapping[str, Any] | None = None) -> str:
    """The recipe as YAML, every default written out. Data and graphs given from Python are described."""
    tree = as_keys(recipe)
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


def parse_data(data: object) -> DataOptions:
    """What stands under `data` in a recipe, from Python alone; OptionError with all that is wrong."""
    origin = Origin("", Path.cwd(), from_python=True)
    try:
        return _validated(from_python({"data": data}, origin), _DataAlone).data
    except _Faulty as found:
        raise OptionError.of([(fault.option, fault.why) for _, fault in found.faults]) from None


class _DataAlone(Options):
    data: DataOptions


class _Faulty(Exception):
    """What is wrong with a tree, and where it was written."""

    def __init__(self, faults: Sequence[tuple[Origin, Fault]]) -> None:
        super().__init__()
        self.faults = faults


def _recipe_of(tree: Entry) -> Recipe:
    try:
        return _validated(tree, Recipe)
    except _Faulty as found:
        faults = sorted(found.faults, key=lambda fault: fault[0].line or 0)
        lines = (": ".join(filter(None, (str(origin), fault.option, fault.why))) for origin, fault in faults)
        raise RecipeError("\n".join(dict.fromkeys(lines))) from None


def _validated(tree: Entry, cls: type[M]) -> M:
    tree = _expanded(tree)
    checked = _model(tree, cls)
    missing = []
    for way, text, must_exist in _paths(checked, ()):
        origin = tree.at(way).origin
        resolved = (origin.folder / Path(text).expanduser()).resolve()
        if must_exist and not resolved.exists():
            why = f"file not found: {resolved} does not exist"
            missing.append((origin, Fault(way, ".".join(map(str, way)), why)))
        tree = _with(tree, way, str(resolved))
    if missing:
        raise _Faulty(missing)
    return _model(tree, cls)


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


def _model(tree: Entry, cls: type[M]) -> M:
    given = tree.plain()
    try:
        return cls.model_validate(given)
    except ValidationError as error:
        raise _Faulty([(tree.at(fault.way).origin, fault) for fault in faults_in(error, cls, given)]) from None


def _paths(options: object, way: Loc) -> Iterator[tuple[Loc, str, bool]]:
    """Where input files are named: key, path, and whether it must exist."""
    for name, info in fields_of(type(options)).items():
        value, here = getattr(options, name), (*way, name)
        marks = [mark for mark in info.metadata if isinstance(mark, InputPath)]
        if isinstance(value, str) and marks:
            yield here, value, marks[0].must_exist
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                yield from _paths(inner, (*here, index))
        else:
            yield from _paths(value, here)


def _with(entry: Entry, loc: Loc, value: str) -> Entry:
    if not loc:
        return Entry(value, entry.origin)
    key, inner = loc[0], entry.value
    if isinstance(inner, dict):
        return Entry({**inner, key: _with(inner[key], loc[1:], value)}, entry.origin)
    items = list(inner)
    items[int(key)] = _with(items[int(key)], loc[1:], value)
    return Entry(items, entry.origin)
