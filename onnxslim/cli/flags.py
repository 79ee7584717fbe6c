"""What the engine says of its options, in the words of the command line."""

from __future__ import annotations

import re

__all__ = ["SWITCHES", "flag_of", "in_flags"]

_OTHER = {
    "data.train": "--data",
    "data.val": "--val-split",
    "freeze": "--set",
    "latency_repeats": "--repeats",
    "limits": "--limit",
    "overrides": "--set",
    "preprocess": "--mean, --std and --layout",
    "sizes": "--size",
}
"""Flags that are not called like their option."""

SWITCHES: dict[str, tuple[str, object, str]] = {
    "mode": ("--masked", "masked", "Set channels to zero and keep all shapes."),
    "per_channel": ("--per-tensor", False, "One weight scale a tensor, not one an output channel."),
}
"""Options that are a flag without a value: what the flag stands for, and its help."""

_PAIR = re.compile(r"\{'([^']*)': (\w+)\}")
_ITEM = re.compile(r"\['(.*)'\]")


def flag_of(option: str) -> str:
    """The flag of an option: `max_ratio` is --max-ratio."""
    if option in SWITCHES:
        return SWITCHES[option][0]
    return _OTHER.get(option) or f"--{option.rpartition('.')[2].replace('_', '-')}"


def in_flags(message: str) -> str:
    """A message with the options that it names as flags: `force=True` as --force, `sizes={'x': 3}` as --size x=3."""
    from onnxslim.options import reworded  # imported where it is used, so that --help is quick

    return reworded(message, _flag)


def _flag(option: str, value: str) -> str:
    pair, item = _PAIR.fullmatch(value), _ITEM.fullmatch(value)
    if pair is not None:
        return f"{flag_of(option)} {pair[1]}={pair[2]}"
    if item is not None:
        return f"{flag_of(option)} {item[1]}"
    return flag_of(option) if value in ("True", "…") else f"{flag_of(option)} {value}"
