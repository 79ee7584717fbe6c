"""Progress where there is no terminal to draw on: a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["LineProgress"]


class LineProgress:
    """A ProgressCallback that writes `what: done of total, about so long left` at most every `every_s` seconds, the
    first one after that time too, so that short jobs stay silent."""

    def __init__(self, stream: TextIO, every_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._next = clock() + every_s
        self._begun = ("", clock(), 0)  # what is done, since when, and how much of it was done then

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        if what != self._begun[0] or done < self._begun[2]:
            self._begun = (what, now, done)
        if now >= self._next:
            self._next = now + self._every_s
            _, since, before = self._begun
            left = f", about {_span((now - since) / (done - before) * (total - done))} left" if done > before else ""
            self._stream.write(f"{what}: {done:,} of {total:,}{left}\n")
            self._stream.flush()


def _span(seconds: float) -> str:
    for unit, size in (("s", 1), ("min", 60)):
        if seconds < 100 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"
