"""Progress where there is no terminal to draw on: a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from onnxslim.data import time_in_words

__all__ = ["LineProgress"]


class LineProgress:
    """A ProgressCallback that writes `what: done of total, about so long left` at most every `every_s` seconds, the
    first one after that time too, so that short jobs stay silent. What is left is reckoned from all that was done
    here: what lies between two calls, such as a validation after each epoch, takes its share of the rest too."""

    def __init__(self, stream: TextIO, every_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._next = clock() + every_s
        self._begun: dict[str, tuple[float, int]] = {}  # by what is done: since when, and how much was done then
        self._last: dict[str, int] = {}

    def say(self, line: str) -> None:
        """Writes a line at once."""
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        if what not in self._begun or done < self._last[what]:
            self._begun[what] = now, done
        self._last[what] = done
        if now >= self._next:
            self._next = now + self._every_s
            since, before = self._begun[what]
            rate = (now - since) / (done - before) if done > before else None
            left = "" if rate is None else f", about {time_in_words(rate * (total - done))} left"
            self.say(f"{what}: {done:,} of {total:,}{left}")
