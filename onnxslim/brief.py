"""`Brief`: the repr of what a call gives back, short enough to be read at a prompt whatever it holds."""

from __future__ import annotations

import dataclasses
import reprlib
from typing import Any

import numpy as np

__all__ = ["Brief"]


class _Repr(reprlib.Repr):
    """Long containers, texts and whatever lies deep are abbreviated; of an array type and shape are told."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = 2
        self.maxstring = self.maxother = 120

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, np.ndarray):
            return f"{x.dtype}{list(x.shape)}"
        if isinstance(x, float):
            return f"{x:.6g}"
        if isinstance(x, tuple | list | dict) and len(x) > self.maxtuple and not hasattr(x, "_fields"):
            return f"<{len(x)}>"
        if isinstance(x, Brief):
            return self.fields(x, level) if level > 1 else f"{type(x).__name__}(…)"
        return super().repr1(x, level)

    def fields(self, x: Any, level: int) -> str:
        """A dataclass by its fields that are not at their default."""
        shown = []
        for field in dataclasses.fields(x):
            value = getattr(x, field.name)
            if field.repr and not _is_default(field, value):
                shown.append(f"{field.name}={self.repr1(value, level - 1)}")
        return f"{type(x).__name__}({', '.join(shown)})"


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return False
    if field.default is not dataclasses.MISSING:
        return bool(value == field.default)
    return field.default_factory is not dataclasses.MISSING and bool(value == field.default_factory())


_REPR = _Repr()


class Brief:
    """A dataclass (declared with repr=False) whose repr tells type, numbers and names, and of containers the length."""

    def __repr__(self) -> str:
        return _REPR.fields(self, _REPR.maxlevel)
