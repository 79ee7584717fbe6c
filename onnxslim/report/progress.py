"""Progress where there is no terminal to draw on: a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["LineProgress"]


class LineProgress:
    """A ProgressCallback that writes `what: done of total` at most every `every_s` seconds, the first one after
    that time too, so that short jobs stay silent."""

    def __init__(self, stream: TextIO, every_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._next = clock() + every_s

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        if now >= self._next:
            self._next = now + self._every_s
            self._stream.write(f"{what}: {done} of {total}\n")
            self._stream.flush()
