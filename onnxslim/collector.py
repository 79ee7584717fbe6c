"""`paused`: Python's cycle collector rests while a graph is built or rewritten.

A graph is millions of small objects that live as long as it does. The collector looks at all of them again each time
a quarter has been added, and finds nothing: half of the time that it takes to read a large model.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["paused"]


@contextmanager
def paused() -> Generator[None, None, None]:
    """Also as a decorator; may be nested. Whoever turned the collector off turns it on again."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
