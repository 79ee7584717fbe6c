"""Options: declared once, in the object that takes them; checked alike wherever they come from."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field, ValidationError

from onnxslim.errors import OptionError
from onnxslim.options import OneOf, Options, as_keys, declared, fields_of, option_error


@declared
class Ball:
    """Round."""

    radius: Annotated[float, Field(gt=0, description="In cm.")] = 1.0
    spots: Annotated[tuple[int, ...], Field(strict=False, description="Where.")] = ()
    seen: Annotated[bool, Field(exclude=True)] = True
    name: ClassVar[str] = "ball"


@declared
class Box:
    """Square."""

    side: Annotated[float, Field(gt=0, description="In cm.")]
    name: ClassVar[str] = "box"


class Toys(Options):
    """All of them."""

    first: Annotated[Ball | Box, OneOf((Ball, Box))] = Field(default=Ball(), description="One.")
    only: Annotated[Box | None, OneOf((Box,), optional=True)] = Field(default=None, description="Another.")
    count: int = Field(default=1, ge=1, description="How many.")


def fault(given: Any) -> str:
    with pytest.raises(ValidationError) as error:
        Toys.model_validate(given)
    return str(option_error(error.value, Toys, given))


def test_objects_are_made_from_keys_by_name() -> None:
    assert Toys.model_validate({}) == Toys()
    assert Toys.model_validate({"first": {"radius": 2, "spots": [1, 2]}}).first == Ball(2.0, (1, 2))
    toys = Toys.model_validate({"first": {"name": "box", "side": 3}, "only": {"side": 4}})
    assert (toys.first, toys.only) == (Box(3), Box(4))
    assert Toys(first=Box(5), only=None).first == Box(5)


def test_keys_give_the_same_object_again() -> None:
    toys = Toys(first=Box(2), only=Box(3), count=4)
    keys = {"first": {"name": "box", "side": 2.0}, "only": {"side": 3.0}, "count": 4}
    assert as_keys(toys) == keys
    assert toys.model_dump(mode="json") == keys
    assert Toys.model_validate(keys) == toys


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"first": {"name": "bax"}}, "first.name: expected 'ball' or 'box', got text 'bax'; did you mean 'box'?"),
        ({"first": {"name": "box", "side": 1, "radius": 1}}, "first.radius: an option of ball; box takes side"),
        ({"first": {"name": "box"}}, "key 'side' is missing in first"),
        ({"first": {"radios": 1}}, "unknown key 'radios' in first; did you mean 'radius'?"),
        ({"first": {"seen": False}}, "unknown key 'seen' in first; known keys: name, radius, spots"),
        ({"first": {"radius": "1"}}, "first.radius: expected a number, got text '1'"),
        ({"first": {"radius": 0}}, "first.radius: expected more than 0.0, got 0"),
        ({"first": {"radius": float("nan")}}, "first.radius: expected a finite number, got nan"),
        ({"first": {"spots": [1, "2"]}}, "first.spots.1: expected a whole number, got text '2'"),
        ({"first": "ball"}, "first: expected keys and values, got text 'ball'"),
        ({"first": None}, "first: expected keys and values, got nothing"),
        (
            {"first": {"name": "box", "radius": 1, "height": 2}},
            "first.radius: an option of ball; box takes side\nunknown key 'height' in first; known keys: name, side",
        ),
        ({"only": {"name": "box"}}, "unknown key 'name' in only; known keys: side"),
        ({"count": 0, "first": 1}, "first: expected keys and values, got 1\ncount: expected at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_named(given: Any, message: str) -> None:
    assert fault(given) == message


def test_an_object_made_from_python_is_checked_too() -> None:
    for make, message in (
        (lambda: Ball(0), r"^radius: expected more than 0\.0, got 0$"),
        (lambda: Ball(1.0, ("a",)), r"^spots\.0: expected a whole number, got text 'a'$"),
        (lambda: Ball(radios=1), r"^unknown key 'radios'; did you mean 'radius'\?$"),
        (lambda: Box(), r"^key 'side' is missing$"),
        (lambda: replace(Ball(), radius=-1), r"^radius: expected more than 0\.0, got -1$"),
    ):
        with pytest.raises(OptionError, match=message):
            make()
    assert Ball(seen=False).seen is False
    with pytest.raises(FrozenInstanceError):
        Ball().radius = 2.0  # type: ignore[misc]


def test_the_schema_tells_the_kinds_apart() -> None:
    schema = Toys.model_json_schema()["properties"]["first"]
    ball, box = schema["oneOf"]
    assert (ball["properties"]["name"]["const"], ball["required"]) == ("ball", [])
    assert (box["properties"]["name"]["const"], box["required"]) == ("box", ["name", "side"])
    assert "seen" not in ball["properties"]


def test_tables_and_their_classes_say_what_they_take() -> None:
    """Every class that a table lists has a name of its own, a docstring, and a description of each option."""
    from onnxslim.recipe import Recipe
    from onnxslim.stages import STAGES

    tables = [mark.table for cls in (Recipe, *STAGES) for info in fields_of(cls).values()
              for mark in info.metadata if isinstance(mark, OneOf)]  # fmt: skip
    assert len(tables) >= 4
    for table in tables:
        names = [cls.name for cls in table] if len(table) > 1 else []
        assert len(set(names)) == len(names)
        for cls in table:
            assert cls.__doc__
            assert all(info.description for info in fields_of(cls).values())
