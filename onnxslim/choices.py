"""Names to choose from that the command line shows before it imports anything else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["IMAGES", "TARGETS", "AxisOrder"]

AxisOrder: TypeAlias = Literal["NCHW", "NHWC"]
"""The axes of a model's image input."""


def _targets() -> tuple[str, ...]:
    """The names of the profiles in `targets/`, and then their aliases, without reading them as YAML."""
    texts = {file.stem: file.read_text("utf-8") for file in (Path(__file__).parent / "targets").glob("*.yaml")}
    names = sorted(texts, reverse=True)
    listed = (re.search(r"^aliases: \[(.*)\]$", texts[name], re.MULTILINE) for name in names)
    return (*names, *(alias.strip() for found in listed if found for alias in found[1].split(",") if alias.strip()))


TARGETS = _targets()
"""What a model can be quantised for."""

IMAGES = "Image folder, zip of one, .npz, or CIFAR-10 binary archive."
"""What data may be: said in a recipe's documentation and in the help of every command."""
