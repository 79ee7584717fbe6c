"""Options: what an object takes is declared in the object itself, once; Python, recipes and commands follow it.

An object's options are the fields of a frozen dataclass (`declared`) or of a model (`Options`), each with its type,
default, bounds and a description. Where an option is one object of several kinds, a literal table lists their classes,
and `OneOf(table)` tells them apart by `name`: `optimizer: {name: adamw, epsilon: 1e-6}`.
"""

from onnxslim.options.declare import LARGEST, Options, declared, made_of, options_of, takes
from onnxslim.options.faults import Fault, faults_in, option_error, reworded
from onnxslim.options.fields import (
    Choices,
    Entries,
    InputPath,
    OneOf,
    Way,
    as_keys,
    classes_at,
    fields_of,
    known_keys,
    named,
    options_in,
    plain_type,
    text_of,
)

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
