"""What the engine says about its arguments, in the words of the command line."""

from __future__ import annotations

import re

__all__ = ["in_flags"]

_WORDS = (
    (r"\b(check|force|resume)=True\b", r"--\1"),
    (r"\boverrides: (?=\w)", "--set "),
    (r"\boverride '([^']*)'", r"--set \1"),
    (r"\bsizes=\{'([^']*)': (\w+)\}", r"--size \1=\2"),
    (r"\bweight_bits=(\d+)", r"--weight-bits \1"),
    (r"\bpreprocess=…", "--mean, --std and --layout"),
)


def in_flags(message: str) -> str:
    """The message with Python's arguments as flags: `force=True` as `--force`."""
    for pattern, flag in _WORDS:
        message = re.sub(pattern, flag, message)
    return message
