"""Progress of long jobs: a callback, and a terminal bar that only appears when a job takes a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

from rich.console import Console
from rich.progress import Progress, TaskID

__all__ = ["ProgressBar", "ProgressCallback", "Say", "time_in_words"]

ProgressCallback: TypeAlias = Callable[[str, int, int], None]
"""(what is being done, how many are done, how many in all); always called from one thread."""


Say: TypeAlias = Callable[[str], None]
"""Takes a line that says what happens."""


def time_in_words(seconds: float) -> str:
    """A span of time as one reads it: 45 s, 12 min, 3.4 h."""
    for unit, size in (("s", 1), ("min", 60)):
        if seconds < 100 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"


class ProgressBar:
    """A ProgressCallback that draws bars on a terminal, for jobs that take longer than `delay_s`.

    Use as a context manager, so that the terminal is left clean.
    """

    def __init__(self, console: Console | None = None, delay_s: float = 2.0) -> None:
        self._bars = Progress(console=console, transient=True, refresh_per_second=2)
        self._delay_s = delay_s
        self._started: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """Prints a line above the bars."""
        self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what not in self._tasks:
            if now - self._started.setdefault(what, now) < self._delay_s:
                return
            self._bars.start()
            self._tasks[what] = self._bars.add_task(
                what, total=total, completed=done
            )  # what was done before is no speed
        self._bars.update(self._tasks[what], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(what))
            del self._started[what]
