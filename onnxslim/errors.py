"""Every error a user can cause, as one tree.

    OnnxSlimError                 exit code 2, printed without a traceback
    ├── ModelError                the model file or graph is not what it claims to be
    │   ├── ModelFormatError      not an ONNX file, truncated, wrong magic
    │   ├── ExternalDataError     external data missing, short, or outside the model's folder
    │   ├── VerifyError           a graph invariant does not hold (names pass, node, op)
    │   └── CrashError            the model ended the process in which ONNX Runtime tried it
    ├── UnsupportedError          a known op, type or version that this operation cannot take
    │   └── GradientError         an op on the gradient's way has no gradient rule (names the node)
    ├── DataError                 a data set or array does not fit (dtype, shape, label range, empty)
    ├── OptionError               an option is given something wrong (names the option)
    ├── RecipeError               a recipe key, value or referenced file is wrong (names key and line)
    ├── TrainingError             a run cannot go on (NaN or infinite loss, state of another model)
    │   └── CheckpointError       a checkpoint is missing, of another run, or unreadable
    ├── InstallationError         the ONNX Runtime installation is not sound; carries the repair command
    └── OutputError               an output file cannot be written (disk full, no permission)

Messages say what, where, expected, got, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "CheckpointError",
    "CrashError",
    "DataError",
    "ExternalDataError",
    "GradientError",
    "InstallationError",
    "ModelError",
    "ModelFormatError",
    "OnnxSlimError",
    "OptionError",
    "OutputError",
    "RecipeError",
    "TrainingError",
    "UnsupportedError",
    "VerifyError",
]


class OnnxSlimError(Exception):
    """Base of all errors of this package; the command line prints it and exits with 2."""


class ModelError(OnnxSlimError):
    """The model file or graph is not what it claims to be."""


class ModelFormatError(ModelError):
    """Not an ONNX file, or a truncated one."""


class ExternalDataError(ModelError):
    """External data is missing, too short, or outside the model's folder."""


class VerifyError(ModelError):
    """A graph invariant does not hold."""


class CrashError(ModelError):
    """The process in which ONNX Runtime tried a model died, or took longer than it may."""


class UnsupportedError(OnnxSlimError):
    """A known op, type or version that this operation cannot take."""


class GradientError(UnsupportedError):
    """An op on the gradient's way has no gradient rule."""


class DataError(OnnxSlimError):
    """A data set or array does not fit what the model or the recipe asks for."""


class OptionError(OnnxSlimError):
    """What an option was given is wrong.

    faults: of each thing that is wrong, the option and what it is; dots lead to an option of an option
    ("optimizer.momentum"), and no name stands for what is none's alone. Who takes options from elsewhere than Python
    says the names in words of his own: a flag of a command, a key of a recipe.
    """

    def __init__(self, option: str, why: str, *more: tuple[str, str]) -> None:
        self.faults = ((option, why), *more)
        super().__init__("\n".join(f"{name}: {what}" if name else what for name, what in self.faults))

    @classmethod
    def of(cls, faults: Sequence[tuple[str, str]]) -> OptionError:
        """Of at least one."""
        first, *rest = faults
        return cls(*first, *rest)

    def within(self, outer: str) -> OptionError:
        """The same, of options that are in another."""
        return self.of([(f"{outer}.{name}" if name else outer, why) for name, why in self.faults])


class RecipeError(OnnxSlimError):
    """A recipe key, value or referenced file is wrong."""


class TrainingError(OnnxSlimError):
    """A training run cannot go on."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, belongs to another run, or cannot be read."""


class InstallationError(OnnxSlimError):
    """The ONNX Runtime installation is not sound."""


class OutputError(OnnxSlimError):
    """An output file cannot be written."""
