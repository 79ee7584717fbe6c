"""A recipe's text as a tree that remembers where every value was written.

YAML 1.2's plain scalars are read (so `1e-3` is a number and `no` is a word), nothing is executed, and
the same tree takes `include:`d files, overrides and mappings given from Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from onnxslim.budget import RECIPE_BYTES, RECIPE_DEPTH, RECIPE_ENTRIES, RECIPE_FILES, Budget
from onnxslim.errors import RecipeError
from onnxslim.files import read_regular

__all__ = ["Entry", "Given", "Loc", "Origin", "apply_set", "from_python", "load_tree", "parse_yaml"]

Loc: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the top."""

INCLUDE = "include"
_LONGEST_NUMBER = 100
_TOO_DEEP = f"lists and keys are nested more than {RECIPE_DEPTH} deep"
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Origin:
    """Where a value was written. `folder` is what relative paths in it are relative to."""

    source: str
    folder: Path
    line: int | None = None
    from_python: bool = False

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Given:
    """An object from Python that is not taken apart."""

    object: Any


@dataclass(frozen=True)
class Entry:
    """A value: a mapping or a list of entries, or a scalar (from Python: an object)."""

    value: Any
    origin: Origin

    def at(self, loc: Loc) -> Entry:
        """The entry at `loc`, or the nearest one above it that exists."""
        entry = self
        for key in loc:
            inner = entry.value
            is_there = isinstance(inner, dict) and key in inner
            if not is_there and not (isinstance(inner, list) and isinstance(key, int) and 0 <= key < len(inner)):
                break
            entry = inner[key]
        return entry

    def plain(self) -> Any:
        """The value without origins."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [entry.plain() for entry in self.value]
        return self.value.object if isinstance(self.value, Given) else self.value


class _Loader(yaml.SafeLoader):
    """Plain scalars as in YAML 1.2's core schema."""


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_pattern})$"), list(_first))


def load_tree(path: str | Path) -> Entry:
    """A recipe file with what it includes merged in; RecipeError where one is missing or no YAML mapping.

    `include:` names a file or a list of them, relative to the file it stands in. Later files win over
    earlier ones, and the file itself over what it includes; mappings merge, lists are replaced.
    """
    return _load(Path(path), None, (), _Reading())


def parse_yaml(text: str, source: str, folder: Path) -> Entry:
    """One YAML document as a tree; RecipeError naming `source` and the line where it is none."""
    return _compose(text, source, folder, None)


def from_python(value: Any, origin: Origin, depth: int = 0) -> Entry:
    """A tree from Python's mappings and sequences, paths as text; other objects, mappings of arrays among them,
    are carried as they are."""
    if depth > RECIPE_DEPTH:
        raise RecipeError(f"{origin}: {_TOO_DEEP}")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value) or any(hasattr(v, "dtype") for v in value.values()):
            return Entry(Given(value), origin)
        return Entry({key: from_python(inner, origin, depth + 1) for key, inner in value.items()}, origin)
    if isinstance(value, list | tuple):
        return Entry([from_python(inner, origin, depth + 1) for inner in value], origin)
    return Entry(str(value) if isinstance(value, Path) else value, origin)


def apply_set(tree: Entry, assignments: Sequence[str], folder: Path) -> Entry:
    """The tree with each `a.b.0.c=value` applied in order; the value is YAML (nothing: back to the
    default), numbers index lists.

    Relative paths in a value are relative to `folder`. Raises RecipeError on a malformed assignment or
    a way that does not exist; whether the last key is known, the schema says.
    """
    for text in assignments:
        way, equals, value = text.partition("=")
        keys = way.strip().split(".")
        if not equals or not all(keys):
            raise RecipeError(f"`overrides=['{text}']`: expected key=value, for example stages.1.train.epochs=2")
        origin = Origin(f"`overrides=['{text}']`", folder)
        new = _compose(value, origin.source, folder, origin) if value.strip() else Entry(None, origin)
        tree = _replaced(tree, keys, new, "")
    return tree


def _replaced(entry: Entry, keys: Sequence[str], new: Entry, way: str) -> Entry:
    if not keys:
        return new
    key, rest = keys[0], keys[1:]
    here = f"'{way}'" if way else "the recipe"
    inner = {} if entry.value is None else entry.value
    if isinstance(inner, list):
        if not re.fullmatch(r"-?\d+", key) or not -len(inner) <= int(key) < len(inner):
            raise RecipeError(
                f"{new.origin}: {here} is a list of {len(inner)}: expected an index from 0 to {len(inner) - 1}, "
                f"got '{key}'"
            )
        index = int(key) % len(inner)
        items = list(inner)
        items[index] = _replaced(items[index], rest, new, f"{way}.{index}".lstrip("."))
        return Entry(items, entry.origin)
    if not isinstance(inner, dict):
        raise RecipeError(f"{new.origin}: {here} is a value ({inner!r}) and has no key '{key}'")
    if not rest and new.value is None:
        return Entry({k: e for k, e in inner.items() if k != key}, entry.origin)
    below = inner.get(key, Entry(None, new.origin))
    return Entry({**inner, key: _replaced(below, rest, new, f"{way}.{key}".lstrip("."))}, entry.origin)


@dataclass
class _Reading:
    """What may still be read for one recipe, its includes each time that they are included."""

    files: Budget = field(default_factory=lambda: Budget(RECIPE_FILES))
    bytes: Budget = field(default_factory=lambda: Budget(RECIPE_BYTES))


def _load(path: Path, asked_by: Entry | None, above: tuple[Path, ...], reading: _Reading) -> Entry:
    where = f"{asked_by.origin}: " if asked_by is not None else ""
    try:
        resolved = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a folder that is gone, links in a circle
        raise RecipeError(f"{where}{str(path)!r} cannot be read as a recipe: {error}") from None
    if resolved in above:
        cycle = " → ".join(p.name for p in (*above[above.index(resolved) :], resolved))
        raise RecipeError(f"{where}recipes include each other in a circle: {cycle}")
    try:
        data = read_regular(resolved, RECIPE_BYTES)
        text = data.decode("utf-8")
    except FileNotFoundError:
        what = "included recipe" if asked_by is not None else "recipe"
        raise RecipeError(f"{where}{what} not found: {resolved} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{where}{path} cannot be read as a recipe: {error}") from None
    if not reading.files.spend(1) or not reading.bytes.spend(len(data)):
        raise RecipeError(
            f"{where}a recipe and all that it includes have more than {RECIPE_FILES} files or {RECIPE_BYTES:,} bytes, "
            "each counted as often as it is included"
        )
    tree = _compose(text, str(path), resolved.parent, None)
    if not isinstance(tree.value, dict):
        raise RecipeError(f"{path}: expected keys and values such as `model: model.onnx`, got {_kind_of(tree.value)}")
    included = tree.value.pop(INCLUDE, None)
    if included is None:
        return tree
    merged = Entry({}, tree.origin)
    for entry in included.value if isinstance(included.value, list) else [included]:
        if not isinstance(entry.value, str):
            raise RecipeError(f"{entry.origin}: include: expected the name of a file, got {_kind_of(entry.value)}")
        merged = _merged(merged, _load(path.parent / entry.value, entry, (*above, resolved), reading))
    return _merged(merged, tree)


def _merged(below: Entry, above: Entry) -> Entry:
    if not (isinstance(below.value, dict) and isinstance(above.value, dict)):
        return above
    merged = dict(below.value)
    for key, entry in above.value.items():
        merged[key] = _merged(merged[key], entry) if key in merged else entry
    return Entry(merged, above.origin)


def _compose(text: str, source: str, folder: Path, origin: Origin | None) -> Entry:
    """With `origin`, every entry has that one instead of its line."""
    if _brackets(text) > 2 * RECIPE_DEPTH:  # the parser would take minutes to find out
        raise RecipeError(f"{source}: {_TOO_DEEP}")
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None or origin is not None else f":{mark.line + 1}"
        raise RecipeError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: not valid YAML: {error}") from None
    except RecursionError:
        raise RecipeError(f"{source}: {_TOO_DEEP}") from None
    if node is None:
        return Entry({}, origin or Origin(source, folder, 1))
    return _Builder(source, folder, origin).build(node, node.start_mark.line, ())


def _brackets(text: str) -> int:
    """How many are open at a time, at most, in words and comments too."""
    depth = deepest = 0
    for bracket in re.findall(r"[][{}]", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


class _Builder:
    def __init__(self, source: str, folder: Path, origin: Origin | None) -> None:
        self._source, self._folder, self._origin = source, folder, origin
        self._left = Budget(RECIPE_ENTRIES)

    def build(self, node: yaml.Node, line: int, above: tuple[int, ...]) -> Entry:
        """`line`: zero-based, of the key or the list item that holds the node."""
        origin = self._origin or Origin(self._source, self._folder, line + 1)
        if not self._left.spend(1) or id(node) in above:
            raise RecipeError(f"{origin}: an alias (*) repeats what contains it, or too often")
        if len(above) > RECIPE_DEPTH:
            raise RecipeError(f"{origin}: {_TOO_DEEP}")
        above = (*above, id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            inner: dict[str, Entry] = {}
            for key, value in self._pairs(node):
                if key in inner:
                    raise RecipeError(f"{self._at(value[1])}: key '{key}' is given twice")
                inner[key] = self.build(value[0], value[1], above)
            return Entry(inner, origin)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return Entry([self.build(item, item.start_mark.line, above) for item in node.value], origin)
        if isinstance(node, yaml.ScalarNode):
            return Entry(self._scalar(node, origin), origin)
        raise RecipeError(f"{origin}: '{node.tag}' is not allowed here: expected plain keys, lists and values")

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[str, tuple[yaml.Node, int]]]:
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"{self._at(key.start_mark.line)}: expected a word as a key")
            yield key.value, (value, key.start_mark.line)

    def _at(self, line: int) -> Origin:
        return self._origin or Origin(self._source, self._folder, line + 1)

    def _scalar(self, node: yaml.ScalarNode, origin: Origin) -> Any:
        text: str = node.value
        match node.tag.removeprefix(_TAG):
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                if len(text) > _LONGEST_NUMBER:
                    raise RecipeError(f"{origin}: a whole number of {len(text)} digits is not allowed here")
                return int(text, 0) if text.startswith(("0x", "0o")) else int(text)
            case "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        raise RecipeError(f"{origin}: '{node.tag}' is not allowed here: expected a plain value")


def _kind_of(value: Any) -> str:
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else repr(value)
