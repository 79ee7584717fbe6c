"""Names to choose from that the command line shows before it imports anything else."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["Criterion", "Layout", "Strategy"]

Criterion: TypeAlias = Literal["l1", "l2", "bn_scale", "fpgm", "taylor", "random"]
"""What tells channels that matter from those that do not."""

Layout: TypeAlias = Literal["NCHW", "NHWC"]
"""The axes of a model's image input."""

Strategy: TypeAlias = Literal["uniform", "global", "sensitivity"]
"""How a cut is spread over the channel groups."""
