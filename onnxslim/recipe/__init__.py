"""Recipes: what a run does, as a strictly validated YAML file or Python mapping."""

from onnxslim.recipe.load import dump_recipe, input_paths, load_recipe, parse_data, parse_recipe
from onnxslim.recipe.schema import (
    DataOptions,
    EvaluateOptions,
    Normalize,
    Recipe,
    RunOptions,
    SourceOptions,
    StageEntry,
    describe,
    json_schema,
)

__all__ = [
    "DataOptions",
    "EvaluateOptions",
    "Normalize",
    "Recipe",
    "RunOptions",
    "SourceOptions",
    "StageEntry",
    "describe",
    "dump_recipe",
    "input_paths",
    "json_schema",
    "load_recipe",
    "parse_data",
    "parse_recipe",
]
