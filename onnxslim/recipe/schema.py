"""The recipe's keys: what each means, its type, its default."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, PlainValidator, WithJsonSchema, create_model, model_validator

from onnxslim.budget import MOST_PIXELS, MOST_SEED, MOST_THREADS
from onnxslim.choices import IMAGES
from onnxslim.data import AxisOrder
from onnxslim.evaluation import CompareOptions
from onnxslim.ir.graph import Graph
from onnxslim.options import InputPath, OneOf, Options, fields_of, options_in
from onnxslim.stages import STAGES
from onnxslim.stages.base import Stage

__all__ = [
    "DataOptions",
    "EvaluateOptions",
    "Key",
    "Normalize",
    "Recipe",
    "RunOptions",
    "SourceOptions",
    "StageEntry",
    "describe",
    "json_schema",
]


def _model_source(value: object) -> object:
    if isinstance(value, Graph) or (isinstance(value, str) and value):
        return value
    raise ValueError("the path of an ONNX file")


def _data_object(value: object) -> object:
    if isinstance(value, str | int | float | bool) or value is None:
        raise ValueError("a data set, a mapping of arrays or an iterable, from Python")
    return value


_PATH = WithJsonSchema({"type": "string"})
_ModelSource = PlainValidator(_model_source)


class SourceOptions(Options):
    """Where samples come from. A path alone may stand for all of this: `train: cifar10.zip`."""

    path: Annotated[str | None, InputPath()] = Field(default=None, description=IMAGES)
    split: str | None = Field(
        default=None,
        description="Part of it: train, val, test, or a slice such as train[:45000]. "
        "Default: the role's own name where several roles name the same path.",
    )
    given: Annotated[Any, PlainValidator(_data_object), _PATH] = Field(
        default=None,
        description="From Python only: a data set, a mapping of arrays, or an iterable.",
        exclude=True,
        repr=False,
    )

    @model_validator(mode="after")
    def _one_source(self) -> SourceOptions:
        if (self.path is None) == (self.given is None):
            raise ValueError("a path")
        return self


class Normalize(Options):
    """(x − mean) / std, per channel, in the units of the data: 0–255 for image files."""

    mean: list[float] = Field(default=[], description="One value a channel, or one for all.")
    std: list[Annotated[float, Field(gt=0)]] = Field(default=[], description="As many as means.")

    @model_validator(mode="after")
    def _as_many(self) -> Normalize:
        if len(self.mean) != len(self.std):
            raise ValueError(f"as many stds as means ({len(self.mean)}), got {len(self.std)}")
        return self


class DataOptions(Options):
    """The data and how they become the model's input."""

    train: SourceOptions | None = Field(
        default=None, description="What is trained and calibrated on. Labels are optional."
    )
    val: SourceOptions | None = Field(default=None, description="What decisions are made on, such as the best epoch.")
    test: SourceOptions | None = Field(default=None, description="What is measured once, at the end.")
    normalize: Normalize = Field(default=Normalize(), description="Default: none.")
    layout: AxisOrder = Field(default="NCHW", description="Of the model's image input.")
    resize: list[Annotated[int, Field(ge=1, le=MOST_PIXELS)]] | None = Field(
        default=None,
        description="[height, width] to which image files are resized. Default: as they are.",
        min_length=2,
        max_length=2,
    )
    label_name: str = Field(default="label", description="Name of the labels among named arrays.")


class RunOptions(Options):
    """The run itself."""

    name: str | None = Field(
        default=None, description="Its folder's name. Default: the recipe file's.", pattern=r"^[^/\\]*[^/\\.][^/\\]*$"
    )
    folder: str = Field(default="runs", description="Where runs are put; relative to the current directory.")
    seed: int = Field(default=0, ge=0, le=MOST_SEED, description="Of shuffling and augmentation.")
    workers: int | None = Field(
        default=None,
        ge=1,
        le=MOST_THREADS,
        description="Training workers, one thread each. Default: one a core, at most 4.",
    )


class EvaluateOptions(CompareOptions):
    """What is measured."""

    test: bool = Field(default=False, description="Measure the baseline and the result on data.test, once, at the end.")


class StageEntry(Options):
    """One entry of `stages`: a stage's name, and its options."""

    @property
    def stage(self) -> Stage:
        """The one stage that is given."""
        stage: Stage = next(s for s in (getattr(self, cls.kind) for cls in STAGES) if s is not None)
        return stage

    @model_validator(mode="after")
    def _exactly_one(self) -> StageEntry:
        given = [cls.kind for cls in STAGES if getattr(self, cls.kind) is not None]
        if len(given) != 1:
            names = ", ".join(cls.kind for cls in STAGES)
            raise ValueError(f"one stage an entry ({names}), got {' and '.join(given) or 'none'}")
        return self


if TYPE_CHECKING:
    _Entry = StageEntry
else:  # one key for every stage there is
    _Entry = create_model(
        "StageEntry",
        __base__=StageEntry,
        **{cls.kind: (cls | None, Field(None, description=cls.__doc__)) for cls in STAGES},
    )


class Recipe(Options):
    """A run: which model, what data, and what is done, stage by stage."""

    model: Annotated[Any, _ModelSource, _PATH, InputPath()] = Field(description="The float ONNX model to compress.")
    teacher: Annotated[Any, PlainValidator(lambda v: None if v is None else _model_source(v)), _PATH, InputPath()] = (
        Field(None, description="A trained ONNX model of the same outputs, to distil from.")
    )
    data: DataOptions = Field(default=DataOptions(), description="The data.")
    run: RunOptions = Field(default=RunOptions(), description="The run.")
    stages: list[_Entry] = Field(description="What is done, in order.", min_length=1)
    evaluate: EvaluateOptions = Field(default=EvaluateOptions(), description="What is measured.")
    provenance: dict[str, Any] | None = Field(
        default=None, description="Versions, machine and digests, noted by a run in its resolved recipe; not read."
    )


@dataclass(frozen=True)
class Key:
    """One documented key: where it is ("stages.train.epochs"), its type, default and meaning."""

    path: str
    type: str
    default: str
    description: str


def describe(model: type = Recipe, prefix: str = "") -> Iterator[Key]:
    """Every key of the recipe, top down."""
    yield from _described(((model,), ()), prefix)


def _described(kinds: tuple[tuple[Any, ...], tuple[str, ...]], prefix: str) -> Iterator[Key]:
    """The keys of one class, or of several that `names` tell apart, each key once."""
    classes, names = kinds
    for name in dict.fromkeys(name for cls in classes for name in fields_of(cls)):
        infos = {number: fields_of(cls)[name] for number, cls in enumerate(classes) if name in fields_of(cls)}
        info = next(iter(infos.values()))
        path, text = f"{prefix}{name}", " ".join((info.description or "").split())
        default = "required" if info.is_required() else ""
        if len(infos) < len(classes):
            needed, default = (", required", "—") if default else ("", "")
            text = f"Of {' and '.join(names[number] for number in infos)}{needed}: {text[0].lower()}{text[1:]}"
        inner = options_in(info)
        if not inner:
            default = default or _show(info.get_default(call_default_factory=True))
            yield Key(path, _type_name(info.annotation), default, text)
            continue
        path += "[…]" if get_origin(info.annotation) is list else ""
        named = [mark for mark in info.metadata if isinstance(mark, OneOf) and mark.named]
        if named and named[0].from_text is not None and not any(map(fields_of, inner)):  # its name says all
            yield Key(path, " | ".join(cls.name for cls in named[0].table), named[0].table[0].name, text)
            continue
        yield Key(path, "keys", default, text)
        if named:
            inside = tuple(cls.name for cls in named[0].table)
            yield Key(f"{path}.name", " | ".join(inside), inside[0], "Which one.")
            yield from _described((inner, inside), f"{path}.")
        else:
            yield from _described((inner, ()), f"{path}.")


def json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors."""
    return Recipe.model_json_schema()


_NAMES: Mapping[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "path"}


def _type_name(annotation: Any) -> str:
    origin, args = get_origin(annotation), [a for a in get_args(annotation) if a is not type(None)]
    if origin is Annotated:
        return _type_name(args[0])
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in (list, tuple):
        return f"list of {_type_name(args[0])}"
    if origin is dict:
        return "keys and values"
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(a) for a in args)
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _show(value: Any) -> str:
    if value is None or value in ([], (), ""):
        return "—"
    if isinstance(value, tuple):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
