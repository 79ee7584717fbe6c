"""Recipe text → tree with origins: YAML 1.2 scalars, includes, overrides, and their errors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.errors import RecipeError
from onnxslim.recipe.source import Origin, apply_set, from_python, load_tree, parse_yaml


def parse(text: str) -> object:
    return parse_yaml(text, "r.yaml", Path()).plain()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-.5", -0.5),
        (".inf", float("inf")),
        ("0x10", 16),
        ("010", 10),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse(f"a: {text}")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)  # type: ignore[index]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_prints_is_read_back(number: float) -> None:
    assert parse(f"a: {number!r}") == {"a": number}


def test_origins_are_lines_of_keys_and_items() -> None:
    tree = parse_yaml("a: 1\nb:\n  - x\n  - y:\n      z: 2\n", "r.yaml", Path())
    assert [str(tree.at(loc).origin) for loc in (("a",), ("b",), ("b", 1), ("b", 1, "y", "z"))] == [
        "r.yaml:1",
        "r.yaml:2",
        "r.yaml:4",
        "r.yaml:5",
    ]
    assert str(tree.at(("b", 1, "nothing", "here")).origin) == "r.yaml:4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2", "r.yaml:2: not valid YAML"),
        ("a: 1\na: 2", "r.yaml:2: key 'a' is given twice"),
        ("a: !!python/object/apply:os.system [echo]", "r.yaml:1: .*not allowed"),
        ("a: !!python/name:os.system", "r.yaml:1: .*not allowed"),
        ("a: &x [*x]", "r.yaml:1: an alias"),
        ("[1]: 2", "r.yaml:1: expected a word as a key"),
        ("a: \x01", "r.yaml: not valid YAML"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(text)


def test_includes_merge_deeply_and_the_file_itself_wins(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").write_text("x: {p: 1, q: 1}\nlist: [1, 2]\nfrom: a\n")
    (tmp_path / "b.yaml").write_text("x: {q: 2}\nfrom: b\n")
    (tmp_path / "r.yaml").write_text("include: [sub/a.yaml, b.yaml]\nx: {r: 3}\nlist: [9]\n")
    tree = load_tree(tmp_path / "r.yaml")
    assert tree.plain() == {"x": {"p": 1, "q": 2, "r": 3}, "list": [9], "from": "b"}
    assert tree.at(("x", "p")).origin.folder == tmp_path / "sub"
    assert str(tree.at(("x", "p")).origin).endswith("a.yaml:1")


def test_circles_of_includes_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("include: b.yaml\n")
    (tmp_path / "b.yaml").write_text("y: 1\ninclude: a.yaml\n")
    with pytest.raises(RecipeError, match=r"b\.yaml:2: .*circle: a\.yaml → b\.yaml → a\.yaml"):
        load_tree(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: gone.yaml\n", r"r\.yaml:1: included recipe not found: .*gone\.yaml does not exist"),
        ("include: 3\n", r"r\.yaml:1: include: expected the name of a file, got 3"),
        ("- 1\n", r"expected keys and values .*got a list"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_tree(tmp_path / "r.yaml")


def test_a_missing_or_binary_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="recipe not found: .*gone.yaml does not exist"):
        load_tree(tmp_path / "gone.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read as a recipe"):
        load_tree(tmp_path / "b.yaml")


TREE = "a: {b: 1}\nlist:\n  - t: {epochs: 10}\n  - u\n"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("a.b=2", {"a": {"b": 2}}),
        ("a.b=x=y", {"a": {"b": "x=y"}}),
        ("a.c.d=[1, 2]", {"a": {"b": 1, "c": {"d": [1, 2]}}}),
        ("a.b=1e-3", {"a": {"b": 1e-3}}),
        ("a.b=", {"a": {}}),
        ("list.0.t.epochs=2", {"list": [{"t": {"epochs": 2}}, "u"]}),
        ("list.-1=v", {"list": [{"t": {"epochs": 10}}, "v"]}),
        ("new={x: 1}", {"new": {"x": 1}}),
    ],
)
def test_set_replaces_by_keys_and_indices(assignment: str, expected: dict[str, object]) -> None:
    tree = parse_yaml(TREE, "r.yaml", Path())
    changed = apply_set(tree, [assignment], Path("/here"))
    assert changed.plain() == {**tree.plain(), **expected}


def test_a_set_value_remembers_that_it_was_set() -> None:
    tree = apply_set(parse_yaml(TREE, "r.yaml", Path()), ["a.b=2"], Path("/here"))
    origin = tree.at(("a", "b")).origin
    assert (str(origin), origin.folder) == ("`overrides=['a.b=2']`", Path("/here"))
    assert str(tree.at(("a",)).origin) == "r.yaml:1"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("a.b", r"overrides=\['a.b'\]`: expected key=value"),
        (".b=1", "expected key=value"),
        ("a.b.c=1", r"overrides=\['a.b.c=1'\]`: 'a.b' is a value .1. and has no key 'c'"),
        ("list.7.t=1", "'list' is a list of 2: expected an index from 0 to 1, got '7'"),
        ("list.t=1", "'list' is a list of 2: .*got 't'"),
        ("a.b=[1", r"overrides=\['a.b=.1'\]`: not valid YAML"),
    ],
)
def test_a_set_that_leads_nowhere_is_an_error(assignment: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        apply_set(parse_yaml(TREE, "r.yaml", Path()), [assignment], Path())


def test_python_mappings_become_trees_and_arrays_are_carried() -> None:
    arrays = {"image": np.zeros((2, 3)), "label": [0, 1]}
    tree = from_python({"a": {"b": (1, 2)}, "data": arrays}, Origin("the recipe", Path()))
    assert tree.plain()["a"] == {"b": [1, 2]}
    assert tree.plain()["data"] is arrays


# ---------------------------------------------------------------- from strangers


def test_includes_that_double_are_bounded(tmp_path: Path) -> None:
    """25 files, each of which includes the next one twice: 33 million readings."""
    for number in range(25):
        (tmp_path / f"{number}.yaml").write_text(f"include: [{number + 1}.yaml, {number + 1}.yaml]\n")
    (tmp_path / "25.yaml").write_text("model: a.onnx\n")
    with pytest.raises(RecipeError, match="more than 100 files"):
        load_tree(tmp_path / "0.yaml")


def test_a_recipe_and_its_includes_are_bounded_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text(f"model: a.onnx\n# {'x' * 300_000}\n")
    (tmp_path / "r.yaml").write_text("include: [large.yaml, large.yaml]\n")
    with pytest.raises(RecipeError, match="524,288 bytes"):
        load_tree(tmp_path / "r.yaml")
    (tmp_path / "huge.yaml").write_text("x" * 2_000_000)
    with pytest.raises(RecipeError, match=r"expected at most 524,288 bytes, got 2,000,000"):
        load_tree(tmp_path / "huge.yaml")


@pytest.mark.parametrize("depth", [60, 100_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_deep_nesting_is_refused(depth: int, brackets: str, tmp_path: Path) -> None:
    opening = brackets[0] if brackets == "[]" else "{a: "
    text = opening * depth + brackets[1] * depth
    with pytest.raises(RecipeError, match="nested more than 50 deep"):
        parse_yaml(f"a: {text}", "r.yaml", tmp_path)
    with pytest.raises(RecipeError, match="nested more than 50 deep"):
        apply_set(parse_yaml("a: 1", "r.yaml", tmp_path), [f"a={text}"], tmp_path)


def test_a_mapping_from_python_that_contains_itself() -> None:
    given: dict[str, object] = {}
    given["data"] = given
    with pytest.raises(RecipeError, match="nested more than 50 deep"):
        from_python(given, Origin("the recipe", Path(), from_python=True))


def test_a_whole_number_of_thousands_of_digits(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a whole number of 5000 digits"):
        parse_yaml(f"a: {'9' * 5000}", "r.yaml", tmp_path)


@pytest.mark.parametrize("name", ["pipe", os.devnull, "a\0b", "ring"])
def test_what_is_no_file(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "ring").symlink_to("ring")
    with pytest.raises(RecipeError, match="cannot be read as a recipe"):
        load_tree(name if name == os.devnull else tmp_path / name)
